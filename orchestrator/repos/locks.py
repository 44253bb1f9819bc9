"""Locks by name: among the tasks of this process, and among the processes of this machine."""

import fcntl
import os
import time
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import anyio
import anyio.to_thread

from orchestrator.errors import RepositoryError

_POLL_S = 0.05
"""flock has no wait that could be cancelled; waiters look twenty times a second, which costs microseconds."""


class NamedLocks:
    """One lock per name among this process's tasks, for as long as somebody holds or awaits it."""

    def __init__(self) -> None:
        self._locks: weakref.WeakValueDictionary[str, anyio.Lock] = weakref.WeakValueDictionary()

    def __getitem__(self, name: str) -> anyio.Lock:
        return self._locks.setdefault(name, anyio.Lock())

    @asynccontextmanager
    async def holding(self, name: str, *, deadline: float, what: str) -> AsyncIterator[None]:
        """Hold the lock of `name`. Raises RepositoryError when `deadline` (monotonic) passes first."""
        lock = self[name]
        with anyio.move_on_after(max(deadline - time.monotonic(), 0)) as waiting:
            await lock.acquire()
        if waiting.cancelled_caught:
            raise _under_way(what)
        try:
            yield
        finally:
            lock.release()


@contextmanager
def try_file_lock(path: Path) -> Iterator[bool]:
    """Hold an exclusive flock on `path` if nobody else does: whether it is held. Blocks only on the disk.

    The file stays; the kernel frees the lock of a killed process.
    """
    fd = _opened(path)
    try:
        yield _try(fd)
    finally:
        os.close(fd)


@asynccontextmanager
async def file_lock(path: Path, *, deadline: float, what: str) -> AsyncIterator[None]:
    """Hold an exclusive flock on `path`. Raises RepositoryError when `deadline` (monotonic) passes first; `what` says what was awaited."""
    fd = await anyio.to_thread.run_sync(_opened, path)
    try:
        while not _try(fd):
            if time.monotonic() >= deadline:
                raise _under_way(what)
            await anyio.sleep(_POLL_S)
        yield
    finally:
        os.close(fd)


def _under_way(what: str) -> RepositoryError:
    return RepositoryError(f"{what} is still under way in another call or process: try again later")


def _opened(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    return os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)


def _try(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
