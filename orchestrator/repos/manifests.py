"""What a sealed tree holds, by content; and its form on disk."""

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from orchestrator.errors import RepositoryError
from orchestrator.operations import Manifest, ManifestFile, ManifestSymlink

_CHUNK_BYTES = 1024 * 1024
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def take_manifest(folder: Path | int) -> Manifest:
    """Every file and symlink below `folder` (a path or an open descriptor) but `.git`, by full hash, sorted by path. Blocks.

    Raises RepositoryError for what boxes cannot be compared by: names that are not UTF-8, sockets, FIFOs, devices; OSError.
    """
    root = os.open(
        "." if isinstance(folder, int) else folder, _FOLDER, dir_fd=folder if isinstance(folder, int) else None
    )
    try:
        return dict(sorted(_walk(root, "")))
    finally:
        os.close(root)


def _walk(folder: int, prefix: str) -> Iterator[tuple[str, ManifestFile | ManifestSymlink]]:
    with os.scandir(folder) as entries:
        found = [(entry.name, entry.stat(follow_symlinks=False).st_mode) for entry in entries]
    for name, mode in found:
        if name == ".git" and not prefix:
            continue
        path = _checked(prefix + name)
        if stat.S_ISDIR(mode):
            child = os.open(name, _FOLDER, dir_fd=folder)
            try:
                yield from _walk(child, f"{path}/")
            finally:
                os.close(child)
        elif stat.S_ISREG(mode):
            yield path, _file(folder, name)
        elif stat.S_ISLNK(mode):
            yield path, ManifestSymlink(target=_checked(os.readlink(name, dir_fd=folder)))
        else:
            raise RepositoryError(
                f"{path} is neither a file, a folder nor a symlink: let the set-up commands remove it"
            )


def _checked(name: str) -> str:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        shown = os.fsencode(name).decode("utf-8", "backslashreplace")
        raise RepositoryError(f"the name '{shown}' is not UTF-8: such repositories are not supported") from None
    return name


def _file(folder: int, name: str) -> ManifestFile:
    digest = hashlib.sha256()
    with open(os.open(name, _FILE, dir_fd=folder), "rb", buffering=0) as file:
        info = os.fstat(file.fileno())
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return ManifestFile(mode=stat.S_IMODE(info.st_mode) & 0o777, size_bytes=info.st_size, sha256=digest.hexdigest())


Stored = dict[str, list[str | int]]


def to_stored(manifest: Manifest) -> Stored:
    """The form of the agent's protocol: path -> ["file", mode, size, sha256] or ["symlink", target]."""
    stored: Stored = {}
    for path, entry in manifest.items():
        if isinstance(entry, ManifestFile):
            stored[path] = ["file", entry.mode, entry.size_bytes, entry.sha256]
        else:
            stored[path] = ["symlink", entry.target]
    return stored


def from_stored(stored: Stored) -> Manifest:
    """Raises ValueError for any other form."""
    return {path: _entry(fields) for path, fields in stored.items()}


def _entry(fields: list[str | int]) -> ManifestFile | ManifestSymlink:
    match fields:
        case ["file", int(mode), int(size), str(digest)]:
            return ManifestFile(mode=mode, size_bytes=size, sha256=digest)
        case ["symlink", str(target)]:
            return ManifestSymlink(target=target)
    raise ValueError("a manifest entry of unknown form")
