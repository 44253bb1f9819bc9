"""Boxes whose space is looked at: what counts, what a look costs, and what follows from it."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.errors import EngineUnavailable
from orchestrator.models import Limits, SandboxId
from orchestrator.repos.plain import PlainWorkspaces
from orchestrator.repos.space import MAX_DEPTH, Space, held, limit_of
from orchestrator.repos.watch import watch_space
from tests.needs import needs

pytestmark = pytest.mark.anyio

NO_LIMIT = Space(bytes=2**60, inodes=2**60)
MIB = 1024 * 1024


def test_blocks_and_names_count_links_once_and_sparse_files_for_what_they_hold(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * MIB)
    os.link(tmp_path / "a", tmp_path / "b")
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(2**40)
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "loop").symlink_to(tmp_path)
    found = held(tmp_path, NO_LIMIT)
    assert found.inodes == 5
    assert MIB <= found.bytes < 1.2 * MIB
    assert held(tmp_path / "gone", NO_LIMIT) == Space(bytes=0, inodes=0)


def test_a_look_ends_at_the_limit(tmp_path: Path) -> None:
    for number in range(500):
        (tmp_path / str(number)).touch()
    assert held(tmp_path, Space(bytes=2**60, inodes=10)).inodes == 11
    limit = limit_of(Limits(disk_mib=1, inodes=500))
    assert held(tmp_path, limit).within(limit)
    (tmp_path / "one more").touch()
    assert not held(tmp_path, limit).within(limit)


def test_a_tree_too_deep_to_name_is_walked_and_one_too_deep_to_walk_is_over(tmp_path: Path) -> None:
    """Names of 200 bytes: the path is beyond what the kernel takes after twenty of them."""
    folder = os.open(tmp_path, os.O_RDONLY)
    for level in range(MAX_DEPTH + 2):
        if level == MAX_DEPTH - 1:
            with open(os.open("big", os.O_WRONLY | os.O_CREAT, dir_fd=folder), "wb") as file:
                file.write(b"x" * MIB)
        if level == MAX_DEPTH:
            found = held(tmp_path, NO_LIMIT)
            assert found.bytes >= MIB
            assert found.within(NO_LIMIT)
        os.mkdir("d" * 200, dir_fd=folder)
        inner = os.open("d" * 200, os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = inner
    os.close(folder)
    assert not held(tmp_path, NO_LIMIT).within(NO_LIMIT)
    subprocess.run(["rm", "-rf", str(tmp_path / ("d" * 200))], check=True)


@needs("root")
def test_a_closed_folder_hides_nothing_and_is_closed_again(tmp_path: Path) -> None:
    """As its owner, who is not root."""
    for parent in (tmp_path, *tmp_path.parents[:2]):
        parent.chmod(parent.stat().st_mode & 0o7777 | 0o055)
    shut = tmp_path / "own" / "shut"
    (shut / "deeper").mkdir(parents=True)
    (shut / "deeper" / "big").write_bytes(b"x" * MIB)
    (shut / "deeper").chmod(0)
    shut.chmod(0)
    for path in (tmp_path / "own", shut, shut / "deeper", shut / "deeper" / "big"):
        os.chown(path, 12345, 12345)
    look = (
        "from pathlib import Path; from orchestrator.repos.space import Space, held;"
        f"print(held(Path({str(tmp_path / 'own')!r}), Space(bytes=2**60, inodes=2**60)).bytes)"
    )
    drop = ["setpriv", "--reuid", "12345", "--regid", "12345", "--clear-groups", sys.executable, "-c", look]
    done = subprocess.run(drop, capture_output=True, text=True, check=True)
    assert int(done.stdout) >= MIB
    assert shut.stat().st_mode & 0o7777 == 0
    assert (shut / "deeper").stat().st_mode & 0o7777 == 0


async def test_a_box_over_its_limit_is_marked_and_ended_once_and_its_neighbour_never(tmp_path: Path) -> None:
    workspaces = PlainWorkspaces(tmp_path, "dep")
    for name in ("full", "well"):
        await workspaces.prepare(SandboxId(name), None, Limits(disk_mib=1, inodes=100))
    ended: list[SandboxId] = []
    refused = asyncio.Event()

    async def end(sandbox_id: SandboxId) -> None:
        assert await workspaces.was_overfull(sandbox_id), "whoever sees the end must find the mark"
        if not refused.is_set():
            refused.set()
            raise EngineUnavailable("busy")
        ended.append(sandbox_id)

    watching = asyncio.create_task(watch_space(workspaces, end, period_s=0.01))
    try:
        (tmp_path / "dep/boxes/well/disk/home/half").write_bytes(b"x" * (MIB // 2))
        (tmp_path / "dep/boxes/full/disk/tmp/big").write_bytes(b"x" * 2 * MIB)
        async with asyncio.timeout(20):
            while not ended:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        (tmp_path / "dep/boxes/full/disk/tmp/big").unlink()
        await asyncio.sleep(0.1)
        assert ended == ["full"]
        after = PlainWorkspaces(tmp_path, "dep")
        assert await after.was_overfull(SandboxId("full")), "also for the next process"
        assert not await after.was_overfull(SandboxId("well"))
        await workspaces.remove(SandboxId("full"))
        await workspaces.prepare(SandboxId("full"), None, Limits(disk_mib=1, inodes=100))
        assert not await workspaces.was_overfull(SandboxId("full"))
    finally:
        watching.cancel()
        await asyncio.wait({watching})


async def test_a_look_that_fails_ends_no_watch(tmp_path: Path) -> None:
    """A disk that has no room for one more name, say: the box that took it must be ended all the same."""

    class Failing:
        looks = 0

        async def overfull(self) -> list[SandboxId]:
            self.looks += 1
            if self.looks == 1:
                raise OSError(28, "No space left on device")
            return [SandboxId("full")]

    ended = asyncio.Event()

    async def end(sandbox_id: SandboxId) -> None:
        ended.set()

    watching = asyncio.create_task(watch_space(Failing(), end, period_s=0.01))
    try:
        async with asyncio.timeout(20):
            await ended.wait()
    finally:
        watching.cancel()
        await asyncio.wait({watching})


async def test_one_box_that_cannot_be_looked_at_hides_no_other(tmp_path: Path) -> None:
    """The first one's mark cannot be written: it is over its limit all the same, by the word of this process."""
    workspaces = PlainWorkspaces(tmp_path, "dep")
    for name in ("a", "b"):
        await workspaces.prepare(SandboxId(name), None, Limits(disk_mib=1, inodes=100))
        (tmp_path / f"dep/boxes/{name}/disk/tmp/big").write_bytes(b"x" * 2 * MIB)
    (tmp_path / "dep/boxes/a/overfull").symlink_to("/proc/none/such")
    assert await workspaces.overfull() == ["a", "b"]
    assert await workspaces.was_overfull(SandboxId("a"))
    assert await workspaces.was_overfull(SandboxId("b"))
    await workspaces.remove(SandboxId("a"))
    await workspaces.prepare(SandboxId("a"), None, Limits(disk_mib=1, inodes=100))
    assert not await workspaces.was_overfull(SandboxId("a"))
