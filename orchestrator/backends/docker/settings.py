"""What the docker backend needs to know, fixed for its life."""

import os
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import Misconfigured

DEFAULT_SOCKET = "unix:///var/run/docker.sock"


@dataclass(frozen=True, slots=True, kw_only=True)
class DockerSettings:
    """`state_dir` is the deployment's own folder: copies of the agent lie in `state_dir/agent/<sha256>/`."""

    deployment: str
    host_id: str
    state_dir: Path
    runtime: str = "runc"
    """The engine's name of the runtime for boxes: runc, or runsc (gVisor). Refused when the engine has none, or it is not what its name says."""
    accept_old_runc: bool = False
    """Make boxes although runc lacks published fixes (C8); otherwise such a runc is refused at the start."""
    start_slots: int = 2
    """Boxes starting at once; an engine gives 4 to 6 starts a second whatever the concurrency, more only adds latency."""
    memory_limit_mib: int = 0
    """Memory that all boxes together may be promised; 0: three quarters of the machine's."""
    max_boxes: int = 200
    socket: str = ""
    """unix://PATH of the engine; empty: DOCKER_HOST, else /var/run/docker.sock."""
    request_timeout_s: float = 60.0
    """One engine request. A start under load takes seconds; an engine that is silent for longer is taken for gone."""
    lifetime_s: float = 86_400.0
    """Only sets the label by which a sweeper knows a box that its host surely forgot."""
    egress_network: str = ""
    """The engine's network by which the proxies of allow-lists go out; empty: one of our own, made when it is needed."""
    egress_dns: tuple[str, ...] = ()
    """Addresses of the resolvers that these proxies ask; empty: the engine's own."""
    agent_binary: Path | None = None
    """The in-box agent to copy from; None: the one that the package's build compiled for this machine."""
    seccomp_profile: Path | None = None
    """The system call filter of boxes; None: the pinned one. Refused at start when it lets through what no box may do."""


def engine_socket(settings: DockerSettings) -> str:
    """Where the engine listens. Raises Misconfigured for a remote engine: boxes share folders and sockets with this host."""
    found = settings.socket or os.environ.get("DOCKER_HOST", "") or DEFAULT_SOCKET
    if not found.startswith("unix://"):
        raise Misconfigured(f"the docker backend needs an engine on this machine (unix://...), not {found!r}")
    return found
