"""What a box holds on the disk, by looking: for the form without root, where no kernel limit does it.

Looking has gaps, told in docs/architecture.md: what is written and removed between two looks, and files that were removed while a command
holds them open.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from orchestrator.models import Limits

_MIB = 1024 * 1024
_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


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
    used_bytes = inodes = 0
    linked: set[int] = set()
    pending = [str(folder)]
    while pending:
        for path, info in _listed(pending.pop()):
            inodes += 1
            if stat.S_ISDIR(info.st_mode):
                pending.append(path)
            elif info.st_nlink > 1:
                if info.st_ino in linked:
                    continue
                linked.add(info.st_ino)
            used_bytes += info.st_blocks * 512
            if not (used := Space(bytes=used_bytes, inodes=inodes)).within(limit):
                return used
    return Space(bytes=used_bytes, inodes=inodes)


def _listed(folder: str) -> Iterator[tuple[str, os.stat_result]]:
    with suppress(OSError), _Opened(folder) as descriptor, os.scandir(descriptor) as entries:
        device = os.fstat(descriptor).st_dev
        for entry in entries:
            with suppress(OSError):
                info = entry.stat(follow_symlinks=False)
                if info.st_dev == device:
                    yield os.path.join(folder, entry.name), info


class _Opened:
    """A descriptor of a folder. One that is closed to its owner, who we are, gets its mode back."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._closed_mode: int | None = None
        self._descriptor = -1

    def __enter__(self) -> int:
        try:
            self._descriptor = os.open(self._path, _OPEN)
        except PermissionError:
            self._descriptor = self._open_up()
        return self._descriptor

    def _open_up(self) -> int:
        handle = os.open(self._path, os.O_PATH | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            mode = stat.S_IMODE(os.fstat(handle).st_mode)
            os.chmod(f"/proc/self/fd/{handle}", mode | 0o500)
            self._closed_mode = mode
            return os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        finally:
            os.close(handle)

    def __exit__(self, *_: object) -> None:
        if self._closed_mode is not None:
            with suppress(OSError):
                os.fchmod(self._descriptor, self._closed_mode)
        os.close(self._descriptor)
