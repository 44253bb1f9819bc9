"""The posture of a process as the host's own /proc tells it: everything that decides what the process may do, read from outside the box."""

import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

CGROUP_ROOT = Path("/sys/fs/cgroup")
ATIME = frozenset({"relatime", "noatime", "nodiratime", "strictatime"})
NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "pid_for_children", "time", "time_for_children", "user", "uts")
NULL = os.makedev(1, 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rights:
    """What the kernel keeps per thread. Ids are real, effective, saved, file system."""

    uids: tuple[int, ...]
    gids: tuple[int, ...]
    groups: int
    """How many supplementary ones beside the group itself."""
    inheritable: int
    permitted: int
    effective: int
    bounding: int
    ambient: int
    no_new_privs: int
    seccomp: int
    namespaces: Mapping[str, str]
    """Name -> "host" or "own"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """`type` is the file system's, or "mask" for what hides a kernel file. `flags` without those on access times."""

    type: str
    flags: frozenset[str]
    shared: bool = False
    """Whether mounts travel between it and another namespace."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Posture:
    """One process. `cgroups` and `caps` come from the host's own tree."""

    threads: frozenset[str]
    """Ways in which threads differ from the first one, each told whole. Of an expected posture: those that are allowed."""
    rights: Rights
    root: frozenset[str]
    mounts: Mapping[str, Mount]
    descriptors: frozenset[str]
    limits: Mapping[str, tuple[str, str]]
    uid_map: str
    gid_map: str
    environment: Mapping[str, str]
    oom_score_adj: int
    cgroups: Mapping[str, str]
    """Controller -> "own" (the container's), "root" (the machine's), or the path."""
    caps: Mapping[str, int]
    """What the cgroup allows: memory_bytes, memory_and_swap_bytes, pids, cpu_percent; -1: no limit."""


def differences(found: Posture, expected: Posture) -> list[str]:
    """One line for each thing that is not as expected, by its field: `mounts /: expected .. found ..`."""
    told = [f"threads: {each}" for each in sorted(found.threads - expected.threads)]
    for field in fields(Posture)[1:]:
        told += _differ(field.name, getattr(found, field.name), getattr(expected, field.name))
    return told


def unlike(thread: Rights, first: Rights) -> str:
    """How a thread differs from its process's first one; empty where it does not."""
    return "; ".join(_differ("thread", thread, first))


def _differ(name: str, found: object, expected: object) -> list[str]:
    if isinstance(found, Mapping) and isinstance(expected, Mapping):
        keys = sorted({*found, *expected})
        return [line for key in keys for line in _differ(f"{name} {key}", found.get(key), expected.get(key))]
    if isinstance(found, Rights) and isinstance(expected, Rights):
        each = [(field.name, getattr(found, field.name), getattr(expected, field.name)) for field in fields(Rights)]
        return [line for key, one, other in each for line in _differ(f"{name} {key}", one, other)]
    if isinstance(found, frozenset) and isinstance(expected, frozenset):
        extra, missing = sorted(map(str, found - expected)), sorted(map(str, expected - found))
        return [f"{name}: unexpected {extra}, missing {missing}"] if extra or missing else []
    return [] if found == expected else [f"{name}: expected {expected!r}, found {found!r}"]


def posture(pid: int, container: str) -> Posture:
    """Of a live process. `container`: the engine's id, by which its cgroup is known."""
    base = Path("/proc", str(pid))
    threads = {path.name: rights(path) for path in sorted((base / "task").iterdir(), key=lambda path: int(path.name))}
    first = threads[str(pid)]
    mounts = mountinfo(base)
    return Posture(
        threads=frozenset(filter(None, (unlike(each, first) for each in threads.values()))),
        rights=first,
        root=frozenset(os.listdir(base / "root")),
        mounts=named(mounts),
        descriptors=frozenset(descriptor(path, mounts) for path in (base / "fd").iterdir()),
        limits=limits(base),
        uid_map=" ".join((base / "uid_map").read_text().split()),
        gid_map=" ".join((base / "gid_map").read_text().split()),
        environment=dict(entry.partition("=")[::2] for entry in (base / "environ").read_text().split("\0") if entry),
        oom_score_adj=int((base / "oom_score_adj").read_text()),
        cgroups=cgroups(base, container),
        caps=caps(base),
    )


def rights(path: Path) -> Rights:
    """Of one thread: /proc/PID/task/TID."""
    lines = dict(line.partition(":")[::2] for line in (path / "status").read_text().splitlines())
    gids = tuple(map(int, lines["Gid"].split()))
    return Rights(
        uids=tuple(map(int, lines["Uid"].split())),
        gids=gids,
        groups=len(set(map(int, lines["Groups"].split())) - set(gids)),
        inheritable=int(lines["CapInh"], 16),
        permitted=int(lines["CapPrm"], 16),
        effective=int(lines["CapEff"], 16),
        bounding=int(lines["CapBnd"], 16),
        ambient=int(lines["CapAmb"], 16),
        no_new_privs=int(lines["NoNewPrivs"]),
        seccomp=int(lines["Seccomp"]),
        namespaces={name: "host" if inode == HOST[name] else "own" for name, inode in inodes(path).items()},
    )


def inodes(path: Path) -> Mapping[str, str]:
    """Namespaces by their inode: `net:[4026531833]`."""
    return {name: os.readlink(path / "ns" / name) for name in NAMESPACES}


HOST = inodes(Path("/proc/self"))


@dataclass(frozen=True, slots=True, kw_only=True)
class MountLine:
    id: int
    point: str
    root: str
    type: str
    flags: frozenset[str]
    shared: bool


def mountinfo(base: Path) -> Sequence[MountLine]:
    found = []
    for line in (base / "mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        number, _, _, root, point, flags, *tags = left.split()
        found.append(
            MountLine(
                id=int(number),
                point=point.encode().decode("unicode_escape"),
                root=root,
                type=right.split()[0],
                flags=frozenset(flags.split(",")) - ATIME,
                shared=any(tag.startswith("shared:") for tag in tags),
            )
        )
    return found


def named(lines: Sequence[MountLine]) -> Mapping[str, Mount]:
    """By place; cgroup v1's many hierarchies as one. The last mount over a place is the one that counts."""
    found: dict[str, Mount] = {}
    for line in lines:
        hides = line.root == "/null" or (
            line.type == "tmpfs" and "ro" in line.flags and line.point.startswith(("/proc/", "/sys/"))
        )
        point = f"{CGROUP_ROOT}/*" if line.point.startswith(f"{CGROUP_ROOT}/") else line.point
        mount = Mount(type=line.type, flags=line.flags, shared=line.shared)
        found[point] = Mount(type="mask", flags=frozenset()) if hides else mount
    return found


def descriptor(path: Path, mounts: Sequence[MountLine]) -> str:
    """What an open descriptor leads to: a kind, or a path within the process's own mounts; `foreign:` where it leads out of them."""
    target = os.readlink(path)
    if not target.startswith("/"):
        return target.partition(":")[0] if ":[" in target and not target.startswith("anon") else target
    held = path.stat()
    if stat.S_ISCHR(held.st_mode) and held.st_rdev == NULL:
        return "null"
    if target.startswith("/memfd:"):
        return "memfd"
    info = (path.parent.parent / "fdinfo" / path.name).read_text()
    mount = next(int(line.split()[1]) for line in info.splitlines() if line.startswith("mnt_id"))
    inside = mount in {line.id for line in mounts}
    place = str(CGROUP_ROOT) if target.startswith(str(CGROUP_ROOT)) else target
    return place if inside else f"foreign:{'folder' if stat.S_ISDIR(held.st_mode) else 'file'}:{target}"


def limits(base: Path) -> Mapping[str, tuple[str, str]]:
    """Soft and hard, by the kernel's name of the limit."""
    lines = (base / "limits").read_text().splitlines()[1:]
    return {line[:26].strip(): (line[26:47].strip(), line[47:68].strip()) for line in lines}


def cgroups(base: Path, container: str) -> Mapping[str, str]:
    found: dict[str, str] = {}
    for line in (base / "cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        where = "own" if container in path else "root" if path == "/" else path
        found |= {name: where for name in (controllers or "unified").split(",")}
    return found


def caps(base: Path) -> Mapping[str, int]:
    """From the host's own files of the process's cgroup, version 1 or 2."""
    paths: dict[str, str] = {}
    for line in (base / "cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        paths |= {name: path for name in (controllers or "unified").split(",")}
    if "memory" in paths:
        return _caps_v1(paths)
    folder = CGROUP_ROOT / paths["unified"].lstrip("/")
    memory, swap = _number(folder / "memory.max"), _number(folder / "memory.swap.max")
    quota, period = (folder / "cpu.max").read_text().split()
    return {
        "memory_bytes": memory,
        "memory_and_swap_bytes": -1 if -1 in (memory, swap) else memory + swap,
        "pids": _number(folder / "pids.max"),
        "cpu_percent": -1 if quota == "max" else round(100 * int(quota) / int(period)),
    }


def _caps_v1(paths: Mapping[str, str]) -> Mapping[str, int]:
    def read(controller: str, name: str) -> int:
        return _number(CGROUP_ROOT / controller / paths[controller].lstrip("/") / name)

    quota = read("cpu", "cpu.cfs_quota_us")
    return {
        "memory_bytes": read("memory", "memory.limit_in_bytes"),
        "memory_and_swap_bytes": read("memory", "memory.memsw.limit_in_bytes"),
        "pids": read("pids", "pids.max"),
        "cpu_percent": -1 if quota < 0 else round(100 * quota / read("cpu", "cpu.cfs_period_us")),
    }


NO_LIMIT_V1 = 1 << 60
"""cgroup v1 writes "no limit" as a number near 2**63."""


def _number(path: Path) -> int:
    if not path.exists():  # the machine's own cgroup has no limits
        return -1
    text = path.read_text().strip()
    return -1 if text == "max" or int(text) > NO_LIMIT_V1 else int(text)
