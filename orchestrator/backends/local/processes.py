"""Processes of this machine that outlive us: known again by pid, start and boot, and ended whole."""

import json
import os
import select
import signal
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from orchestrator.errors import SandboxError

RECORD = "local.json"
STATUS = "status.json"
END_WAIT_S = 10.0
STOP_WAIT_S = 2.0
_STAT_STATE, _STAT_PARENT, _STAT_START = 0, 1, 19
"""Fields of /proc/PID/stat after the program's name (proc(5): 3, 4, 22)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """One process: a pid alone may be another's by now. `start` is in clock ticks since the boot `boot`."""

    pid: int
    start: int
    boot: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What is kept beside a box: its first process on this machine, and when it was made (wall clock)."""

    process: Known
    created_at: float
    ended_by_us: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What bubblewrap wrote: the pid of the box's PID 1 on this machine, how it ended (128 + n: by signal n)."""

    child: int | None = None
    exit_code: int | None = None


def write_record(folder: Path, record: Record) -> None:
    """Raises OSError."""
    temporary = folder / f".{RECORD}"
    temporary.write_text(json.dumps(asdict(record)), encoding="ascii")
    temporary.rename(folder / RECORD)


def read_record(folder: Path) -> Record | None:
    """None where there is none, or none that can be read."""
    try:
        raw = json.loads((folder / RECORD).read_bytes())
        return Record(**{**raw, "process": Known(**raw["process"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def read_status(folder: Path) -> Status:
    """Of a box that bubblewrap may not have begun: both None."""
    child = exit_code = None
    with suppress(OSError, ValueError):
        for line in (folder / STATUS).read_text(encoding="ascii").splitlines():
            found = json.loads(line)
            child, exit_code = found.get("child-pid", child), found.get("exit-code", exit_code)
    return Status(child=child, exit_code=exit_code)


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _stat(pid: int) -> list[str] | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return text.rpartition(") ")[2].split()


def known(pid: int) -> Known | None:
    """The process that has `pid` now; None when there is none, or it is dead and only not yet waited for."""
    fields = _stat(pid)
    if fields is None or fields[_STAT_STATE] in "ZX":
        return None
    return Known(pid=pid, start=int(fields[_STAT_START]), boot=boot_id())


def lives(process: Known) -> bool:
    return known(process.pid) == process


def parent_of(pid: int) -> int:
    """0 when there is no such process."""
    fields = _stat(pid)
    return int(fields[_STAT_PARENT]) if fields else 0


def watch(process: Known) -> int | None:
    """A descriptor that becomes readable when `process` ends; None when it has. The caller closes it."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return None
    if lives(process):
        return descriptor
    os.close(descriptor)
    return None


def end(monitor: Known, child: int | None) -> None:
    """Kill the box's namespace and the process that watches over it; returns when both are gone. Idempotent. Blocks.

    The monitor is stopped first, so that it makes no child behind our back. Raises SandboxError when they do not end.
    """
    with ExitStack() as stack:
        watched = watch(monitor)
        if watched is None:
            return
        stack.callback(os.close, watched)
        signal.pidfd_send_signal(watched, signal.SIGSTOP)
        _wait_stopped(monitor)
        inside = []
        for pid in {*children(monitor.pid), *([child] if child and parent_of(child) == monitor.pid else [])}:
            with suppress(ProcessLookupError):
                descriptor = os.pidfd_open(pid)
                stack.callback(os.close, descriptor)
                inside.append(descriptor)
        for descriptor in (*inside, watched):
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        _wait_ended([*inside, watched])


def children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]
    except OSError:
        return []


def _wait_stopped(process: Known) -> None:
    give_up = time.monotonic() + STOP_WAIT_S
    while time.monotonic() < give_up:
        fields = _stat(process.pid)
        if fields is None or fields[_STAT_STATE] in "TtZX":
            return
        time.sleep(0.001)


def _wait_ended(descriptors: Sequence[int]) -> None:
    waiting = select.poll()
    left = set(descriptors)
    for descriptor in left:
        waiting.register(descriptor, select.POLLIN)
    give_up = time.monotonic() + END_WAIT_S
    while left:
        wait_s = give_up - time.monotonic()
        if wait_s <= 0:
            raise SandboxError("processes of the box will not end: try again")
        for descriptor, _ in waiting.poll(wait_s * 1000):
            waiting.unregister(descriptor)
            left.discard(descriptor)
