"""Workspaces with root: real mounts, real caps, nothing left behind."""

import asyncio
import errno
import os
import random
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from subprocess import Popen

import pytest

from orchestrator.errors import Misconfigured, SandboxError, StartFailed
from orchestrator.interfaces import Template
from orchestrator.models import Limits, SandboxId
from orchestrator.repos import loops, mounts, syscalls
from orchestrator.repos.folders import templates_in_use
from orchestrator.repos.rooted import RootWorkspaces
from orchestrator.repos.templates import TemplateCache
from orchestrator.repos.uids import UidRegistry
from orchestrator.repos.workspace import HostPath, Workspace, make_workspaces
from tests.needs import needs
from tests.repos.conftest import Origin, line_of, make_task, soon

pytestmark = [pytest.mark.anyio, needs("root")]

MIB = 1024 * 1024
SMALL = Limits(disk_mib=16, inodes=1000)
BOX = SandboxId("box")


@pytest.fixture
async def workspaces(tmp_path: Path) -> AsyncIterator[RootWorkspaces]:
    made = RootWorkspaces(tmp_path / "state", "dep", registry=tmp_path / "uids")
    yield made
    await made.remove_all_stale(keep=())
    assert traces(tmp_path) == []


@pytest.fixture
async def template(cache: TemplateCache, origin: Origin) -> Template:
    return await cache.template(make_task(origin.path, origin.middle), deadline=soon())


def traces(folder: Path) -> list[str]:
    """Mounts and loops inside `folder`, of every kind."""
    mounted = [str(point) for point in mounts.mounted_below(folder)]
    return mounted + [str(path) for path in loops.backing_files().values() if folder in path.parents]


def place(workspace: Workspace) -> Path:
    assert isinstance(workspace.workspace_mount, HostPath)
    return workspace.workspace_mount.path


def inside(workspace: Workspace, script: str, home: str = "/nonexistent") -> str:
    """Run `script` as the box's uid with the workspace bound to /mnt, as an engine would."""
    own = f"mount --bind {place(workspace)} /mnt && cd /mnt && "
    drop = f"exec setpriv --reuid {workspace.uid_base} --regid {workspace.uid_base} --clear-groups sh -euc '{script}'"
    command = ["unshare", "--mount", "sh", "-c", own + drop]
    env = {"PATH": os.environ["PATH"], "HOME": home}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


async def test_files_show_as_the_boxs_uid_and_nothing_is_copied(workspaces: RootWorkspaces, template: Template) -> None:
    made = await workspaces.prepare(BOX, template, SMALL)
    assert {(path.lstat().st_uid, path.lstat().st_gid) for path in place(made).rglob("*")} == {(made.uid_base,) * 2}
    assert (place(made) / "README").read_text() == "two\n"
    assert os.listdir(made.root / "disk" / "upper") == []
    assert os.stat(f"{template.lowers[0]}/README").st_uid == 0
    assert made.capped
    assert made.uid_count == 64


async def test_the_folders_of_a_box(workspaces: RootWorkspaces, template: Template) -> None:
    made = await workspaces.prepare(BOX, template, SMALL)
    folders = {"agent": made.agent_dir, "tmp": made.tmp, "home": made.home, "workspace": place(made)}
    shown = {name: (oct(path.stat().st_mode & 0o7777), path.stat().st_uid) for name, path in folders.items()}
    assert shown == {
        "agent": ("0o755", 0),
        "tmp": ("0o1777", 0),
        "home": ("0o755", made.uid_base),
        "workspace": ("0o755", made.uid_base),
    }
    disk = made.tmp.stat().st_dev
    assert made.home.stat().st_dev == disk
    assert made.agent_dir.stat().st_dev != disk  # what fills the box's disk does not reach the agent
    for point in mounts.mounted_below(made.root):
        assert os.statvfs(point).f_flag & (os.ST_NOSUID | os.ST_NODEV) == os.ST_NOSUID | os.ST_NODEV


async def test_git_in_the_box_is_clean_and_reads_no_file_again(workspaces: RootWorkspaces, template: Template) -> None:
    made = await workspaces.prepare(BOX, template, SMALL)
    assert inside(made, "git status --porcelain") == ""
    assert inside(made, "git diff-files") == ""  # an entry whose stat data did not fit would be listed, unread
    inside(made, "echo three >README; git mv src source; git commit -qam mine")
    assert inside(made, "git log --format=%s") == "mine\nmiddle\nbase"


async def test_the_box_changes_its_copy_alone(workspaces: RootWorkspaces, template: Template) -> None:
    made = await workspaces.prepare(BOX, template, SMALL)
    other = await workspaces.prepare(SandboxId("other"), template, SMALL)
    inside(made, "echo more >>README; chmod 700 README; touch -d 2001-01-01 run.sh; rm link; mv src moved; mkdir src")
    assert (place(made) / "README").read_text() == "two\nmore\n"
    assert sorted(os.listdir(place(made))) == [".git", "README", "moved", "run.sh", "src"]
    assert os.listdir(place(made) / "moved") == ["a.py"]
    assert (place(made) / "README").stat().st_mode & 0o777 == 0o700
    for tree in (place(other), Path(template.lowers[0])):
        assert (tree / "README").read_text() == "two\n"
        assert (tree / "src" / "a.py").exists()
        assert (tree / "link").is_symlink()


async def test_renaming_folders_is_what_the_mount_option_gives(tmp_path: Path) -> None:
    """Positive control: without redirect_dir the kernel says EXDEV."""
    for name in ("lower/d", "upper", "work", "merged"):
        (tmp_path / name).mkdir(parents=True)
    layers = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work,redirect_dir=off"
    syscalls.mount("tiltyard-test", tmp_path / "merged", "overlay", 0, layers)
    try:
        with pytest.raises(OSError, match="cross-device") as caught:
            os.rename(tmp_path / "merged" / "d", tmp_path / "merged" / "e")
        assert caught.value.errno == errno.EXDEV
    finally:
        mounts.unmount(tmp_path / "merged")


async def test_a_box_without_a_repository_has_an_empty_workspace(workspaces: RootWorkspaces) -> None:
    made = await workspaces.prepare(BOX, None, SMALL)
    assert os.listdir(place(made)) == []
    inside(made, "echo x >file")


def fill(path: Path) -> int:
    """Write until the disk says no: the bytes that went in."""
    total = 0
    with open(path, "wb", buffering=0) as file:
        try:
            while total < 10**9:
                total += file.write(b"x" * MIB)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            return total
    pytest.fail("there is no cap")


def crowd(folder: Path) -> int:
    """Make files until the disk says no: how many there were."""
    for count in range(10_000):
        try:
            (folder / str(count)).touch()
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            return count
    pytest.fail("there is no cap")


@pytest.mark.parametrize("where", ["workspace", "tmp", "home"])
async def test_bytes_stop_at_the_cap(where: str, workspaces: RootWorkspaces, template: Template) -> None:
    made = await workspaces.prepare(BOX, template, SMALL)
    neighbour = await workspaces.prepare(SandboxId("other"), template, SMALL)
    folder = {"workspace": place(made), "tmp": made.tmp, "home": made.home}[where]
    written = fill(folder / "big")
    assert 0.9 * 16 * MIB <= written <= 16 * MIB
    assert await workspaces.usage_bytes(BOX) <= 20 * MIB
    (made.agent_dir / "journal").write_bytes(b"x" * MIB)  # the agent lives on
    (place(neighbour) / "fine").write_bytes(b"x" * MIB)
    (folder / "big").unlink()
    (folder / "again").write_text("and the box goes on")


async def test_inodes_stop_at_the_cap(workspaces: RootWorkspaces, template: Template) -> None:
    made = await workspaces.prepare(BOX, template, SMALL)
    count = crowd(made.tmp)
    assert 0.95 * SMALL.inodes <= count <= SMALL.inodes + 64


async def test_the_usual_limits_are_the_usable_ones(workspaces: RootWorkspaces) -> None:
    made = await workspaces.prepare(BOX, None, Limits())
    space = os.statvfs(made.tmp)
    assert abs(space.f_bavail * space.f_frsize - 1024 * MIB) < 20 * MIB
    assert abs(space.f_favail - 200_000) < 200
    assert await workspaces.usage_bytes(BOX) < 4 * MIB  # sparse


async def test_a_boxs_writes_pass_the_machines_page_cache_by(workspaces: RootWorkspaces, tmp_path: Path) -> None:
    """The page cache is the machine's: what one box left in it to be written, others would wait for."""
    await workspaces.prepare(BOX, None, SMALL, expires_at=0.0)
    (device,) = (name for name, file in loops.backing_files().items() if tmp_path in file.parents)
    direct = await asyncio.to_thread(Path("/sys/block", device, "loop/dio").read_text)
    assert direct.strip() == "1"


async def test_removal_leaves_nothing(workspaces: RootWorkspaces, template: Template, tmp_path: Path) -> None:
    made = await workspaces.prepare(BOX, template, SMALL)
    inside(made, "mkdir -m 000 shut; ln -s / slash; mkfifo pipe")
    (made.agent_dir / "deep" / "er").mkdir(parents=True)
    assert len(traces(tmp_path)) == 3  # positive control: disk, overlay, loop
    await workspaces.remove(BOX)
    assert traces(tmp_path) == []
    assert os.listdir(tmp_path / "state" / "dep" / "boxes") == []
    assert os.listdir(tmp_path / "uids") == []
    assert await workspaces.owned() == []
    await workspaces.remove(BOX)  # idempotent
    assert (await workspaces.prepare(BOX, template, SMALL)).uid_base == made.uid_base


async def test_removal_by_several_at_once(workspaces: RootWorkspaces, template: Template, tmp_path: Path) -> None:
    await workspaces.prepare(BOX, template, SMALL)
    another = RootWorkspaces(tmp_path / "state", "dep", registry=tmp_path / "uids")
    await asyncio.gather(*(owner.remove(BOX) for owner in (workspaces, another) * 3))
    assert traces(tmp_path) == []


async def test_a_busy_mount_is_waited_for(workspaces: RootWorkspaces, template: Template, tmp_path: Path) -> None:
    made = await workspaces.prepare(BOX, template, SMALL)
    held = os.open(place(made) / "README", os.O_RDONLY)
    with pytest.raises(OSError, match="umount") as caught:
        syscalls.umount(place(made))  # positive control: it is busy
    assert caught.value.errno == errno.EBUSY
    timer = threading.Timer(0.2, os.close, [held])
    timer.start()
    await workspaces.remove(BOX)
    timer.join()
    assert traces(tmp_path) == []


async def test_what_stays_busy_is_told_and_goes_later(
    workspaces: RootWorkspaces, template: Template, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await workspaces.prepare(BOX, template, SMALL)
    monkeypatch.setattr(mounts, "BUSY_WAIT_S", 0.1)  # a setting, not behaviour
    held = os.open(made.tmp, os.O_RDONLY)
    with pytest.raises(SandboxError, match="EBUSY"):
        await workspaces.remove(BOX)
    assert await workspaces.remove_all_stale(keep=()) == []
    assert await workspaces.owned() == [BOX]
    os.close(held)
    assert await workspaces.remove_all_stale(keep=()) == [BOX]


async def test_a_box_is_made_once(workspaces: RootWorkspaces, template: Template) -> None:
    made = await workspaces.prepare(BOX, template, SMALL)
    with pytest.raises(StartFailed, match="exists already"):
        await workspaces.prepare(BOX, template, SMALL)
    assert (place(made) / "README").exists()


async def test_many_boxes_at_once_share_nothing(workspaces: RootWorkspaces, template: Template, tmp_path: Path) -> None:
    names = [SandboxId(f"box{number}") for number in range(12)]
    made = await asyncio.gather(*(workspaces.prepare(name, template, SMALL) for name in names))
    assert len({workspace.uid_base for workspace in made}) == 12
    assert len({workspace.tmp.stat().st_dev for workspace in made}) == 12
    assert await workspaces.owned() == sorted(names)
    await asyncio.gather(*(workspaces.remove(name) for name in names))
    assert traces(tmp_path) == []


async def test_a_failure_half_way_leaves_nothing(
    workspaces: RootWorkspaces, template: Template, tmp_path: Path
) -> None:
    shutil.rmtree(template.lowers[0])
    with pytest.raises(StartFailed, match="missing"):
        await workspaces.prepare(BOX, template, SMALL)
    assert await workspaces.owned() == []
    assert traces(tmp_path) == []
    assert os.listdir(tmp_path / "uids") == []


async def test_a_cancelled_start_leaves_nothing(workspaces: RootWorkspaces, template: Template, tmp_path: Path) -> None:
    for pause_s in (0.0, 0.002, 0.005, 0.01, 0.02):
        start = asyncio.ensure_future(workspaces.prepare(BOX, template, SMALL))
        await asyncio.sleep(pause_s)
        start.cancel()
        await asyncio.wait([start])
        if start.cancelled():
            assert await workspaces.owned() == []
            assert traces(tmp_path) == []
        await workspaces.remove(BOX)


@pytest.mark.parametrize("limits", [Limits(disk_mib=1), Limits(inodes=1)])
async def test_limits_that_cannot_be_honoured_are_refused(limits: Limits, workspaces: RootWorkspaces) -> None:
    with pytest.raises(Misconfigured, match="at least"):
        await workspaces.prepare(BOX, None, limits)


@pytest.mark.parametrize("name", ["", "..", "a/b", "-x", "a b", "x" * 101, "a\n"])
async def test_names_that_are_no_folder_names_are_refused(name: str, workspaces: RootWorkspaces) -> None:
    with pytest.raises(Misconfigured, match="sandbox id"):
        await workspaces.prepare(SandboxId(name), None, SMALL)
    with pytest.raises(Misconfigured, match="sandbox id"):
        await workspaces.remove(SandboxId(name))


@pytest.fixture
def short() -> Iterator[Path]:
    """Unix sockets below a state folder have 107 bytes for their path."""
    with tempfile.TemporaryDirectory(prefix="ty-") as folder:
        yield Path(folder)


async def test_paths_that_mount_options_cannot_carry_are_refused(short: Path) -> None:
    for folder in ("a:b", "a,b", "a b", 'a"b'):
        with pytest.raises(Misconfigured, match="mount options"):
            make_workspaces(short / folder, "dep")
    assert isinstance(make_workspaces(short / "fine", "dep"), RootWorkspaces)
    with pytest.raises(Misconfigured, match="deployment"):
        make_workspaces(short, "../up")


async def test_a_path_too_deep_for_sockets_is_refused(short: Path) -> None:
    make_workspaces(short, "dep")
    with pytest.raises(Misconfigured, match="shorter TILTYARD_STATE_DIR"):
        make_workspaces(short / ("d" * 60), "dep")


async def killed_with(worker: Callable[..., Popen[str]], tmp_path: Path, origin: Origin, *names: str) -> RootWorkspaces:
    """A process that made boxes and was killed; whoever comes after it."""
    process = worker(
        "prepare", tmp_path / "state", tmp_path / "uids", tmp_path / "cache", origin.path, origin.middle, *names
    )
    assert line_of(process) == "ready"
    process.send_signal(signal.SIGKILL)
    process.wait()
    return RootWorkspaces(tmp_path / "state", "dep", registry=tmp_path / "uids")


async def test_boxes_of_a_killed_process_are_found_by_name_and_swept(
    workspaces: RootWorkspaces, origin: Origin, tmp_path: Path, worker: Callable[..., Popen[str]]
) -> None:
    after = await killed_with(worker, tmp_path, origin, "dead1", "dead2", "alive")
    assert await after.owned() == ["alive", "dead1", "dead2"]
    kept = tmp_path / "state" / "dep" / "boxes" / "alive" / "workspace" / "README"
    assert await after.remove_all_stale(keep={SandboxId("alive")}) == ["dead1", "dead2"]
    assert kept.read_text() == "two\n"
    assert set(UidRegistry(tmp_path / "uids").claimed()) == {tmp_path / "state" / "dep" / "boxes" / "alive"}
    assert await after.remove_all_stale(keep=()) == ["alive"]


async def test_killed_at_any_moment_whatever_is_left_is_swept(
    workspaces: RootWorkspaces, origin: Origin, tmp_path: Path, worker: Callable[..., Popen[str]]
) -> None:
    seed = random.randrange(10**6)
    print("seed", seed)
    moments = random.Random(seed)
    places = (tmp_path / "state", tmp_path / "uids", tmp_path / "cache")
    for _ in range(5):
        process = worker("churn", *places, origin.path, origin.middle)
        assert line_of(process) == "ready"
        await asyncio.sleep(moments.uniform(0.0, 0.1))
        process.kill()
        process.wait()
        await workspaces.remove_all_stale(keep=())
        assert await workspaces.owned() == []
        assert traces(tmp_path) == []
        assert os.listdir(tmp_path / "uids") == []


async def test_another_deployment_is_never_touched(
    workspaces: RootWorkspaces, template: Template, tmp_path: Path
) -> None:
    made = await workspaces.prepare(BOX, template, SMALL)
    other = RootWorkspaces(tmp_path / "state", "other", registry=tmp_path / "uids")
    theirs = await other.prepare(BOX, template, SMALL)
    assert theirs.uid_base != made.uid_base
    assert await other.remove_all_stale(keep=()) == [BOX]
    assert (place(made) / "README").exists()
    assert await workspaces.owned() == [BOX]


def lazily_unmount(*points: Path) -> None:
    subprocess.run(["umount", "--lazy", *map(str, points)], check=True)


async def test_a_mount_or_loop_without_its_folders_record_is_found(
    workspaces: RootWorkspaces, template: Template
) -> None:
    made = await workspaces.prepare(BOX, template, SMALL)
    (made.root / "box.json").unlink()
    held = os.open(made.tmp, os.O_RDONLY)
    lazily_unmount(made.root / "workspace", made.root / "disk")
    shutil.rmtree(made.root)  # nothing but the loop is left
    assert await workspaces.owned() == [BOX]
    os.close(held)
    await workspaces.remove(BOX)
    assert await workspaces.owned() == []


async def test_live_boxes_name_the_templates_that_pruning_must_spare(
    workspaces: RootWorkspaces, template: Template, tmp_path: Path
) -> None:
    await workspaces.prepare(BOX, template, SMALL, expires_at=1.5)
    await workspaces.prepare(SandboxId("bare"), None, SMALL)
    assert templates_in_use(tmp_path / "state") == {template.key}
    await workspaces.remove(BOX)
    assert templates_in_use(tmp_path / "state") == frozenset()


async def test_a_full_host_disk_is_told_and_leaves_nothing(template: Template, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    syscalls.mount("tiltyard-test", small, "tmpfs", 0, "size=16k")
    try:
        workspaces = RootWorkspaces(small / "state", "dep", registry=tmp_path / "uids")
        with pytest.raises(StartFailed):
            await workspaces.prepare(BOX, template, SMALL)
        assert await workspaces.owned() == []
    finally:
        mounts.unmount(small)
