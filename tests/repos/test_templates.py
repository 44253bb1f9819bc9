"""Templates are built once, whole or not at all, by however many callers and processes."""

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest

from orchestrator.errors import LeakFound, Misconfigured, RepositoryError
from orchestrator.models import Network
from orchestrator.operations import ManifestFile
from orchestrator.repos import mounts, pruning, syscalls
from orchestrator.repos.fakes import FakeImages, FakeSetup
from orchestrator.repos.pruning import CacheFolders
from orchestrator.repos.templates import TemplateCache
from tests.needs import needs
from tests.repos.conftest import Origin, line_of, make_task, soon

pytestmark = pytest.mark.anyio

MS_REMOUNT = 32


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


async def test_a_template_is_what_boxes_need(cache: TemplateCache, origin: Origin) -> None:
    template = await cache.template(make_task(origin.path, origin.middle), deadline=soon())
    assert list(template.manifest) == ["README", "link", "run.sh", "src/a.py"]
    assert template.owner_uid == os.geteuid()
    assert template.image == FakeImages().known["base"]
    (tree,) = template.lowers
    assert (Path(tree) / "README").read_text() == "two\n"


async def test_the_second_call_builds_nothing_and_gives_the_same(
    cache: TemplateCache, origin: Origin, tmp_path: Path
) -> None:
    first = await cache.template(make_task(origin.path, origin.middle), deadline=soon())
    os.rename(origin.path, origin.path + ".away")
    assert await cache.template(make_task(origin.path, origin.middle), deadline=soon()) == first
    again = TemplateCache(tmp_path / "cache", setup=FakeSetup(), images=FakeImages())
    assert await again.template(make_task(origin.path, origin.middle), deadline=soon()) == first


async def test_what_decides_the_content_decides_the_key(origin: Origin, tmp_path: Path) -> None:
    images = FakeImages(known={"base": "sha256:" + "1" * 64, "other": "sha256:" + "2" * 64})
    cache = TemplateCache(tmp_path / "cache", setup=FakeSetup(), images=images)

    async def key(commit: str, **fields: object) -> str:
        return (await cache.template(make_task(origin.path, commit, **fields), deadline=soon())).key  # type: ignore[arg-type]

    plain = await key(origin.middle)
    assert await key(origin.middle, image="other") == plain  # without set-up the image has no say
    distinct = {
        plain,
        await key(origin.base),
        await key(origin.middle, history="orphan"),
        await key(origin.middle, setup=("a",)),
        await key(origin.middle, setup=("b",)),
        await key(origin.middle, setup=("a",), image="other"),
    }
    assert len(distinct) == 6


async def test_tasks_of_one_tree_keep_their_own_images(origin: Origin, tmp_path: Path) -> None:
    images = FakeImages(known={"base": "sha256:" + "1" * 64, "other": "sha256:" + "2" * 64})
    cache = TemplateCache(tmp_path / "cache", setup=FakeSetup(), images=images)
    for name, image in images.known.items():
        assert (await cache.template(make_task(origin.path, origin.middle, image=name), deadline=soon())).image == image


async def test_a_missing_image_a_bad_history_and_an_image_workspace_are_refused(
    cache: TemplateCache, origin: Origin, tmp_path: Path
) -> None:
    for task, words in (
        (make_task(origin.path, origin.middle, image="gone"), "not on this machine"),
        (make_task(origin.path, origin.middle, history="none"), "full, orphan"),
        (make_task("image:/testbed", origin.middle), "write workspace, not repo"),
    ):
        with pytest.raises(Misconfigured, match=words):
            await cache.template(task, deadline=soon())
    assert not (tmp_path / "cache" / "templates").exists()


@needs("root")
async def test_set_up_is_kept_as_a_second_layer_and_in_the_manifest(origin: Origin, tmp_path: Path) -> None:
    def effect(tree: Path, upper: Path) -> None:
        (upper / "src").mkdir()
        (upper / "src" / "made.txt").write_text("made\n")
        os.lchown(upper / "src" / "made.txt", 4321, 4321)
        os.mknod(upper / "README", 0o020000, os.makedev(0, 0))  # overlay's mark for a deleted file

    setup = FakeSetup(effect=effect)
    cache = TemplateCache(tmp_path / "cache", setup=setup, images=FakeImages())
    template = await cache.template(make_task(origin.path, origin.middle, setup=("one", "two")), deadline=soon())
    assert list(template.manifest) == ["link", "run.sh", "src/a.py", "src/made.txt"]
    upper, tree = map(Path, template.lowers)
    assert (upper.name, tree.name) == ("upper", "tree")
    assert (upper / "src" / "made.txt").stat().st_uid == template.owner_uid
    assert names(upper.parent) == ["manifest.json", "size", "tree", "upper"]
    (call,) = setup.calls
    assert call.commands == ("one", "two")
    assert call.tag == f"tiltyard-setup:{template.key}"
    assert call.network == Network()
    assert 0 < call.timeout_s <= 60
    assert template.image.startswith("sha256:")
    assert template.image != FakeImages().known["base"]


async def test_a_set_up_image_that_is_gone_is_told_with_the_fix(origin: Origin, tmp_path: Path) -> None:
    class Forgetful(FakeImages):
        async def image_id(self, reference: str) -> str:
            if reference.startswith("sha256:"):
                raise Misconfigured("gone")
            return await FakeImages.image_id(self, reference)

    task = make_task(origin.path, origin.middle, setup=("x",))
    kept = await TemplateCache(tmp_path / "cache", setup=FakeSetup(), images=FakeImages()).template(
        task, deadline=soon()
    )
    cache = TemplateCache(tmp_path / "cache", setup=FakeSetup(), images=Forgetful())
    with pytest.raises(RepositoryError, match=f"template {kept.key} is gone from the engine: remove"):
        await cache.template(task, deadline=soon())


@needs("root")
@pytest.mark.parametrize(
    ("effect", "error", "words"),
    [
        (lambda tree, upper: (upper / "v" / ".git").mkdir(parents=True), LeakFound, "repository in v"),
        (lambda tree, upper: os.mkfifo(upper / "pipe"), RepositoryError, "pipe is neither"),
        (lambda tree, upper: (upper / os.fsdecode(b"\xff")).touch(), RepositoryError, "not UTF-8"),
    ],
    ids=["repository", "fifo", "name"],
)
async def test_what_set_up_must_not_leave(
    effect: Callable[[Path, Path], None], error: type[RepositoryError], words: str, origin: Origin, tmp_path: Path
) -> None:
    cache = TemplateCache(tmp_path / "cache", setup=FakeSetup(effect=effect), images=FakeImages())
    with pytest.raises(error, match=words):
        await cache.template(make_task(origin.path, origin.middle, setup=("x",)), deadline=soon())
    assert names(tmp_path / "cache" / "building") == []
    assert names(tmp_path / "cache" / "templates") == []


async def test_a_failing_set_up_leaves_nothing_and_is_not_remembered(origin: Origin, tmp_path: Path) -> None:
    fail = [True]

    def effect(tree: Path, upper: Path) -> None:
        if fail.pop():
            fail.append(False)
            raise RepositoryError("command 1 failed: no such option")

    cache = TemplateCache(tmp_path / "cache", setup=FakeSetup(effect=effect), images=FakeImages())
    task = make_task(origin.path, origin.middle, setup=("x",))
    with pytest.raises(RepositoryError, match="no such option"):
        await cache.template(task, deadline=soon())
    assert names(tmp_path / "cache" / "building") == []
    await cache.template(task, deadline=soon())


async def test_ten_first_rollouts_build_once(origin: Origin, tmp_path: Path) -> None:
    setup = FakeSetup()
    caches = [TemplateCache(tmp_path / "cache", setup=setup, images=FakeImages()) for _ in range(2)]
    task = make_task(origin.path, origin.middle, setup=("x",))
    templates = await asyncio.gather(*(caches[n % 2].template(task, deadline=soon()) for n in range(10)))
    assert len({template.key for template in templates}) == 1
    assert len(setup.calls) == 1


async def test_ten_first_rollouts_in_three_processes_build_once(
    origin: Origin, tmp_path: Path, worker: Callable[..., Popen[str]]
) -> None:
    log = tmp_path / "builds"
    processes = [worker("build", tmp_path / "cache", origin.path, origin.middle, log, n) for n in (4, 3, 3)]
    keys = {line_of(process) for process in processes}
    assert len(keys) == 1
    assert len(log.read_text().splitlines()) == 1


async def test_a_killed_build_is_swept_and_built_anew(
    origin: Origin, tmp_path: Path, worker: Callable[..., Popen[str]], cache: TemplateCache
) -> None:
    process = worker("hang_in_setup", tmp_path / "cache", origin.path, origin.middle)
    assert line_of(process) == "building"
    await cache.sweep()
    assert len(names(tmp_path / "cache" / "building")) == 1  # it lives: not touched
    process.kill()
    process.wait()
    assert len(names(tmp_path / "cache" / "building")) == 1
    template = await cache.template(make_task(origin.path, origin.middle, setup=("make",)), deadline=soon())
    assert "half" not in template.manifest
    assert names(tmp_path / "cache" / "building") == []


async def test_a_killed_build_that_nobody_asks_for_again_is_swept(
    origin: Origin, tmp_path: Path, worker: Callable[..., Popen[str]], cache: TemplateCache
) -> None:
    process = worker("hang_in_setup", tmp_path / "cache", origin.path, origin.middle)
    assert line_of(process) == "building"
    process.kill()
    process.wait()
    await cache.sweep()
    assert names(tmp_path / "cache" / "building") == []


async def test_who_waits_for_a_build_gives_up_at_the_deadline(
    origin: Origin, tmp_path: Path, worker: Callable[..., Popen[str]], cache: TemplateCache
) -> None:
    process = worker("hang_in_setup", tmp_path / "cache", origin.path, origin.middle)
    assert line_of(process) == "building"
    with pytest.raises(RepositoryError, match="still under way"):
        await cache.template(make_task(origin.path, origin.middle, setup=("make",)), deadline=soon(0.3))


async def test_a_cancelled_build_leaves_nothing_and_the_next_takes_over(origin: Origin, tmp_path: Path) -> None:
    began, cancelled = asyncio.Event(), asyncio.Event()

    class Slow(FakeSetup):
        async def run_setup(self, **arguments: Any) -> str:
            if not cancelled.is_set():
                began.set()
                await asyncio.get_running_loop().create_future()
            return "sha256:x"

    cache = TemplateCache(tmp_path / "cache", setup=Slow(), images=FakeImages())
    task = make_task(origin.path, origin.middle, setup=("x",))
    first = asyncio.ensure_future(cache.template(task, deadline=soon()))
    await began.wait()  # else the second might be the one that builds
    second = asyncio.ensure_future(cache.template(task, deadline=soon()))
    await asyncio.sleep(0.05)
    cancelled.set()
    first.cancel()
    assert (await second).image == "sha256:x"
    with pytest.raises(asyncio.CancelledError):
        await first
    assert names(tmp_path / "cache" / "building") == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    syscalls.mount("tiltyard-test", folder, "tmpfs", 0, "size=1m")
    yield folder
    mounts.unmount(folder)


@needs("root")
async def test_a_full_disk_is_told_and_leaves_nothing(origin: Origin, small_disk: Path) -> None:
    (origin.repo.path / "big").write_bytes(os.urandom(700_000))
    sha = origin.repo.commit({})
    cache = TemplateCache(small_disk / "cache", setup=FakeSetup(), images=FakeImages())
    with pytest.raises(RepositoryError, match="disk is full: free space, or prune"):
        await cache.template(make_task(origin.path, sha), deadline=soon())
    assert names(small_disk / "cache" / "building") == []
    assert names(small_disk / "cache" / "templates") == []
    syscalls.mount("tiltyard-test", small_disk, "tmpfs", MS_REMOUNT, "size=32m")
    template = await cache.template(make_task(origin.path, sha), deadline=soon())
    assert isinstance(template.manifest["big"], ManifestFile)


async def test_a_damaged_record_is_told_with_the_fix(cache: TemplateCache, origin: Origin, tmp_path: Path) -> None:
    template = await cache.template(make_task(origin.path, origin.middle), deadline=soon())
    (tmp_path / "cache" / "templates" / template.key / "manifest.json").write_text('{"format": 1}')
    again = TemplateCache(tmp_path / "cache", setup=FakeSetup(), images=FakeImages())
    with pytest.raises(RepositoryError, match="damaged: remove its folder"):
        await again.template(make_task(origin.path, origin.middle), deadline=soon())


async def test_pruning_takes_the_oldest_and_spares_what_is_used(
    cache: TemplateCache, origin: Origin, tmp_path: Path
) -> None:
    commits = (origin.base, origin.middle, origin.future)
    built = [await cache.template(make_task(origin.path, sha), deadline=soon()) for sha in commits]
    folders = CacheFolders(tmp_path / "cache")
    assert await cache.prune(0, in_use=()) == []  # all were used just now
    for age, template in enumerate(built):
        when = time.time() - 10_000 + age
        os.utime(folders.template(template.key), (when, when))
    removed = await cache.prune(0, in_use={built[1].key})
    assert {entry.key for entry in removed} == {built[0].key, built[2].key}
    assert names(tmp_path / "cache" / "templates") == [built[1].key]
    assert names(tmp_path / "cache" / "building") == []
    assert await cache.template(make_task(origin.path, origin.base), deadline=soon()) == built[0]


async def test_a_pruned_mirror_is_fetched_again(cache: TemplateCache, origin: Origin, tmp_path: Path) -> None:
    await cache.template(make_task(origin.path, origin.base), deadline=soon())
    folders = CacheFolders(tmp_path / "cache")
    removed = pruning.prune(folders, 0, in_use=(), grace_s=-1)
    assert sorted(entry.kind for entry in removed) == ["mirror", "template"]
    assert all(entry.size_bytes > 0 for entry in removed)
    await cache.template(make_task(origin.path, origin.middle), deadline=soon())


@needs("root")
async def test_without_root_all_of_it_works_under_one_uid(
    origin: Origin, tmp_path: Path, worker: Callable[..., Popen[str]]
) -> None:
    for path in (origin.repo.path, *origin.repo.path.rglob("*")):
        os.lchown(path, 12345, 12345)
    for parent in (tmp_path, *tmp_path.parents[:2]):
        parent.chmod(parent.stat().st_mode & 0o7777 | 0o055)
    (tmp_path / "own").mkdir()
    os.chown(tmp_path / "own", 12345, 12345)
    drop = ("setpriv", "--reuid", "12345", "--regid", "12345", "--clear-groups")
    process = worker("plain", tmp_path / "own/state", tmp_path / "own/cache", origin.path, origin.middle, prefix=drop)
    assert line_of(process) == "README link run.sh src/a.py"
    assert line_of(process) == "README link made run.sh"
    assert line_of(process) == "12345 1 False"
    assert line_of(process) == "[]"
    assert process.wait() == 0
