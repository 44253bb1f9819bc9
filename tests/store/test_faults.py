"""The record under faults: killed writers, full disks, locks, damage, two processes. All real."""

import asyncio
import errno
import os
import random
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator import failpoints
from orchestrator.errors import StoreError
from orchestrator.models import Binding
from orchestrator.store.sql import SqlStore
from tests.needs import needs
from tests.store.values import HOST, OTHER, TASK, call, evidence, reward, rollout

pytestmark = pytest.mark.anyio
ROOT = Path(__file__).parents[2]


def python(code: str) -> subprocess.Popen[str]:
    """A process that runs `code` with the tests importable."""
    return subprocess.Popen(
        [sys.executable, "-c", f"import asyncio\nfrom tests.store.values import *\n{code}"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def killed_after(url: str, acknowledged: int, lanes: int = 8) -> dict[int, int]:
    """Lane -> last acknowledged sequence of a writing process that is killed after so many acknowledgements."""
    last: dict[int, int] = {}
    with python(f"asyncio.run(write_calls({url!r}, {lanes}))") as process:
        assert process.stdout is not None
        for number, line in enumerate(process.stdout):
            lane, sequence = map(int, line.split())
            last[lane] = sequence
            if number == acknowledged:
                process.kill()
        assert process.wait() == -9
    return last


@pytest.mark.parametrize("seed", range(3))
async def test_what_was_acknowledged_is_there_after_kill_9(url: str, seed: int) -> None:
    acknowledged = random.Random(seed).randint(20, 600)
    last = await asyncio.to_thread(killed_after, url, acknowledged)
    async with SqlStore.open(url) as store:
        for lane, sequence in last.items():
            there = [one.sequence for one in await store.calls(rollout(lane))]
            assert there == list(range(1, len(there) + 1))
            assert len(there) >= sequence, f"seed {seed}: lane {lane} lost an acknowledged call"
        bound = await store.binding(rollout(0))
        assert bound is not None
        await store.record(bound, call(bound.rollout, 100_000))


async def test_a_torn_log_keeps_a_prefix(url: str, tmp_path: Path) -> None:
    await asyncio.to_thread(killed_after, url, 60, 1)
    log = (tmp_path / "record.db-wal").read_bytes()
    assert len(log) > 10_000
    whole = await calls_of_copy(tmp_path, tmp_path / "whole", len(log))
    counts = []
    for part in range(1, 13):
        cut = len(log) * part // 12 - part  # inside a frame
        counts.append(await calls_of_copy(tmp_path, tmp_path / f"cut{part}", cut))
    assert counts == sorted(counts)
    assert counts[0] < whole
    assert counts[-1] in (whole, whole - 1)


def copy_cut(source: Path, folder: Path, log_bytes: int) -> None:
    folder.mkdir()
    shutil.copy(source / "record.db", folder)
    (folder / "record.db-wal").write_bytes((source / "record.db-wal").read_bytes()[:log_bytes])


async def calls_of_copy(source: Path, folder: Path, log_bytes: int) -> int:
    """How many calls a copy whose log was cut still has; they are a prefix."""
    copy_cut(source, folder, log_bytes)
    async with SqlStore.open(f"sqlite:///{folder}/record.db") as store:
        there = [one.sequence for one in await store.calls(rollout(0))]
        assert there == list(range(1, len(there) + 1))
    return len(there)


async def test_killed_before_the_commit_nothing_is_recorded(url: str) -> None:
    code = (
        "from orchestrator import failpoints\n"
        "failpoints.arm('before_commit:kill:3')\n"
        f"asyncio.run(write_calls({url!r}, 1))"
    )
    with python(code) as process:
        told, _ = process.communicate()
    assert process.returncode == -9
    assert told.split() == ["0", "1", "0", "2"]
    async with SqlStore.open(url) as store:
        assert [one.sequence for one in await store.calls(rollout())] == [1, 2]


async def test_an_error_before_the_commit_reaches_each_waiter_and_records_nothing(store: SqlStore) -> None:
    bound = await store.bind(rollout(), TASK, HOST)
    failpoints.arm("before_commit:raise")
    try:
        done = await asyncio.gather(
            *(store.record(bound, call(rollout(), n)) for n in range(1, 4)), return_exceptions=True
        )
    finally:
        failpoints.arm("")
    assert [type(one) for one in done] == [failpoints.FailpointFired] * 3
    assert list(await store.calls(rollout())) == []
    await store.record(bound, call(rollout(), 1))
    assert len(await store.calls(rollout())) == 1


def bound_by_two_processes(url: str, count: int) -> list[list[str]]:
    processes = [python(f"asyncio.run(bind_many({url!r}, {host!r}, {count}))") for host in (HOST, OTHER)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    return [process.communicate()[0].splitlines() for process in processes]


async def test_two_processes_agree_on_who_owns_what(url: str) -> None:
    one, other = await asyncio.to_thread(bound_by_two_processes, url, 300)
    assert len(one) == 300
    assert one == other
    assert {line.split()[2] for line in one} == {"1"}


async def test_simultaneous_first_opens_migrate_once(url: str) -> None:
    async def opened() -> None:
        async with SqlStore.open(url) as store:
            await store.check()

    await asyncio.gather(*(opened() for _ in range(6)))


async def test_a_lock_held_elsewhere_is_told_and_nothing_acknowledged(url: str, tmp_path: Path) -> None:
    async with SqlStore.open(url, busy_timeout_s=0.2) as store:
        bound = await store.bind(rollout(), TASK, HOST)
        holder = sqlite3.connect(tmp_path / "record.db", isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        for attempt in (
            store.record(bound, call(rollout(), 1)),
            store.put_reward(bound, reward(rollout())),
            store.check(),
        ):
            with pytest.raises(StoreError, match="held by another process"):
                await attempt
        assert await store.binding(rollout()) == bound  # readers go on
        holder.execute("ROLLBACK")
        holder.close()
        assert list(await store.calls(rollout())) == []
        await store.record(bound, call(rollout(), 1))
        await store.check()


async def recorded_until_full(store: SqlStore, bound: Binding) -> int:
    """The last sequence that was acknowledged."""
    for sequence in range(1, 1000):
        try:
            await store.record(bound, call(bound.rollout, sequence, text="x" * 4000))
        except StoreError as error:
            if "disk of the store is full" not in error.message:
                raise
            return sequence - 1
    raise AssertionError("the disk never filled")


def fill(path: Path) -> None:
    """Take every page that is left."""
    with path.open("wb", buffering=0) as filler:
        try:
            while True:
                filler.write(b"x" * 4096)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise


async def checked_often(store: SqlStore) -> None:
    for _ in range(100):  # pages that the log has already may take a few
        await store.check()


@needs("root")
async def test_a_full_disk_is_told_nothing_is_lost_and_it_recovers(small_disk: Path) -> None:
    filler = small_disk / "filler"
    async with SqlStore.open(f"sqlite:///{small_disk}/record.db") as store:
        bound = await store.bind(rollout(), TASK, HOST)
        free = os.statvfs(small_disk)
        filler.write_bytes(b"x" * (free.f_bavail * free.f_frsize - 128 * 1024))
        acknowledged = await recorded_until_full(store, bound)
        with pytest.raises(StoreError, match="full"):
            await store.put_evidence(bound, evidence(rollout(), final_answer="x" * 200_000))
        assert len(await store.calls(rollout())) == acknowledged > 0
        filler.unlink()
        await store.check()
        await store.record(bound, call(rollout(), acknowledged + 1))
        assert len(await store.calls(rollout())) == acknowledged + 1
        assert await store.evidence(rollout()) is None


@needs("root")
async def test_a_disk_without_a_page_left_is_not_ready(small_disk: Path) -> None:
    async with SqlStore.open(f"sqlite:///{small_disk}/record.db") as store:
        await store.check()
        fill(small_disk / "filler")
        with pytest.raises(StoreError, match="full"):
            await checked_often(store)
        (small_disk / "filler").unlink()
        await store.check()


async def test_a_file_that_is_no_database_is_told(url: str, tmp_path: Path) -> None:
    (tmp_path / "record.db").write_bytes(b"not a database at all, " * 1000)
    with pytest.raises(StoreError, match="not an SQLite database") as told:
        async with SqlStore.open(url):
            pass
    assert str(tmp_path) not in told.value.message


@pytest.mark.parametrize("damage", [b"\x00", b"\xff"])
async def test_damaged_pages_are_told(url: str, tmp_path: Path, damage: bytes) -> None:
    async with SqlStore.open(url) as store:
        bound = await store.bind(rollout(), TASK, HOST)
        for sequence in range(1, 100):
            await store.record(bound, call(rollout(), sequence, text="y" * 2000))
        assert len(await store.calls(rollout())) == 99
    path = tmp_path / "record.db"
    content = bytearray(path.read_bytes())
    content[len(content) // 2 :] = damage * (len(content) - len(content) // 2)
    path.write_bytes(content)
    async with SqlStore.open(url) as store:
        with pytest.raises(StoreError, match="damaged"):
            await store.calls(rollout())


async def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="folder cannot be used"):
        async with SqlStore.open(f"sqlite:///{tmp_path}/file/record.db"):
            pass
