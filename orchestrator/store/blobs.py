"""Content-addressed bytes beside the record: deltas and large outputs (D9)."""

import asyncio
import hashlib
import os
import re
import tempfile
from pathlib import Path

from orchestrator.errors import StoreError

_DIGEST = re.compile(r"[0-9a-f]{64}\Z")


class DiskBlobs:
    """`orchestrator.interfaces.Blobs` below one folder, which is made when first needed. Safe for many processes at once."""

    def __init__(self, root: Path) -> None:
        self._root = root

    async def put(self, data: bytes) -> str:
        """Durable when it returns; the sha256 in hex. Raises StoreError."""
        return await asyncio.to_thread(self._put, data)

    async def get(self, digest: str) -> bytes:
        """Raises StoreError when missing or when the content no longer fits its name."""
        return await asyncio.to_thread(self._get, digest)

    def _path(self, digest: str) -> Path:
        if not _DIGEST.match(digest):
            raise StoreError("a blob's name is 64 hex digits")
        return self._root / digest[:2] / digest

    def _put(self, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        path = self._path(digest)
        try:
            if not _holds(path, data):
                _write_synced(path, data)
            for folder in (path.parent, self._root, self._root.parent):  # also where a neighbour renamed it just now
                _sync_folder(folder)
        except OSError as error:
            raise StoreError(f"a blob could not be kept ({error.strerror}): check the disk of the store") from error
        return digest

    def _get(self, digest: str) -> bytes:
        try:
            data = self._path(digest).read_bytes()
        except OSError as error:
            raise StoreError(f"blob {digest[:12]} cannot be read ({error.strerror})") from error
        if hashlib.sha256(data).hexdigest() != digest:
            raise StoreError(f"blob {digest[:12]} is damaged: its content no longer fits its name")
        return data


def _holds(path: Path, data: bytes) -> bool:
    """Whether `path` holds `data` already; a damaged file is written anew. What was renamed into place was written out before."""
    try:
        return path.stat().st_size == len(data) and path.read_bytes() == data
    except FileNotFoundError:
        return False


def _write_synced(path: Path, data: bytes) -> None:
    """Temp file, fsync, rename: after a power cut the blob is whole or absent. The folders are the caller's to sync."""
    folder = path.parent
    folder.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=".new-", dir=folder)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
