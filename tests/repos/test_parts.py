"""The small parts: uid claims, locks, threads, eviction, layers, mount tables, disk sizes, manifests."""

import asyncio
import os
import threading
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen

import pytest
from anyio import CapacityLimiter
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import RepositoryError, StartFailed
from orchestrator.operations import Manifest, ManifestFile, ManifestSymlink
from orchestrator.repos import layers, loops, manifests, mounts, uids
from orchestrator.repos.fakes import FakeImages
from orchestrator.repos.locks import NamedLocks, file_lock, try_file_lock
from orchestrator.repos.lru import CacheEntry, choose_evictions
from orchestrator.repos.threads import finish
from orchestrator.repos.uids import UidRegistry
from orchestrator.repos.works import WorkPool
from tests.repos.conftest import Origin, line_of, soon


def boxes(folder: Path, *names: str) -> list[Path]:
    for name in names:
        (folder / name).mkdir(parents=True)
    return [folder / name for name in names]


def test_uid_blocks_are_distinct_kept_and_freed(tmp_path: Path) -> None:
    one, two, three = boxes(tmp_path / "boxes", "1", "2", "3")
    registry = UidRegistry(tmp_path / "uids")
    first, second = registry.claim(one), registry.claim(two)
    assert (first.base, second.base) == (uids.UID_BASE, uids.UID_BASE + uids.BLOCK_UIDS)
    assert UidRegistry(tmp_path / "uids").claim(one) == first  # another process, later
    registry.free(one)
    registry.free(one)
    assert registry.claim(three) == first


def test_a_claim_whose_box_is_gone_is_void(tmp_path: Path) -> None:
    one, two = boxes(tmp_path / "boxes", "1", "2")
    registry = UidRegistry(tmp_path / "uids")
    block = registry.claim(one)
    one.rmdir()
    assert registry.claim(two) == block
    assert registry.claimed() == {two: block}


def test_blocks_run_out_with_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uids, "BLOCKS", 2)  # a size, not behaviour
    registry = UidRegistry(tmp_path / "uids")
    one, two, three = boxes(tmp_path / "boxes", "1", "2", "3")
    registry.claim(one)
    registry.claim(two)
    with pytest.raises(StartFailed, match="all 2 uid blocks"):
        registry.claim(three)


def test_processes_never_share_a_block(tmp_path: Path, worker: Callable[..., Popen[str]]) -> None:
    (tmp_path / "boxes").mkdir()
    processes = [worker("claim", tmp_path / "uids", tmp_path / "boxes", prefix, 15) for prefix in "abc"]
    bases = [int(line_of(process)) for process in processes for _ in range(15)]
    assert len(set(bases)) == 45


@pytest.mark.anyio
async def test_a_file_lock_keeps_others_out_until_their_deadline(tmp_path: Path) -> None:
    path = tmp_path / "locks" / "one"
    async with file_lock(path, deadline=soon(), what="work"):
        with pytest.raises(RepositoryError, match="work is still under way"):
            async with file_lock(path, deadline=soon(0.1), what="work"):
                pytest.fail("two holders")
        with try_file_lock(path) as held:
            assert not held
    with try_file_lock(path) as held:
        assert held


@pytest.mark.anyio
async def test_a_named_lock_is_held_by_one_task_and_waited_for_until_the_deadline() -> None:
    locks = NamedLocks()

    async def hold(name: str, seconds: float) -> None:
        async with locks.holding(name, deadline=soon(seconds), what="work"):
            pass

    async with locks.holding("a", deadline=soon(), what="work"):
        with pytest.raises(RepositoryError, match="work is still under way"):
            await asyncio.create_task(hold("a", 0.05))
        await asyncio.create_task(hold("b", 60))
    await asyncio.create_task(hold("a", 60))


@pytest.mark.anyio
async def test_a_cancelled_caller_waits_for_its_thread(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    started, release, ended = asyncio.Event(), threading.Event(), threading.Event()

    def work() -> None:
        loop.call_soon_threadsafe(started.set)
        release.wait(20)
        ended.set()

    task = asyncio.ensure_future(finish(CapacityLimiter(1), work))
    await started.wait()
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()  # twice, for good measure
    await asyncio.sleep(0.01)
    assert not task.done()
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()


def entry(key: str, size: int, used_at: float) -> CacheEntry:
    return CacheEntry(kind="template", key=key, size_bytes=size, used_at=used_at)


def test_the_least_recently_used_go_first_and_no_more_than_needed() -> None:
    entries = [entry("new", 10, 300.0), entry("old", 10, 100.0), entry("mid", 10, 200.0)]
    assert choose_evictions(entries, max_bytes=15, in_use=(), now=10_000) == (entries[1], entries[2])
    assert choose_evictions(entries, max_bytes=30, in_use=(), now=10_000) == ()
    assert choose_evictions(entries, max_bytes=15, in_use={"old"}, now=10_000) == (entries[2], entries[0])


ENTRIES = st.lists(
    st.builds(entry, st.text("abcdef", min_size=1, max_size=3), st.integers(0, 100), st.floats(0, 1000)),
    unique_by=lambda made: made.key,
)


@given(ENTRIES, st.integers(0, 500), st.frozensets(st.text("abcdef", min_size=1, max_size=3)), st.floats(0, 2000))
def test_eviction_never_takes_what_is_used_and_stops_when_it_fits(
    entries: list[CacheEntry], max_bytes: int, in_use: frozenset[str], now: float
) -> None:
    gone = choose_evictions(entries, max_bytes=max_bytes, in_use=in_use, now=now, grace_s=100)
    assert not any(made.key in in_use or now - made.used_at < 100 for made in gone)
    total = sum(made.size_bytes for made in entries)
    if gone:
        assert total - sum(made.size_bytes for made in gone[:-1]) > max_bytes
    left = [made for made in entries if made not in gone]
    free = [made for made in left if made.key not in in_use and now - made.used_at >= 100]
    assert not free or sum(made.size_bytes for made in left) <= max_bytes


TABLE = r"""22 1 254:0 / / rw - ext4 /dev/vda rw
40 22 7:0 / /state/dep/boxes/a/disk rw - ext4 /dev/loop0 rw
41 22 0:39 / /state/dep/boxes/a/workspace rw - overlay tiltyard rw
42 22 0:40 / /state/dep/boxes/ab\040c/disk rw - ext4 /dev/loop1 rw
"""


def test_a_mount_table_is_read_last_first_and_by_whole_names() -> None:
    points = mounts.mount_points(TABLE)
    assert points[-1] == Path("/state/dep/boxes/ab c/disk")
    box = Path("/state/dep/boxes/a")
    assert mounts.below(box, points) == (box / "workspace", box / "disk")
    assert mounts.below(Path("/state/dep/boxes/none"), points) == ()


@given(st.text("ab \t\n\\/", max_size=30))
def test_escapes_of_mountinfo_are_undone(name: str) -> None:
    escaped = "".join(f"\\{ord(c):03o}" if c in " \t\n\\" else c for c in name)
    assert mounts.unescape(escaped) == name


@given(st.integers(4, 20_000), st.integers(64, 5_000_000))
def test_an_image_holds_its_tables_beside_what_is_usable(mib: int, inodes: int) -> None:
    size = loops.image_bytes(usable_bytes=mib * 1024 * 1024, inodes=inodes)
    assert size % 4096 == 0
    assert size >= mib * 1024 * 1024 + inodes * loops.INODE_BYTES


def test_a_manifest_survives_the_disk() -> None:
    manifest: Manifest = {
        "a": ManifestFile(mode=0o644, size_bytes=1, sha256="0" * 64),
        "b": ManifestSymlink(target="a"),
    }
    assert manifests.from_stored(manifests.to_stored(manifest)) == manifest
    with pytest.raises(ValueError, match="unknown form"):
        manifests.from_stored({"a": ["socket"]})


def sealed_like(folder: Path) -> Path:
    tree = folder / "tree"
    (tree / ".git").mkdir(parents=True)
    (tree / ".git" / "config").write_text("sealed\n")
    (tree / "kept" / "in").mkdir(parents=True)
    (tree / "kept" / "in" / "file").write_text("x\n")
    (tree / "gone").write_text("y\n")
    return tree


def test_without_root_the_layer_becomes_the_whole_tree(tmp_path: Path) -> None:
    sealed_like(tmp_path)
    upper = layers.make_ready(tmp_path, WorkPool(tmp_path / "works"), rooted=False)
    (upper / ".git" / "config").write_text("mine\n")
    (upper / "gone").unlink()
    (upper / "new").write_text("z\n")
    layers.give_back(tmp_path, WorkPool(tmp_path / "works"))
    manifest, lowers = layers.settle(tmp_path, rooted=False)
    assert sorted(manifest) == ["kept/in/file", "new"]
    assert lowers == ("upper",)
    assert sorted(os.listdir(tmp_path)) == ["upper"]
    assert (upper / ".git" / "config").read_text() == "sealed\n"


@pytest.mark.needs("root")
def test_without_root_overlays_marks_are_removed(tmp_path: Path) -> None:
    sealed_like(tmp_path)
    upper = layers.make_ready(tmp_path, WorkPool(tmp_path / "works"), rooted=False)
    (upper / "gone").unlink()
    os.mknod(upper / "gone", 0o020000, os.makedev(0, 0))
    manifest, _ = layers.settle(tmp_path, rooted=False)
    assert sorted(manifest) == ["kept/in/file"]


@pytest.mark.anyio
async def test_a_fake_engine_knows_what_it_was_told(origin: Origin) -> None:
    images = FakeImages()
    assert await images.image_id("base") == images.known["base"]
    assert images.asked == ["base"]
