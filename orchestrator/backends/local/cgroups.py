"""A cgroup per box, in version 1 or 2, or in both at once as some machines have them: memory, processes, processor time.

Boxes' groups lie in `tiltyard/<deployment>/<box>` below each hierarchy's root, so that the sweeper finds them by name. Without root, or where the
root of the hierarchy is not ours to change, there are none: `Hierarchies.missing` says so.
"""

import errno
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from orchestrator.backends.boxes import AGENT_PIDS, CPU_LEAST_QUOTA_US, MIB, SOCKET_MEMORY_SHARE, cpu_period_us
from orchestrator.backends.local.spec import CgroupFiles
from orchestrator.errors import SandboxError
from orchestrator.models import Limits, SandboxId
from orchestrator.repos.mounts import unescape

CONTROLLERS = ("memory", "pids", "cpu")
TOP = "tiltyard"
END_WAIT_S = 10.0
ATTEMPTS = 10
TAKEN_AWAY = (errno.ENOENT, errno.EEXIST, errno.ENODEV, errno.EBUSY)
"""What is heard while the end of a deployment's last box takes the parents away that another one is just being laid out in."""
SHOWN = {"memory": "memory.oom_control", "pids": "pids.max"}
SHOWN_V2 = ("memory.events", "pids.max")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hierarchies:
    """Controller -> the mount that holds it. `unified` is the mount of version 2, if it holds any of ours."""

    v1: Mapping[str, Path]
    unified: Path | None
    in_unified: tuple[str, ...] = ()

    @property
    def missing(self) -> tuple[str, ...]:
        return tuple(name for name in CONTROLLERS if name not in self.v1 and name not in self.in_unified)


def find(mountinfo: str, unified_controllers: str) -> Hierarchies:
    """From a mountinfo text and what version 2's root lists in cgroup.controllers."""
    v1: dict[str, Path] = {}
    unified = None
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = (*after.split(" ", 2), "", "")[:3]
        point = Path(unescape(before.split(" ")[4])) if before else Path()
        if kind == "cgroup":
            named = set(options.split(","))
            v1 |= {name: point for name in CONTROLLERS if name in named}
        elif kind == "cgroup2":
            unified = point
    inside = tuple(name for name in CONTROLLERS if name in unified_controllers.split() and name not in v1)
    return Hierarchies(v1=v1, unified=unified if inside else None, in_unified=inside)


def present() -> Hierarchies:
    """Of this machine, as far as we may use them. Blocks."""
    if os.geteuid() != 0:
        return Hierarchies(v1={}, unified=None)
    text = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    listed = ""
    for line in text.splitlines():
        if " - cgroup2 " in line:
            with suppress(OSError):
                listed = (Path(unescape(line.split(" ")[4])) / "cgroup.controllers").read_text(encoding="ascii")
    found = find(text, listed)
    writable = {name: point for name, point in found.v1.items() if os.access(point / "cgroup.procs", os.W_OK)}
    unified = found.unified if found.unified and _enable(found.unified, found.in_unified) else None
    return Hierarchies(v1=writable, unified=unified, in_unified=found.in_unified if unified else ())


def _enable(group: Path, controllers: Sequence[str]) -> bool:
    """Let groups below `group` have them: EBUSY where it is no real root and holds processes itself (a container's)."""
    try:
        (group / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in controllers), encoding="ascii")
    except OSError:
        return False
    return True


class Cgroups:
    """Those of one deployment. Methods block and raise OSError, but where they say otherwise."""

    def __init__(self, deployment: str, look: Callable[[], Hierarchies] = present) -> None:
        self._deployment = deployment
        self._look = look

    @cached_property
    def hierarchies(self) -> Hierarchies:
        """Looked at once, when first asked for."""
        return self._look()

    def make(self, box: SandboxId, limits: Limits) -> CgroupFiles:
        """The box's groups, limited."""
        for left in reversed(range(ATTEMPTS)):
            try:
                self._lay_out(box, limits)
                break
            except OSError as error:
                if not left or error.errno not in TAKEN_AWAY:
                    raise
        folders = self._folders(box)
        return CgroupFiles(shown=tuple(self._shown(box)), procs=tuple(folder / "cgroup.procs" for folder in folders))

    def _lay_out(self, box: SandboxId, limits: Limits) -> None:
        for group, values in self._groups(box, limits):
            group.mkdir(exist_ok=True)  # a parent that was gone again would come back without controllers
            for name, value, needed in values:
                if needed or (group / name).exists():
                    (group / name).write_text(value, encoding="ascii")

    def lift_processor_limit(self, box: SandboxId) -> None:
        """Of a box that is to end: a process that owes time, which the kernel took beyond its quota, dies only once that is paid."""
        for folder in self._folders(box):
            for name, unlimited in (("cpu.cfs_quota_us", "-1"), ("cpu.max", "max")):
                with suppress(OSError):  # of the other version, or removed beside us
                    (folder / name).write_text(unlimited, encoding="ascii")

    def remove(self, box: SandboxId) -> None:
        """Kill what is left in the groups, and remove them. Idempotent. Raises SandboxError when something will not go."""
        give_up = time.monotonic() + END_WAIT_S
        for group in self._folders(box):
            while not _removed(group):
                if time.monotonic() > give_up:
                    raise SandboxError(f"processes of box {box} will not end: try again")
                _kill_all(group)
                time.sleep(0.002)
            with suppress(OSError):  # other boxes, or deployments, are in it
                group.parent.rmdir()
                group.parent.parent.rmdir()

    def names(self) -> set[SandboxId]:
        """Boxes that left a group."""
        found: set[SandboxId] = set()
        for parent in self._parents():
            with suppress(FileNotFoundError):
                found |= {SandboxId(entry.name) for entry in os.scandir(parent) if entry.is_dir()}
        return found

    def oom_kills(self, box: SandboxId) -> int:
        """Processes of the box that the kernel ended for want of memory; 0 where that cannot be known."""
        for folder in self._folders(box):
            for name in ("memory.oom_control", "memory.events"):
                with suppress(OSError):
                    for line in (folder / name).read_text(encoding="ascii").splitlines():
                        if line.startswith("oom_kill "):
                            return int(line.split()[1])
        return 0

    def memory_share(self, box: SandboxId) -> float:
        """Of its memory limit, what the box's processes hold for good; 0.0 where that cannot be known."""
        for folder in self._folders(box):
            for limit, held in (("memory.limit_in_bytes", "total_rss"), ("memory.max", "anon")):
                with suppress(OSError, ValueError, StopIteration):
                    most = int((folder / limit).read_text(encoding="ascii"))
                    lines = (folder / "memory.stat").read_text(encoding="ascii").splitlines()
                    return next(int(line.split()[1]) for line in lines if line.startswith(f"{held} ")) / most
        return 0.0

    def _parents(self) -> list[Path]:
        mounts = [*self.hierarchies.v1.values(), *filter(None, [self.hierarchies.unified])]
        return [mount / TOP / self._deployment for mount in dict.fromkeys(mounts)]

    def _folders(self, box: SandboxId) -> list[Path]:
        return [parent / box for parent in self._parents()]

    def _groups(self, box: SandboxId, limits: Limits) -> list[tuple[Path, list[tuple[str, str, bool]]]]:
        """Each group with (file, value, whether it must be there); its parents are made."""
        wanted = []
        for name, mount in self.hierarchies.v1.items():
            (mount / TOP / self._deployment).mkdir(parents=True, exist_ok=True)
            wanted.append((mount / TOP / self._deployment / box, v1_values(name, limits)))
        unified = self.hierarchies.unified
        if unified:
            for parent in (unified / TOP, unified / TOP / self._deployment):
                parent.mkdir(exist_ok=True)
                if not _enable(parent, self.hierarchies.in_unified):
                    raise OSError(errno.EBUSY, "cgroup controllers cannot be handed down")
            values = [value for name in self.hierarchies.in_unified for value in v2_values(name, limits)]
            wanted.append((unified / TOP / self._deployment / box, values))
        return wanted

    def _shown(self, box: SandboxId) -> list[tuple[str, Path]]:
        shown = []
        for name, file in SHOWN.items():
            if mount := self.hierarchies.v1.get(name):
                shown.append((f"/sys/fs/cgroup/{name}/{file}", mount / TOP / self._deployment / box / file))
        if unified := self.hierarchies.unified:
            group = unified / TOP / self._deployment / box
            shown += [(f"/sys/fs/cgroup/{file}", group / file) for file in SHOWN_V2 if (group / file).exists()]
        return shown


def v1_values(controller: str, limits: Limits) -> list[tuple[str, str, bool]]:
    """(file, value, whether it must be there), in the order of writing: the swap limit cannot be below the memory limit."""
    memory = str(limits.memory_mib * MIB)
    period = cpu_period_us(limits.cpus)
    return {
        "memory": [
            ("memory.limit_in_bytes", memory, True),
            ("memory.memsw.limit_in_bytes", memory, False),
            ("memory.kmem.tcp.limit_in_bytes", str(limits.memory_mib * MIB // SOCKET_MEMORY_SHARE), False),
        ],
        "pids": [("pids.max", str(limits.pids + AGENT_PIDS), True)],
        "cpu": [("cpu.cfs_period_us", str(period), True), ("cpu.cfs_quota_us", str(_quota_us(limits.cpus)), True)],
    }[controller]


def v2_values(controller: str, limits: Limits) -> list[tuple[str, str, bool]]:
    """As `v1_values`."""
    return {
        "memory": [("memory.max", str(limits.memory_mib * MIB), True), ("memory.swap.max", "0", False)],
        "pids": [("pids.max", str(limits.pids + AGENT_PIDS), True)],
        "cpu": [("cpu.max", f"{_quota_us(limits.cpus)} {cpu_period_us(limits.cpus)}", True)],
    }[controller]


def _quota_us(cpus: float) -> int:
    return max(CPU_LEAST_QUOTA_US, round(cpus * cpu_period_us(cpus)))


def _removed(group: Path) -> bool:
    try:
        group.rmdir()
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True


def _kill_all(group: Path) -> None:
    with suppress(FileNotFoundError):
        for pid in (group / "cgroup.procs").read_text(encoding="ascii").split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
