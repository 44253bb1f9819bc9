"""What boxes have in common whatever makes them: names and places inside, what the agent needs beside its commands, how a box's folder goes."""

import asyncio
import re
from collections.abc import Mapping

from orchestrator.agent.config import RUN_DIR, AgentConfig
from orchestrator.errors import Misconfigured, SandboxError
from orchestrator.interfaces import SandboxSpec
from orchestrator.models import Limits, SandboxId
from orchestrator.repos.workspace import Workspace, Workspaces

AGENT_PATH = "/tiltyard-agent"
CONFIG_NAME = "config.json"
HOME = "/home/agent"
MIB = 1024 * 1024
SANDBOX_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")
"""What container names, folders and labels can all carry."""

AGENT_CAPABILITIES = ("KILL", "SETGID", "SETUID")
"""The agent steps down to the commands' uid and kills what runs as it; commands hold none of these."""
AGENT_PIDS = 64
"""Threads of the agent and its runtime, beyond what commands may have: they cannot starve it."""
MIN_FILE_BYTES = 512 * MIB
"""The file size limit is inherited by commands from the agent, whose journal (256 MiB) must fit below it."""
SHM_BYTES = 64 * MIB
SOCKET_MEMORY_SHARE = 4
"""What lies in TCP and UDP sockets is held to this part of a box's memory, beside it, where control groups are of version 1: they do not count it as
memory, and the kernel's own bound is one for the whole machine. Version 2 counts it as memory."""
MIN_MEMORY_MIB = 32
CPU_PERIOD_US, LONG_CPU_PERIOD_US = 10_000, 100_000
"""A box that takes its share on several cores at once holds them for a tenth of the engines' 100 ms, so that its neighbours wait less."""
CPU_LEAST_QUOTA_US = 1_000
"""The kernel's least."""
FIXED_ENVIRONMENT = {
    "HOME": HOME,
    "USER": "agent",
    "LOGNAME": "agent",
    "LANG": "C.UTF-8",
    "TERM": "dumb",
    "PAGER": "cat",
    "GIT_PAGER": "cat",
}
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SIGKILLED = 128 + 9
GO_CRASH = 2
"""Exit status of a Go program whose runtime gave up: no memory, no thread. Commands that eat both can bring the agent there."""
MEMORY_IS_FULL = 0.8
"""Share of a box's memory that its commands hold for good; what is left no longer holds the programs that run, and the box thrashes."""
WORKSPACE_TRIES = 10
WORKSPACE_PAUSE_S = 0.2
"""The kernel may hold a box's mounts for a moment after its last process died."""
RESERVED_FOLDERS = frozenset(
    {"", "/bin", "/dev", "/etc", "/home", HOME, "/lib", "/proc", "/run", RUN_DIR, "/sys", "/tmp", "/usr"}  # noqa: S108
)


def box_environment(image: Mapping[str, str]) -> dict[str, str]:
    """The environment of commands: what the image declares, ours over it, nothing of this machine."""
    return {"PATH": DEFAULT_PATH, **image, **FIXED_ENVIRONMENT}


def check_limits(limits: Limits) -> None:
    """Raises Misconfigured."""
    if limits.memory_mib < MIN_MEMORY_MIB or limits.cpus <= 0 or limits.pids < 1 or limits.open_files < 64:
        raise Misconfigured(
            f"limits are too small to start anything: memory_mib >= {MIN_MEMORY_MIB}, cpus > 0, pids >= 1, open_files >= 64"
        )


def one_uid(workspace: Workspace) -> bool:
    """Whether agent and commands must share a uid: the form without root grants no second one."""
    return workspace.uid_count == 1


def agent_config(workspace: Workspace, spec: SandboxSpec, environment: Mapping[str, str]) -> AgentConfig:
    """What the box's agent is told. Grader boxes alone may run a command as the agent itself."""
    return AgentConfig(
        uid_base=workspace.uid_base,
        uid_count=workspace.uid_count,
        workspace=spec.workdir,
        home=HOME,
        mode="one_uid" if one_uid(workspace) else "split",
        allow_root_exec=spec.grader,
        env=environment,
    )


def cpu_period_us(cpus: float) -> int:
    """The short period wherever the share of it is one that the kernel takes."""
    return CPU_PERIOD_US if cpus * CPU_PERIOD_US >= CPU_LEAST_QUOTA_US else LONG_CPU_PERIOD_US


async def remove_workspace(workspaces: Workspaces, sandbox_id: SandboxId) -> None:
    """Of a box whose processes have ended. Idempotent. Raises SandboxError when the kernel holds on to it."""
    for left in reversed(range(WORKSPACE_TRIES)):
        try:
            await workspaces.remove(sandbox_id)
        except SandboxError:
            if not left:
                raise
            await asyncio.sleep(WORKSPACE_PAUSE_S)
        else:
            return


def process_limit(pids: int, *, shared: bool, own_kernel: bool) -> int:
    """RLIMIT_NPROC of what runs in a box; `shared`: agent and commands have one uid. Pure.

    It counts a uid's threads. gVisor exempts no root: with less than its own threads the agent would not start, so that there
    a smaller limit counts as `AGENT_PIDS`.
    """
    if shared:
        return pids + AGENT_PIDS
    return max(pids, AGENT_PIDS) if own_kernel else pids
