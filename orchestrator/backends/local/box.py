"""One box, from its workspace to an agent that answers, and back to nothing: what boxes of rollouts and of set-up commands share."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from anyio import CapacityLimiter

from orchestrator.agent.client import AgentClient
from orchestrator.backends.boxes import CONFIG_NAME, MEMORY_IS_FULL
from orchestrator.backends.local import processes
from orchestrator.backends.local.cgroups import Cgroups
from orchestrator.backends.local.ends import classify_end
from orchestrator.backends.local.launch import Order, launch, log_tail
from orchestrator.backends.local.processes import Known
from orchestrator.backends.local.root import Root
from orchestrator.backends.local.spec import BoxPlan, agent_config, entry, merged
from orchestrator.errors import Misconfigured, SandboxDead, SandboxError, SandboxLost, StartFailed, TiltyardError
from orchestrator.interfaces import SandboxSpec
from orchestrator.models import SandboxId
from orchestrator.repos.threads import finish
from orchestrator.repos.workspace import OverlayVolume, Workspace

SOCKET_NAME = "agent.sock"
END_GRACE_S = 30.0
"""From an agent's last word to its end, on a machine that is busy: blame rests on it, so that it is long."""
PARALLEL = 8


class Line(Protocol):
    """Makes the command line of a box's first process."""

    def __call__(self, plan: BoxPlan, *, seccomp_fd: int, status_fd: int) -> list[str]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """Where boxes are found again. `boxes` is the folder of their folders."""

    boxes: Path
    cgroups: Cgroups
    limiter: CapacityLimiter


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What every box of this backend is made from."""

    line: Line
    root: Root
    agent: Path
    seccomp: Path


def plan_of(ground: Ground, parts: Parts, spec: SandboxSpec, workspace: Workspace) -> BoxPlan:
    """The box's cgroups are made here. Blocks. Raises OSError."""
    return BoxPlan(
        sandbox_id=workspace.sandbox_id,
        spec=spec,
        workspace=workspace,
        root=parts.root,
        agent=parts.agent,
        cgroups=ground.cgroups.make(workspace.sandbox_id, spec.limits),
        host_uid=os.geteuid(),
    )


def start(ground: Ground, parts: Parts, spec: SandboxSpec, workspace: Workspace) -> Known:
    """The box's first process. Blocks for some milliseconds. Raises StartFailed."""
    folder = workspace.root
    try:
        plan = plan_of(ground, parts, spec, workspace)
        (workspace.agent_dir / CONFIG_NAME).write_bytes(agent_config(plan).to_json())
        if isinstance(workspace.workspace_mount, OverlayVolume):
            merged(workspace).mkdir()
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        with (
            open(parts.seccomp, "rb") as program,
            open(os.open(folder / processes.STATUS, flags, 0o600), "wb") as status,
        ):
            line = parts.line(plan, seccomp_fd=program.fileno(), status_fd=status.fileno())
            descriptors = (program.fileno(), status.fileno())
            return launch(Order(folder=folder, command=line, entered=entry(plan), descriptors=descriptors))
    except OSError as error:
        raise StartFailed(f"the box could not be started: {error.strerror}") from error


async def ready(client: AgentClient, process: Known, folder: Path, deadline: float) -> None:
    """Return once the agent answers. Raises StartFailed for a box that ended at its start, TimeoutError."""
    answering = asyncio.ensure_future(client.wait_ready(deadline=deadline))
    ended = asyncio.ensure_future(wait_end(process))
    try:
        await asyncio.wait({answering, ended}, return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            said = await asyncio.to_thread(log_tail, folder)
            raise StartFailed(f"the box ended at its start: {said.rpartition(chr(10))[2][:300] or 'without a word'}")
        answering.result()
    finally:
        for task in (answering, ended):
            task.cancel()
        await asyncio.wait({answering, ended})


async def wait_end(process: Known) -> None:
    """Return when `process` has ended."""
    watched = processes.watch(process)
    if watched is None:
        return
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    try:
        loop.add_reader(watched, over.set)
        await over.wait()
    finally:
        loop.remove_reader(watched)
        os.close(watched)


def client_of(sandbox_id: SandboxId, agent_dir: Path, explain: Callable[[], Awaitable[TiltyardError]]) -> AgentClient:
    """Raises Misconfigured."""
    try:
        return AgentClient(sandbox_id, agent_dir / SOCKET_NAME, explain_loss=explain)
    except ValueError as error:
        raise Misconfigured("the state folder's path is too long for a unix socket below it") from error


async def explain_loss(ground: Ground, sandbox_id: SandboxId) -> SandboxDead | SandboxLost:
    """Why a box does not answer. The agent's silence comes a moment before its end."""
    folder = ground.boxes / sandbox_id
    record = await asyncio.to_thread(processes.read_record, folder)
    if record is None:
        return SandboxLost("the box is gone")
    if await asyncio.to_thread(ground.cgroups.memory_share, sandbox_id) < MEMORY_IS_FULL:
        with suppress(TimeoutError):
            async with asyncio.timeout(END_GRACE_S):
                await wait_end(record.process)
    return await asyncio.to_thread(_blame, ground, sandbox_id)


def _blame(ground: Ground, sandbox_id: SandboxId) -> SandboxDead | SandboxLost:
    folder = ground.boxes / sandbox_id
    record = processes.read_record(folder)
    if record is None:
        return SandboxLost("the box is gone")
    return classify_end(
        running=processes.lives(record.process),
        ended_by_us=record.ended_by_us,
        exit_code=processes.read_status(folder).exit_code,
        oom_kills=ground.cgroups.oom_kills(sandbox_id),
        memory_share=ground.cgroups.memory_share(sandbox_id),
    )


async def end(ground: Ground, sandbox_id: SandboxId) -> None:
    """End all processes of a box and remove its cgroups; its files stay. Idempotent. Raises SandboxError (try again)."""
    await finish(ground.limiter, _end, ground, sandbox_id)


def _end(ground: Ground, sandbox_id: SandboxId) -> None:
    folder = ground.boxes / sandbox_id
    record = processes.read_record(folder)
    try:
        if record is not None:
            if processes.lives(record.process):
                with suppress(FileNotFoundError):
                    processes.write_record(folder, replace(record, ended_by_us=True))
            ground.cgroups.lift_processor_limit(sandbox_id)
            processes.end(record.process, processes.read_status(folder).child)
        ground.cgroups.remove(sandbox_id)
    except OSError as error:
        raise SandboxError(f"box {sandbox_id} could not be ended: {error.strerror}") from error


async def started(
    ground: Ground,
    parts: Parts,
    spec: SandboxSpec,
    workspace: Workspace,
    deadline: float,
    explain: Callable[[], Awaitable[TiltyardError]],
) -> AgentClient:
    """A client of the box, once its agent answers. Raises StartFailed, Misconfigured, TimeoutError; the caller removes what is left."""
    client = client_of(workspace.sandbox_id, workspace.agent_dir, explain)
    try:
        process = await finish(ground.limiter, start, ground, parts, spec, workspace)
        await ready(client, process, workspace.root, deadline)
    except BaseException:
        await client.aclose()
        raise
    return client


def left_s(deadline: float) -> float:
    """Until `deadline`, of this process's monotonic clock."""
    return deadline - time.monotonic()
