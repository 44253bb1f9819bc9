"""What is mounted where, and how to take it away again."""

import errno
import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from orchestrator.repos import syscalls

BUSY_WAIT_S = 5.0
"""How long a mount or loop may stay busy: a container being torn down holds copies of the host's mounts for some milliseconds."""


def unescape(field: str) -> str:
    r"""A path field of mountinfo: space, tab, newline and backslash come as \040 and the like."""
    head, *rest = field.split("\\")
    return head + "".join(chr(int(part[:3], 8)) + part[3:] for part in rest)


def mount_points(mountinfo: str) -> tuple[Path, ...]:
    """Mount points of a /proc/self/mountinfo text, in the order they were mounted."""
    return tuple(Path(unescape(line.split(" ")[4])) for line in mountinfo.splitlines() if line)


def below(folder: Path, points: Sequence[Path]) -> tuple[Path, ...]:
    """The mount points inside `folder`, last mounted first."""
    return tuple(point for point in reversed(points) if folder in point.parents)


def mounted_below(folder: Path) -> tuple[Path, ...]:
    """What this mount namespace has inside `folder`, last mounted first."""
    text = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    return below(folder, mount_points(text))


def unmount(point: Path) -> None:
    """Idempotent; waits out a busy one. Raises OSError (EBUSY) after `BUSY_WAIT_S`."""
    give_up = time.monotonic() + BUSY_WAIT_S
    pause_s = 0.002
    while True:
        try:
            return syscalls.umount(point)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT):
                return None  # no mount there any more
            if error.errno != errno.EBUSY or time.monotonic() > give_up:
                raise
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, 0.25)


def overlay(target: Path, *, lowers: Sequence[Path], upper: Path, work: Path) -> None:
    """A writable overlay at `target`; directories can be renamed. Raises OSError (EINVAL also for options beyond a page)."""
    options = f"lowerdir={':'.join(map(str, lowers))},upperdir={upper},workdir={work},redirect_dir=on"
    syscalls.mount("tiltyard", target, "overlay", syscalls.MS_NOSUID | syscalls.MS_NODEV, options)


def detached_view(lowers: Sequence[Path]) -> int:
    """Descriptor of a read-only merged view that no path names. Raises OSError."""
    with ExitStack() as stack:
        names = []
        for lower in lowers:
            fd = os.open(lower, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, fd)
            names.append(f"/proc/self/fd/{fd}")  # fsconfig takes no value beyond 255 bytes
        options = {"source": "tiltyard", "lowerdir": ":".join(names), "redirect_dir": "follow"}
        return syscalls.detached_mount("overlay", options, syscalls.MOUNT_ATTR_RDONLY | syscalls.MOUNT_ATTR_NOSUID)
