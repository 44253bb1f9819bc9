"""A disk that runs low or full: who waits, who is given up, and that none of it ever becomes a reward."""

import asyncio
import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.errors import GraderError, HostFull, Misconfigured, RolloutClosed, StoreError
from orchestrator.hosts import disk
from orchestrator.hosts.host import SandboxHost
from orchestrator.hosts.parts import JOURNAL_MIB, promised_disk_mib
from orchestrator.interfaces import Bench
from orchestrator.models import Limits, RolloutState, Task
from tests.hosts.world import TESTED, World, a_call, a_grade, a_task, a_world, key, until_true
from tests.needs import needs

pytestmark = pytest.mark.anyio

RESERVE_MIB = 1000
LOW_MIB, FULL_MIB = RESERVE_MIB - 1, RESERVE_MIB // disk.EXHAUSTED_SHARE - 1


def test_a_box_is_promised_its_cap_its_inode_tables_and_its_journal() -> None:
    task = a_task(limits=Limits(disk_mib=100, inodes=8192))
    assert promised_disk_mib(task) == 100 + 2 + JOURNAL_MIB


def test_promises_follow_what_is_free_beyond_the_reserve() -> None:
    assert disk.promises_mib(3000, 1000, 4.0) == 8000
    assert disk.promises_mib(3000, 1000, 1.0) == 2000
    assert disk.promises_mib(900, 1000, 4.0) == 0


def test_a_start_on_too_little_disk_is_refused_with_the_ways_out() -> None:
    disk.check_room(1000, 1000, boxes_left=False)
    disk.check_room(10, 1000, boxes_left=True)
    with pytest.raises(
        Misconfigured, match=r"999 MiB are free .* TILTYARD_STATE_DIR, or lower TILTYARD_DISK_RESERVE_MIB"
    ):
        disk.check_room(999, 1000, boxes_left=False)


async def test_below_the_reserve_an_open_waits_with_its_place_and_goes_on_when_space_returns(world: World) -> None:
    task = world.task()
    world.free_disk_mib = LOW_MIB
    async with world.host(disk_reserve_mib=RESERVE_MIB, open_wait_s=1.0) as host:
        with pytest.raises(HostFull, match=r"disk has 999 MiB free, and 1000 MiB are kept free.*place .* is kept"):
            await host.call(a_call("echo 1"), task, timeout_s=20)
        assert (await host.load()).queued == 1
        waiting = asyncio.create_task(retried(host, task))
        world.free_disk_mib = 5000
        assert await waiting == "1\n"
        world.free_disk_mib = LOW_MIB
        assert (await host.call(a_call("echo 2", "c2"), task, timeout_s=10)).text == "2\n"
        assert (await host.grade(a_grade(), task, timeout_s=10)).score == 1.0


async def test_what_lived_while_the_disk_was_full_is_lost_and_never_scored(world: World) -> None:
    task = world.task()
    world.free_disk_mib = 5000
    async with world.host(disk_reserve_mib=RESERVE_MIB) as host:
        assert (await host.call(a_call("echo 1"), task, timeout_s=10)).text == "1\n"
        world.free_disk_mib = FULL_MIB

        async def lost() -> bool:
            binding = await world.store.binding(key())
            return binding is not None and binding.state is RolloutState.LOST

        await until_true(lost)
        with pytest.raises(RolloutClosed, match="disk ran full"):
            await host.grade(a_grade(), task, timeout_s=10)
        assert await world.store.reward(key()) is None
        world.free_disk_mib = 5000
        assert (await host.call(a_call("echo 1", rollout=key("next")), task, timeout_s=10)).text == "1\n"


async def test_a_grade_that_saw_the_disk_full_is_made_again(world: World) -> None:
    task = world.task(a_task(tests=TESTED))
    world.free_disk_mib = 5000
    grading, go_on = asyncio.Event(), asyncio.Event()

    async def work(bench: Bench) -> None:
        grading.set()
        await go_on.wait()

    world.grader.work = work
    async with world.host(disk_reserve_mib=RESERVE_MIB) as host:
        await host.call(a_call("echo 1"), task, timeout_s=10)
        first = asyncio.create_task(host.grade(a_grade(), task, timeout_s=20))
        await grading.wait()
        world.free_disk_mib = FULL_MIB
        falls = host._parts.disk_falls
        await until_true(lambda: _is(falls.count > 0))
        world.free_disk_mib = 5000
        go_on.set()
        with pytest.raises(GraderError, match="disk ran full"):
            await first
        assert await world.store.reward(key()) is None
        assert (await host.grade(a_grade(), task, timeout_s=10)).score == 1.0


async def retried(host: SandboxHost, task: Task) -> str:
    """As a trainer does it."""
    while True:
        try:
            return (await host.call(a_call("echo 1"), task, timeout_s=20)).text
        except HostFull:
            continue


async def calls_until_refused(host: SandboxHost, task: Task) -> None:
    """The store's log has some pages left at first."""
    for number in range(1000):
        await host.call(a_call("seq 1 5000", f"many-{number}"), task, timeout_s=10)


async def _is(true: bool) -> bool:
    return true


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    point = tmp_path / "disk"
    point.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(point)], check=True)
    yield point
    subprocess.run(["umount", str(point)], check=True)


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as filler:
        try:
            while True:
                filler.write(b"x" * 4096)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise


@needs("root")
async def test_a_full_disk_under_blobs_and_store_is_ours_and_recovers(small_disk: Path) -> None:
    async with a_world(small_disk) as world:
        task = world.task()
        async with world.host() as host:
            await host.call(a_call("seq 1 400000 > made.txt; echo 1"), task, timeout_s=20)
            fill(small_disk / "filler")
            for _ in range(2):
                with pytest.raises(StoreError, match=r"disk of the store|store is full"):
                    await host.grade(a_grade(), task, timeout_s=10)
            assert await world.store.reward(key()) is None
            os.unlink(small_disk / "filler")
            assert (await host.grade(a_grade(), task, timeout_s=10)).score == 1.0
            evidence = await world.store.evidence(key())
            assert evidence is not None
            assert [change.path for change in evidence.changes] == ["made.txt"]


@needs("root")
async def test_a_call_whose_record_found_no_room_is_answered_once_there_is(small_disk: Path) -> None:
    """It ran; its effect is not made twice."""
    async with a_world(small_disk) as world:
        task = world.task()
        async with world.host() as host:
            await host.call(a_call("echo 0"), task, timeout_s=10)
            fill(small_disk / "filler")
            again = a_call("echo 1 >> log; cat log; seq 1 20000", "c2")
            with pytest.raises(StoreError, match="full"):
                await calls_until_refused(host, task)
            with pytest.raises(StoreError, match="full"):
                await host.call(again, task, timeout_s=10)
            os.unlink(small_disk / "filler")
            reply = await host.call(again, task, timeout_s=10)
            assert reply.text.startswith("1\n1\n2\n")
