"""What a box is in the Engine API's words: pure functions, from values to the body of `POST /containers/create`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.agent.config import RUN_DIR, AgentConfig
from orchestrator.backends import boxes
from orchestrator.backends.boxes import (
    AGENT_CAPABILITIES,
    AGENT_PATH,
    AGENT_PIDS,
    CONFIG_NAME,
    CPU_LEAST_QUOTA_US,
    HOME,
    MIB,
    MIN_FILE_BYTES,
    RESERVED_FOLDERS,
    SANDBOX_NAME,
    SHM_BYTES,
    box_environment,
    cpu_period_us,
    process_limit,
)
from orchestrator.egress import names
from orchestrator.errors import Misconfigured
from orchestrator.interfaces import SandboxSpec
from orchestrator.models import JsonValue, SandboxId
from orchestrator.repos.workspace import OverlayVolume, Workspace

LABEL_PREFIX = "tiltyard."
ROLE = "tiltyard.role"
"""box | setup | task-image. Containers inherit their image's labels, so that each kind says what it is."""
HOSTNAME = "sandbox"
GVISOR_PIDS, GVISOR_PIDS_PER_PROCESS = 256, 8
"""gVisor's own threads and stub processes count in the machine's pids limit, and it ends when it can start none. Seen: 26 for an idle box, 2 more for
each sleeping process, 4 more for each that starts others without end. What commands may start is bound by the process limit of their uid, which
gVisor counts per box."""
MASKED_PATHS = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kallsyms",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/sys/fs/selinux",
)
"""The engines' list of 2026, written out: older engines lack its later half."""
READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


Body = dict[str, JsonValue]
"""The body of a create request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wire:
    """A box's network, where it has one: the container whose namespace it joins, and what its commands are told of the proxy."""

    container: str
    environment: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxPlan:
    """Everything that `container_spec` decides from. Times are wall-clock seconds."""

    sandbox_id: SandboxId
    spec: SandboxSpec
    workspace: Workspace
    image_id: str
    image_environment: Mapping[str, str]
    agent: Path
    seccomp: str
    deployment: str
    host_id: str
    runtime: str
    own_kernel: bool
    """Whether the runtime gives a box a kernel of its own (gVisor), whose threads count in the machine's pids limit, and whose uids are the box's."""
    created_at: float
    expires_at: float
    wire: Wire | None = None


def container_name(sandbox_id: SandboxId) -> str:
    """The name by which destroy and attach find a box although the reply to its creation was lost."""
    return f"tiltyard-{sandbox_id}"


def owner_labels(deployment: str, host_id: str) -> dict[str, str]:
    """What every container and volume of this host carries."""
    return {"tiltyard.deployment": deployment, "tiltyard.host": host_id}


def check_spec(sandbox_id: SandboxId, spec: SandboxSpec) -> None:
    """Raises Misconfigured for what this backend cannot honour; nothing is ever ignored."""
    if not SANDBOX_NAME.fullmatch(sandbox_id):
        raise Misconfigured("a sandbox id has 1 to 63 of a-z, 0-9, '_', '.', '-', and starts with a letter or digit")
    try:
        names.check(spec.network)
    except ValueError as error:
        raise Misconfigured(f"network: {error}") from error
    if spec.network.allow and spec.grader:
        raise Misconfigured("a network allow-list for a grading box: grading boxes have no network")
    if not spec.workdir.startswith("/") or "/../" in f"{spec.workdir}/" or spec.workdir.rstrip("/") in RESERVED_FOLDERS:
        raise Misconfigured(f"workdir {spec.workdir!r} must be an absolute path of its own in the box")
    reserved = sorted(key for key in spec.labels if key.startswith(LABEL_PREFIX))
    if reserved:
        raise Misconfigured(f"labels that start with {LABEL_PREFIX!r} are reserved: {', '.join(reserved)}")
    boxes.check_limits(spec.limits)


def agent_config(plan: BoxPlan) -> AgentConfig:
    told = plan.wire.environment if plan.wire else {}
    return boxes.agent_config(plan.workspace, plan.spec, {**box_environment(plan.image_environment), **told})


def volume_name(sandbox_id: SandboxId) -> str:
    return container_name(sandbox_id)


def volume_options(volume: OverlayVolume) -> dict[str, str]:
    """Options of a local-driver volume that is an overlay mount made by the engine."""
    return {"type": "overlay", "device": "overlay", "o": f"nosuid,nodev,{volume.options}"}


def container_spec(plan: BoxPlan) -> Body:
    """The body of the create request: everything a box may and may not do stands here."""
    shared = boxes.one_uid(plan.workspace)
    uid = plan.workspace.uid_base
    return {
        "Image": plan.image_id,
        "User": f"{uid}:{uid}" if shared else "0:0",
        **({} if plan.wire else {"Hostname": HOSTNAME}),
        "WorkingDir": "/",
        "Entrypoint": [AGENT_PATH],
        "Cmd": ["serve", "--config", f"{RUN_DIR}/{CONFIG_NAME}"],
        "Env": [],
        "Tty": False,
        "OpenStdin": False,
        "Healthcheck": {"Test": ["NONE"]},
        "Labels": {**_labels(plan)},
        "HostConfig": {
            **_isolation(plan, shared),
            **_resources(plan, shared),
            "Mounts": [*_mounts(plan)],
            "Runtime": plan.runtime,
            "LogConfig": {"Type": "none"},
            "RestartPolicy": {"Name": "no"},
            "AutoRemove": False,
        },
    }


def _labels(plan: BoxPlan) -> dict[str, str]:
    return {
        **plan.spec.labels,
        **owner_labels(plan.deployment, plan.host_id),
        ROLE: "box",
        "tiltyard.sandbox": plan.sandbox_id,
        "tiltyard.created": f"{plan.created_at:.3f}",
        "tiltyard.expires": f"{plan.expires_at:.3f}",
        "tiltyard.grader": "true" if plan.spec.grader else "false",
    }


def _isolation(plan: BoxPlan, shared: bool) -> dict[str, JsonValue]:
    return {
        "ReadonlyRootfs": True,
        "Privileged": False,
        "CapDrop": ["ALL"],
        "CapAdd": [] if shared else [*AGENT_CAPABILITIES],
        "SecurityOpt": ["no-new-privileges", f"seccomp={plan.seccomp}"],
        **network_mode(plan.wire),
        "IpcMode": "private",
        "CgroupnsMode": "private",
        "PidMode": "",
        "UTSMode": "",
        "UsernsMode": "",
        "MaskedPaths": [*MASKED_PATHS],
        "ReadonlyPaths": [*READONLY_PATHS],
        "Init": False,
    }


def network_mode(wire: Wire | None) -> Body:
    """No network; or another container's, which then has the name and resolver, too."""
    if wire is not None:
        return {"NetworkMode": f"container:{wire.container}"}
    # The engine would copy this machine's resolver into the box.
    return {"NetworkMode": "none", "Dns": ["127.0.0.1"], "DnsSearch": ["."]}


def _resources(plan: BoxPlan, shared: bool) -> dict[str, JsonValue]:
    limits = plan.spec.limits
    memory_bytes = limits.memory_mib * MIB
    file_bytes = max(limits.disk_mib * MIB, MIN_FILE_BYTES)
    ulimits = [("nofile", limits.open_files), ("core", 0), ("fsize", file_bytes)]
    if plan.own_kernel or not shared:
        # Counts per uid over the whole machine: means what it says only where no neighbour shares the uid.
        ulimits.append(("nproc", process_limit(limits.pids, shared=shared, own_kernel=plan.own_kernel)))
    return {
        "Memory": memory_bytes,
        "MemorySwap": memory_bytes,
        "CpuPeriod": cpu_period_us(limits.cpus),
        "CpuQuota": max(CPU_LEAST_QUOTA_US, round(limits.cpus * cpu_period_us(limits.cpus))),
        "PidsLimit": pids_limit(limits.pids, plan.own_kernel),
        "ShmSize": SHM_BYTES,
        "Ulimits": [{"Name": name, "Soft": value, "Hard": value} for name, value in ulimits],
    }


def pids_limit(pids: int, own_kernel: bool) -> int:
    """Of the box's cgroup on this machine."""
    return GVISOR_PIDS + GVISOR_PIDS_PER_PROCESS * pids if own_kernel else pids + AGENT_PIDS


def _mounts(plan: BoxPlan) -> Sequence[dict[str, JsonValue]]:
    workspace = plan.workspace
    return [
        _bind(plan.agent, AGENT_PATH, read_only=True),
        _bind(workspace.agent_dir, RUN_DIR),
        _workspace_mount(plan),
        _bind(workspace.tmp, "/tmp"),  # noqa: S108 - the box's own
        _bind(workspace.home, HOME),
    ]


def _workspace_mount(plan: BoxPlan) -> dict[str, JsonValue]:
    source = plan.workspace.workspace_mount
    if isinstance(source, OverlayVolume):
        return {
            "Type": "volume",
            "Source": volume_name(plan.sandbox_id),
            "Target": plan.spec.workdir,
            "ReadOnly": False,
            "VolumeOptions": {"NoCopy": True},
        }
    return _bind(source.path, plan.spec.workdir)


def _bind(source: Path, target: str, *, read_only: bool = False) -> dict[str, JsonValue]:
    """Never made when missing (unlike `-v`), and no mount made later on the host shows up in the box."""
    return {
        "Type": "bind",
        "Source": str(source),
        "Target": target,
        "ReadOnly": read_only,
        "BindOptions": {"Propagation": "rprivate"},
    }
