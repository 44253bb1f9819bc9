"""Settings, read once: environment (`TILTYARD_...`), then defaults; the command line overrides both."""

import os
import re
import socket
from ipaddress import IPv4Address
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from orchestrator.errors import Misconfigured

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,30}")
"""Deployment and host names end up in folder names, labels and container names."""


def default_state_dir() -> Path:
    """/var/lib/tiltyard for root, else ~/.local/share/tiltyard."""
    return Path("/var/lib/tiltyard") if os.geteuid() == 0 else Path.home() / ".local" / "share" / "tiltyard"


def default_host_id() -> str:
    """This machine's name, reduced to what labels may hold."""
    reduced = re.sub(r"[^a-z0-9-]+", "-", socket.gethostname().lower()).strip("-")[:31]
    return reduced or "host"


def _name(value: str) -> str:
    if not NAME.fullmatch(value):
        raise ValueError("use lower-case letters, digits and hyphens, at most 31")
    return value


def _words(value: object) -> object:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _addresses(value: object) -> object:
    given = _words(value)
    if not isinstance(given, list | tuple):
        return given
    try:
        found = tuple(IPv4Address(each) for each in given)
    except ValueError:
        raise ValueError("name resolvers by their IPv4 addresses, comma between") from None
    if any(each.is_loopback for each in found):
        raise ValueError("a resolver on loopback cannot be asked from a proxy's namespace; name another address of it")
    return tuple(str(each) for each in found)


Name = Annotated[str, AfterValidator(_name)]


class Settings(BaseSettings):
    """Everything that can be set. Each field is documented here and in docs/settings.md."""

    model_config = SettingsConfigDict(env_prefix="TILTYARD_", extra="ignore", frozen=True)

    deployment: Name = "default"
    """Boxes, mounts and folders carry this name; two deployments on one machine never touch each other's."""
    host_id: Name = Field(default_factory=default_host_id)
    """Identity of this host in the store; a lock file keeps a second process from taking it."""
    state_dir: Path = Field(default_factory=default_state_dir)
    """Store, blobs, mirrors, templates and boxes."""
    store_url: str = ""
    """SQLAlchemy URL; empty: SQLite in `state_dir`."""
    listen_host: str = "127.0.0.1"
    listen_port: int = Field(default=8080, ge=0, le=65535)
    tasks: Path | None = None
    """A task file (JSONL) served as job `default`."""
    jobs: Path | None = None
    """A TOML file of jobs: [jobs.NAME] tasks = "file.jsonl", share, samples_per_task, run_name."""
    tokens: Path | None = None
    """Token file; see `tiltyard token new`."""
    insecure_loopback: bool = False
    """Serve without tokens, to loopback peers only."""
    backend: Literal["docker", "kubernetes", "local", "fake"] = "docker"
    local_any_image: bool = False
    """Backend local: take tasks that name an image, and run them over this machine's own programs all the same."""
    local_paths: str = ""
    """Backend local: folders of this machine that boxes see read-only beside /usr, separated by colons."""
    runtime: str = "runc"
    """The engine's runtime for boxes: runc, or runsc (gVisor); docs/runtimes.md."""
    accept_old_runc: bool = False
    """Serve although runc lacks published fixes; boxes hold code that nobody trusts, so that without this such a runc is refused."""
    kube_context: str = ""
    """Backend kubernetes: context of the kubeconfig; empty: its current one, or the service account inside a cluster."""
    kube_namespace: str = "tiltyard-sandboxes"
    """Backend kubernetes: where boxes' pods are made; k8s/base makes it."""
    kube_agent_image: str = ""
    """Backend kubernetes: image of the in-box agent as the cluster pulls it; empty: the name that `tiltyard deploy agent-image` gives it."""
    kube_runtime_class: str = ""
    """Backend kubernetes: RuntimeClass of boxes, such as gvisor; empty: the cluster's default."""
    kube_security: Literal["baseline", "restricted"] = "baseline"
    """Backend kubernetes: pod security level of boxes; restricted has one uid per box, and no grading boxes."""
    kube_seccomp_profile: str = ""
    """Backend kubernetes: path of our system call filter below the nodes' seccomp folder; empty: the runtime's own filter."""
    kube_port_forward: bool = False
    """Backend kubernetes: reach boxes through the API server, where this machine has no way to pods' addresses."""
    kube_task_images: str = ""
    """Backend kubernetes: repository for task images, such as registry.example/team/tasks: this host pushes to it, nodes pull from it, and a task's
    repository comes with its image. Empty: it is streamed to each pod."""
    kube_insecure_registries: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_words)] = ()
    """Backend kubernetes: registries (host, or host:port; comma between) that speak plain HTTP."""
    kube_warm_boxes: int = Field(default=2, ge=0)
    """Backend kubernetes: pods kept ready per task image in use."""
    kube_start_s: float = Field(default=120.0, gt=0)
    """Backend kubernetes: how long a pod may wait for room and for its image."""
    memory_limit_mib: int = Field(default=0, ge=0)
    """Memory that all boxes together may be promised; 0: three quarters of the machine's."""
    disk_reserve_mib: int = Field(default=2048, ge=0)
    """Free space on the state folder's file system below which no box is started; below a quarter of it live boxes are given up."""
    disk_overcommit: float = Field(default=4.0, ge=1.0)
    """How much more disk boxes may be promised than is free at the start: their disks are sparse. With 1 they can never fill it."""
    max_boxes: int = Field(default=200, ge=1)
    start_slots: int = Field(default=2, ge=1)
    """Boxes starting at the same time; more only adds latency on one engine."""
    idle_ttl_s: float = Field(default=1800.0, gt=0)
    """An abandoned rollout ends after this; it must exceed a slow call plus the model's thinking time."""
    call_deadline_s: float = Field(default=540.0, gt=0)
    """Answer 5xx when a call or grade takes longer (trainers wait ten minutes); the work goes on and the retry joins it."""
    grader_reserve: int = Field(default=1, ge=0)
    """Warm grading boxes kept per task template in use."""
    cache_limit_mib: int = Field(default=51_200, ge=1)
    """Disk that mirrors and templates may take; the least recently used go first, never one that a box lies over."""
    egress_network: str = ""
    """The engine's network by which allow-lists' proxies go out; empty: one of our own, made when it is needed."""
    egress_dns: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_addresses)] = ()
    """Resolvers that these proxies ask (addresses, comma between); empty: the engine's own."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    failpoints: str = ""
    """Faults ordered by tests; see orchestrator/failpoints.py."""

    def resolved_store_url(self) -> str:
        return self.store_url or f"sqlite+aiosqlite:///{self.state_dir / self.deployment / 'store.db'}"

    @property
    def deployment_dir(self) -> Path:
        return self.state_dir / self.deployment


def load_settings(**overrides: object) -> Settings:
    """Environment and defaults under `overrides` (None means not given). Raises Misconfigured naming each field and its fix."""
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return Settings(**given)  # type: ignore[arg-type]
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg'].removeprefix('Value error, ')}" for e in error.errors()]
        raise Misconfigured("settings: " + "; ".join(lines)) from error
