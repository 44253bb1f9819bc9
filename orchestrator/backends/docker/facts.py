"""What the engine says, reduced to what we decide by: values, and how they are read from its JSON."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

HOST_PATH = re.compile(r"(?:/[\w.@+:-]+){2,}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerState:
    """What the engine says of one container. `exit_code` means something only when `running` is false."""

    id: str
    name: str
    image: str
    running: bool
    exit_code: int
    oom_killed: bool
    error: str
    pid: int
    started_at: float
    runtime: str
    wired: bool = False
    """Whether it lives in another container's network namespace."""
    labels: Mapping[str, str] = field(default_factory=dict)
    mounts: Mapping[str, Path] = field(default_factory=dict)
    """Where in the box -> the folder of this machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedContainer:
    """One line of the engine's list. `ending`: it is being removed, or was: an engine may list it until its own restart."""

    id: str
    name: str
    running: bool
    ending: bool
    created_at: float
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """A runtime as the engine has it. `path` is empty for one that is a containerd shim."""

    path: str
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts:
    """What the engine says of itself, reduced to what we decide by."""

    version: str
    api_version: str
    runtimes: Mapping[str, Registration]
    runc_version: str
    cgroup_version: str
    live_restore: bool
    storage_driver: str
    backing_filesystem: str
    root_dir: Path
    security_options: tuple[str, ...]
    memory_limit: bool
    swap_limit: bool
    pids_limit: bool
    cpu_quota: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFacts:
    id: str
    labels: Mapping[str, str]
    environment: Mapping[str, str]


def tidy(text: str) -> str:
    """An engine's message without this machine's paths, on one line, short enough for a trainer's log."""
    return HOST_PATH.sub("<path>", " ".join(text.split()))[:400]


def timestamp(text: str) -> float:
    """Seconds since 1970 of the engine's RFC 3339 with nanoseconds; 0.0 for its "never"."""
    seconds, _, rest = text.rstrip("Z").partition(".")
    if not seconds or seconds.startswith("0001"):
        return 0.0
    return datetime.fromisoformat(seconds + "+00:00").timestamp() + float(f"0.{rest[:6] or 0}")


def image_facts(found: Mapping[str, Any]) -> ImageFacts:
    config = found.get("Config") or {}
    environment = dict(entry.partition("=")[::2] for entry in config.get("Env") or [])
    return ImageFacts(id=found["Id"], labels=config.get("Labels") or {}, environment=environment)


def memory_share(stats: Mapping[str, Any]) -> float:
    memory = stats.get("memory_stats") or {}
    detail = memory.get("stats") or {}
    held = detail.get("anon", detail.get("total_rss", 0))  # cgroup v2, v1
    return float(held) / float(memory.get("limit") or 1)


def listed_container(entry: Mapping[str, Any]) -> ListedContainer:
    return ListedContainer(
        id=entry["Id"],
        name=(entry.get("Names") or ["/"])[0].lstrip("/"),
        running=entry.get("State") == "running",
        ending=entry.get("State") == "removing",
        created_at=float(entry.get("Created") or 0),
        labels=entry.get("Labels") or {},
    )


def container_state(found: Mapping[str, Any]) -> ContainerState:
    state = found["State"]
    return ContainerState(
        id=found["Id"],
        name=str(found["Name"]).lstrip("/"),
        image=found["Image"],
        running=bool(state["Running"]),
        exit_code=int(state["ExitCode"]),
        oom_killed=bool(state["OOMKilled"]),
        error=str(state.get("Error") or ""),
        pid=int(state["Pid"]),
        started_at=timestamp(state.get("StartedAt") or ""),
        runtime=str(found["HostConfig"].get("Runtime") or ""),
        wired=str(found["HostConfig"].get("NetworkMode") or "").startswith("container:"),
        labels=found["Config"].get("Labels") or {},
        mounts={str(mount["Destination"]): Path(mount["Source"]) for mount in found.get("Mounts") or []},
    )


def registration(entry: Mapping[str, Any]) -> Registration:
    """Engines since 23 give a path for what is registered by one, and a type for a shim."""
    path = "" if entry.get("runtimeType") else str(entry.get("path") or "")
    return Registration(path=path, arguments=tuple(str(word) for word in entry.get("runtimeArgs") or ()))


def engine_facts(info: Mapping[str, Any], version: Mapping[str, Any]) -> EngineFacts:
    components = {part.get("Name"): str(part.get("Version", "")) for part in version.get("Components") or []}
    driver_status = {str(row[0]): str(row[1]) for row in info.get("DriverStatus") or []}
    return EngineFacts(
        version=str(version.get("Version", "")),
        api_version=str(version.get("ApiVersion", "")),
        runtimes={str(name): registration(entry) for name, entry in (info.get("Runtimes") or {}).items()},
        runc_version=components.get("runc", ""),
        cgroup_version=str(info.get("CgroupVersion", "1")),
        live_restore=bool(info.get("LiveRestoreEnabled")),
        storage_driver=str(info.get("Driver", "")),
        backing_filesystem=driver_status.get("Backing Filesystem", ""),
        root_dir=Path(str(info.get("DockerRootDir", "/var/lib/docker"))),
        security_options=tuple(info.get("SecurityOptions") or ()),
        memory_limit=bool(info.get("MemoryLimit")),
        swap_limit=bool(info.get("SwapLimit")),
        pids_limit=bool(info.get("PidsLimit")),
        cpu_quota=bool(info.get("CpuCfsQuota")),
    )
