"""What an agent says of itself and of what holds in its box."""

from dataclasses import dataclass
from typing import Literal

from orchestrator.agent.fields import Fields


@dataclass(frozen=True, slots=True, kw_only=True)
class Posture:
    """Looked up by the agent at its own process. `capabilities` is its effective set in hex; 0 means no limit or none to be seen.

    `gaps` are short names of what does not hold; docs/agent-protocol.md lists them.
    """

    agent_uid: int
    command_uid: int
    capabilities: str
    no_new_privs: bool
    seccomp: int
    pids_limit: int
    journal_bytes: int
    gaps: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """First lines of /proc/version and of the kernel's log as the agent saw them before any command ran; `log` is empty where it may not be read."""

    version: str
    log: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """Answer of `GET /v1/health`."""

    protocol: int
    boot_id: str
    rollout: str | None
    epoch: int
    frozen: bool
    running: int
    uptime_s: float
    mode: Literal["split", "one_uid"]
    kernel: Kernel
    posture: Posture


def decode_health(value: object) -> Health:
    """Raises AgentProtocolError."""
    f = Fields(value, "the health")
    mode = f.text("mode", 16)
    if mode not in ("split", "one_uid"):
        raise f.wrong("mode")
    health = Health(
        protocol=f.integer("protocol"),
        boot_id=f.text("boot_id", 64),
        rollout=f.maybe_text("rollout"),
        epoch=f.integer("epoch"),
        frozen=f.flag("frozen"),
        running=f.integer("running"),
        uptime_s=f.number("uptime_s"),
        mode=mode,  # type: ignore[arg-type]
        kernel=_decode_kernel(f.take("kernel")),
        posture=_decode_posture(f.take("posture")),
    )
    f.finish()
    return health


def _decode_kernel(value: object) -> Kernel:
    f = Fields(value, "the kernel")
    kernel = Kernel(version=f.text("version", 512), log=f.text("log", 512))
    f.finish()
    return kernel


def _decode_posture(value: object) -> Posture:
    f = Fields(value, "the posture")
    gaps = f.items("gaps", 32)
    if not all(isinstance(gap, str) and len(gap) <= 64 for gap in gaps):
        raise f.wrong("gaps")
    posture = Posture(
        agent_uid=f.integer("agent_uid"),
        command_uid=f.integer("command_uid"),
        capabilities=f.text("capabilities", 32),
        no_new_privs=f.flag("no_new_privs"),
        seccomp=f.integer("seccomp"),
        pids_limit=f.integer("pids_limit"),
        journal_bytes=f.integer("journal_bytes"),
        gaps=tuple(str(gap) for gap in gaps),
    )
    f.finish()
    return posture
