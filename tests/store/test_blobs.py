"""Content-addressed bytes: whole or absent, verified when read."""

import asyncio
import hashlib
from pathlib import Path

import pytest

from orchestrator.errors import StoreError
from orchestrator.store.blobs import DiskBlobs
from tests.needs import needs

pytestmark = pytest.mark.anyio


def files(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


async def test_bytes_come_back_under_their_hash(tmp_path: Path) -> None:
    blobs = DiskBlobs(tmp_path / "blobs")
    for data in (b"", b"x", bytes(range(256)) * 5000):
        digest = await blobs.put(data)
        assert digest == hashlib.sha256(data).hexdigest()
        assert await blobs.get(digest) == data
    assert len(files(tmp_path)) == 3


async def test_the_same_bytes_at_once_are_one_file(tmp_path: Path) -> None:
    digests = await asyncio.gather(*(DiskBlobs(tmp_path).put(b"same" * 1000) for _ in range(20)))
    assert len(set(digests)) == 1
    assert [path.name for path in files(tmp_path)] == [digests[0]]


async def test_missing_bytes_are_told(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be read"):
        await DiskBlobs(tmp_path).get("0" * 64)


@pytest.mark.parametrize(
    "name", ["", "..", "../../etc/passwd", "0" * 63, "0" * 65, "A" * 64, "0" * 64 + "\n", "/" * 64]
)
async def test_a_name_that_is_no_hash_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(StoreError, match="64 hex digits"):
        await DiskBlobs(tmp_path).get(name)


async def test_damaged_bytes_are_told_and_mended_by_the_next_put(tmp_path: Path) -> None:
    blobs = DiskBlobs(tmp_path)
    digest = await blobs.put(b"content")
    (path,) = files(tmp_path)
    path.write_bytes(b"c0ntent")
    with pytest.raises(StoreError, match="damaged"):
        await blobs.get(digest)
    assert await blobs.put(b"content") == digest
    assert await blobs.get(digest) == b"content"


@needs("root")
async def test_a_full_disk_leaves_no_half_blob(small_disk: Path) -> None:
    blobs = DiskBlobs(small_disk / "blobs")
    small = await blobs.put(b"small")
    with pytest.raises(StoreError, match="No space"):
        await blobs.put(b"x" * 3_000_000)
    assert [path.name for path in files(small_disk)] == [small]
    assert await blobs.get(small) == b"small"
