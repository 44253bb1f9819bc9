"""Evidence of trees that a model made to be hard to carry."""

import asyncio
from dataclasses import replace

import pytest

from orchestrator.hosts.evidence import BLOBS_AT_ONCE, keep_all, within_budget
from orchestrator.operations import Change

pytestmark = pytest.mark.anyio


def a_file(path: str, size: int, sha256: str | None = "0" * 64) -> Change:
    return Change(path=path, kind="added", type="file", mode=0o644, size_bytes=size, sha256=sha256)


def test_a_file_that_the_delta_could_not_hash_is_named_and_not_carried() -> None:
    """Large files use up what an agent hashes; what then comes without its hash could not be checked, and is no lie of the agent's."""
    unhashed = a_file("z", 10, None)
    assert within_budget([a_file("a", 5), unhashed], 100) == ([a_file("a", 5)], ["z"])
    assert within_budget([replace(unhashed, sha256="1" * 64)], 100)[1] == []


class CountingBlobs:
    """Puts end when nobody else begins one: how many are under way at most?"""

    def __init__(self) -> None:
        self.now = self.most = 0

    async def put(self, data: bytes) -> str:
        self.now += 1
        self.most = max(self.most, self.now)
        for _ in range(3):
            await asyncio.sleep(0)
        self.now -= 1
        return data.decode()

    async def get(self, digest: str) -> bytes:
        return digest.encode()


async def test_contents_are_stored_side_by_side_and_not_all_at_once() -> None:
    blobs = CountingBlobs()
    files = {f"f{number}": str(number).encode() for number in range(5 * BLOBS_AT_ONCE)}
    assert await keep_all(blobs, files) == {path: data.decode() for path, data in files.items()}
    assert blobs.most == BLOBS_AT_ONCE
