"""Machine-wide claims of uid blocks: neighbours share no uid, hence no per-uid limit and no file.

A claim is a symlink `<registry>/<number>` -> the folder of the box that holds it. It outlives our processes, is the same for every deployment of the
machine, and is void once its folder is gone, so that a swept or hand-deleted box never keeps its block.
"""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import StartFailed

UID_BASE = 1_000_000
"""First uid: above users, system users and the first fourteen ranges of /etc/subuid."""
BLOCK_UIDS = 64
"""Principals per box: the agent's commands, and one per forked test file of a grading box."""
BLOCKS = 16_384
DEFAULT_REGISTRY = Path("/run/tiltyard/uids")
"""Of the boot, as boxes and their mounts are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UidBlock:
    base: int
    count: int = BLOCK_UIDS


def block(number: int) -> UidBlock:
    return UidBlock(base=UID_BASE + number * BLOCK_UIDS)


class UidRegistry:
    """Claims and frees blocks. Its methods block for as long as another process holds the lock: a few milliseconds."""

    def __init__(self, folder: Path = DEFAULT_REGISTRY) -> None:
        self._folder = folder

    def claim(self, box: Path) -> UidBlock:
        """The block of `box`, an existing folder: the one it has, else the lowest that is free. Raises StartFailed when none is."""
        with self._locked():
            held = self._claims()
            for number, holder in held.items():
                if holder == box:
                    return block(number)
            for number in range(BLOCKS):
                if number not in held or not held[number].exists():
                    self._write(number, box)
                    return block(number)
        raise StartFailed(f"all {BLOCKS} uid blocks of this machine are claimed: end boxes, or sweep stale ones")

    def free(self, box: Path) -> None:
        """Give up what `box` holds. Idempotent."""
        with self._locked():
            for number, holder in self._claims().items():
                if holder == box:
                    (self._folder / str(number)).unlink()

    def free_void(self, boxes: Path) -> None:
        """Drop the claims of boxes in `boxes` that are gone: left by a process that was killed between a folder and its claim."""
        with self._locked():
            for number, holder in self._claims().items():
                if holder.parent == boxes and not holder.exists():
                    (self._folder / str(number)).unlink()

    def claimed(self) -> dict[Path, UidBlock]:
        """Box folder -> its block, void claims included."""
        with self._locked():
            return {holder: block(number) for number, holder in self._claims().items()}

    def _claims(self) -> dict[int, Path]:
        names = (name for name in os.listdir(self._folder) if name.isdigit())
        return {int(name): Path(os.readlink(self._folder / name)) for name in names}

    def _write(self, number: int, box: Path) -> None:
        target = self._folder / str(number)
        try:
            os.symlink(box, target)
        except FileExistsError:
            target.unlink()
            os.symlink(box, target)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """flock on the registry folder itself: nothing to create, nothing to leave behind."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o755)
            fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise StartFailed(f"the uid registry cannot be used: {errno.errorcode.get(error.errno or 0)}") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)
