"""What a box holds on the disk, by looking: for the form without root, where no kernel limit does it.

Looking has gaps, told in docs/architecture.md: what is written and removed between two looks, and files that were removed while a command
holds them open. Folders that are closed, or whose paths are too long to name, are no gaps: the walk is by descriptors, as the owner.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.models import Limits

_MIB = 1024 * 1024
_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
MAX_DEPTH = 256
"""Folders in folders: each costs the walk a descriptor. A box with deeper ones counts as over its limit, since nobody can tell what they hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """Blocks and names held below a folder, or a limit of them."""

    bytes: int
    inodes: int

    def within(self, limit: "Space") -> bool:
        return self.bytes <= limit.bytes and self.inodes <= limit.inodes


def limit_of(limits: Limits) -> Space:
    return Space(bytes=limits.disk_mib * _MIB, inodes=limits.inodes)


def held(folder: Path, limit: Space) -> Space:
    """What `folder` holds on its own file system; counting stops as soon as `limit` is passed, so that its cost is bounded. Blocks.

    A file with several names counts once. A folder that its owner closed is opened for the look and closed again. What vanishes meanwhile is
    passed over. Raises nothing for a folder that is gone.
    """
    tally = _Tally(limit=limit)
    with suppress(FileNotFoundError, _Enough):
        descriptor = os.open(folder, _OPEN)
        try:
            _count(descriptor, os.fstat(descriptor).st_dev, tally, MAX_DEPTH)
        finally:
            os.close(descriptor)
    return tally.space


class _Enough(Exception):
    """The limit is passed."""


@dataclass(slots=True, kw_only=True)
class _Tally:
    limit: Space
    bytes: int = 0
    inodes: int = 0
    linked: set[int] = field(default_factory=set)

    @property
    def space(self) -> Space:
        return Space(bytes=self.bytes, inodes=self.inodes)

    def add(self, info: os.stat_result) -> None:
        self.inodes += 1
        if info.st_ino not in self.linked:
            self.bytes += info.st_blocks * 512
        if info.st_nlink > 1 and not stat.S_ISDIR(info.st_mode):
            self.linked.add(info.st_ino)
        if not self.space.within(self.limit):
            raise _Enough

    def too_deep(self) -> None:
        self.inodes = max(self.inodes, self.limit.inodes + 1)
        raise _Enough


def _count(folder: int, device: int, tally: _Tally, levels_left: int) -> None:
    inner = []
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with suppress(OSError):
                info = entry.stat(follow_symlinks=False)
                if info.st_dev == device:
                    tally.add(info)
                    if stat.S_ISDIR(info.st_mode):
                        inner.append(entry.name)
    if inner and not levels_left:
        tally.too_deep()
    for name in inner:
        with suppress(OSError), _opened(folder, name) as child:
            _count(child, device, tally, levels_left - 1)


@contextmanager
def _opened(folder: int, name: str) -> Iterator[int]:
    """A descriptor of a folder in `folder`. One that is closed to its owner, who we are, gets its mode back."""
    handle = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)
    try:
        mode = stat.S_IMODE(os.fstat(handle).st_mode)
        closed = mode & 0o500 != 0o500
        if closed:
            os.chmod(f"/proc/self/fd/{handle}", mode | 0o500)
        descriptor = os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    finally:
        os.close(handle)
    try:
        yield descriptor
    finally:
        if closed:
            with suppress(OSError):
                os.fchmod(descriptor, mode)
        os.close(descriptor)
