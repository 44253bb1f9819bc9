"""A hostile tar becomes a folder, member by member: nothing outside it is written or followed, and its size is bounded while it is read.

Python's `extractall` is not used: its filters were passed by (CVE-2025-4517, CVE-2026-7774), and ours need to refuse more than they do.
"""

import errno
import os
import tarfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO

from orchestrator.errors import RepositoryError

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_CHUNK_BYTES = 1024 * 1024
_MAX_DEPTH = 200
_KINDS = {tarfile.FIFOTYPE: "a pipe", tarfile.CHRTYPE: "a device", tarfile.BLKTYPE: "a device"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Caps:
    """What an archive may hold."""

    bytes: int = 16 * 1024**3
    members: int = 2_000_000


def unpack(stream: BinaryIO, target: Path, caps: Caps) -> None:
    """Fill `target`, an empty folder, with what the stream's one root folder holds. Blocks.

    Files, folders, symlinks (their text as it is, never followed) and hard links among them; owners are ours, modes without set-id bits, folders
    open to us, times as told. Raises RepositoryError for anything else, for names that leave the folder, and beyond `caps`; OSError.
    """
    try:
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            _Unpacking(target, caps).run(archive)
    except (tarfile.TarError, EOFError, ValueError, UnicodeError) as error:
        raise RepositoryError("the image's archive is damaged, or the engine broke off: try again") from error


@contextmanager
def parent_of(root: Path, parts: Sequence[str]) -> Iterator[tuple[int, str]]:
    """A descriptor of the folder that holds the last of `parts`, and that name. No symlink below `root` is followed. Raises OSError."""
    descriptor = os.open(root, _FOLDER)
    try:
        for part in parts[:-1]:
            inner = os.open(part, _FOLDER, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
        yield descriptor, parts[-1]
    finally:
        os.close(descriptor)


class _Unpacking:
    def __init__(self, target: Path, caps: Caps) -> None:
        self._target = target
        self._caps = caps
        self._now = time.time()
        self._bytes = 0
        self._times: list[tuple[tuple[str, ...], float]] = []

    def run(self, archive: tarfile.TarFile) -> None:
        for number, member in enumerate(archive):
            archive.members = []  # type: ignore[attr-defined]  # else a stream's members pile up
            if number >= self._caps.members:
                raise RepositoryError(f"the folder in the image holds more than {self._caps.members} files")
            parts = _split(member.name)[1:]
            if parts or not member.isdir():
                self._place(archive, member, parts)
        for parts, when in reversed(self._times):  # filling a folder has changed its time
            with self._within(parts) as (parent, name):
                os.utime(name, (when, when), dir_fd=parent, follow_symlinks=False)

    def _place(self, archive: tarfile.TarFile, member: tarfile.TarInfo, parts: tuple[str, ...]) -> None:
        if not parts:
            raise RepositoryError("the path in the image is no folder")
        when = min(max(float(member.mtime), 0.0), self._now)
        with self._within(parts) as (parent, name):
            if member.isdir():
                os.mkdir(name, 0o700, dir_fd=parent)
                os.chmod(name, member.mode & 0o777 | 0o700, dir_fd=parent)
                self._times.append((parts, when))
            elif member.issym():
                os.symlink(member.linkname, name, dir_fd=parent)
            elif member.islnk():
                self._link(member, parent, name)
            elif member.isreg() and not member.issparse():
                self._file(archive.extractfile(member), member, parent, name)
            else:
                what = _KINDS.get(member.type, "of a kind that cannot be shared")
                raise RepositoryError(f"{'/'.join(parts)} in the image is {what}: remove it from the image")
            os.utime(name, (when, when), dir_fd=parent, follow_symlinks=False)

    def _file(self, source: IO[bytes] | None, member: tarfile.TarInfo, parent: int, name: str) -> None:
        assert source is not None  # a regular member has content
        self._bytes += member.size
        if self._bytes > self._caps.bytes:
            raise RepositoryError(f"the folder in the image holds more than {self._caps.bytes // 2**20} MiB")
        with os.fdopen(os.open(name, _NEW, 0o600, dir_fd=parent), "wb", buffering=0) as file:
            while chunk := source.read(_CHUNK_BYTES):
                file.write(chunk)
            os.fchmod(file.fileno(), member.mode & 0o777)

    def _link(self, member: tarfile.TarInfo, parent: int, name: str) -> None:
        with self._within(_split(member.linkname)[1:]) as (folder, first):
            os.link(first, name, src_dir_fd=folder, dst_dir_fd=parent, follow_symlinks=False)

    @contextmanager
    def _within(self, parts: tuple[str, ...]) -> Iterator[tuple[int, str]]:
        """A descriptor of the folder that holds the last of `parts`, reached through real folders alone; and that name."""
        if not parts:
            raise RepositoryError("a link in the image's archive names its root")
        try:
            with parent_of(self._target, parts) as found:
                yield found
        except FileExistsError as error:
            raise RepositoryError(f"{'/'.join(parts)} comes twice in the image's archive") from error
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENOENT, errno.ENAMETOOLONG):
                raise RepositoryError(f"{'/'.join(parts)} in the image's archive lies in no folder of it") from error
            raise


def _split(name: str) -> tuple[str, ...]:
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if not parts or name.startswith("/") or ".." in parts or "\0" in name or len(parts) > _MAX_DEPTH:
        raise RepositoryError("the image's archive holds a name that leads out of it")
    return parts
