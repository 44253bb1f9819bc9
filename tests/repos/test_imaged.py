"""A repository that an image brings along: sealed in place, the image's own files kept, nothing of its git trusted."""

import io
import os
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.errors import LeakFound, Misconfigured, RepositoryError
from orchestrator.interfaces import Template
from orchestrator.models import Task
from orchestrator.repos import imaged
from orchestrator.repos.fakes import FakeImages, FakeSetup
from orchestrator.repos.templates import TemplateCache
from orchestrator.repos.unpacking import Caps, unpack
from tests.repos.conftest import GOLD, Repo, make_repo, make_task, soon

pytestmark = pytest.mark.anyio

PLACE = "testbed"


class Image:
    """The files of an image, with a repository that stands at `middle` while `future` holds GOLD."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "root"
        self.repo: Repo = make_repo(self.root / PLACE)
        self.path = self.repo.path
        self.base = self.repo.commit(
            {".gitignore": "*.so\n*.egg-info\n", "pkg/a.py": "a = 1\n", "old.py": "old\n"}, "base"
        )
        self.repo.git("rm", "-q", "old.py")
        self.middle = self.repo.commit({"pkg/a.py": "a = 2\n", "tool.sh": "#!/bin/sh\n"}, "middle")
        self.future = self.repo.commit({"pkg/a.py": "a = 3\n", "pkg/gold.py": GOLD}, "future", "@1700000000 +0000")
        self.gold_blob = self.repo.git("rev-parse", "HEAD:pkg/gold.py")
        self.repo.git("tag", "-am", "v2", "v2")
        self.repo.git("checkout", "-q", "-B", "main", self.middle)
        self.built("pkg/fast.so", "built in place")
        self.built("pkg.egg-info/PKG-INFO", "Name: pkg\n")
        self.cache = TemplateCache(folder / "cache", setup=FakeSetup(), images=FakeImages(root=self.root))

    def built(self, name: str, text: str) -> None:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        os.utime(path, (1_500_000_000, 1_500_000_000))

    def task(self, commit: str = "", **changes: str) -> Task:
        return replace(make_task("", commit), workspace=f"image:/{PLACE}", **changes)  # type: ignore[arg-type]

    async def template(self, commit: str = "", **changes: str) -> Template:
        return await self.cache.template(self.task(commit, **changes), deadline=soon())


@pytest.fixture
def image(tmp_path: Path) -> Image:
    return Image(tmp_path)


def tree_of(template: Template) -> Repo:
    return Repo(Path(template.lowers[-1]))


def objects_of(repo: Repo) -> set[str]:
    return set(repo.git("cat-file", "--batch-check=%(objectname)", "--batch-all-objects").split())


async def test_the_box_has_the_commit_and_the_images_own_files(image: Image) -> None:
    template = await image.template()
    tree = tree_of(template)
    assert list(template.manifest) == [
        ".gitignore", "pkg.egg-info/PKG-INFO", "pkg/a.py", "pkg/fast.so", "tool.sh",
    ]  # fmt: skip
    assert tree.git("rev-parse", "HEAD") == image.middle
    assert tree.git("status", "--porcelain") == ""
    assert tree.git("log", "--all", "--format=%s") == "middle\nbase"
    assert (tree.path / "pkg/fast.so").stat().st_mtime == 1_500_000_000
    assert template.image == FakeImages().known["base"]
    assert image.gold_blob not in objects_of(tree)
    assert image.future not in objects_of(tree)


async def test_every_hiding_place_of_the_future_is_gone(image: Image) -> None:
    """Reflog, stash, packed refs, unreachable objects loose and packed, notes, worktrees, hooks, other remotes, FETCH_HEAD."""
    repo = image.repo
    repo.git("pack-refs", "--all")
    repo.git("repack", "-qad")
    (image.path / "pkg/a.py").write_text(GOLD)
    repo.git("stash")
    repo.git("notes", "add", "-m", GOLD, image.middle)
    repo.git("hash-object", "-w", "--stdin", stdin=GOLD + "loose")
    repo.git("worktree", "add", "-q", str(image.root / "elsewhere"), image.future)
    repo.git("update-ref", "refs/remotes/origin/main", image.future)
    (image.path / ".git/FETCH_HEAD").write_text(image.future)
    (image.path / ".git/hooks").mkdir(exist_ok=True)
    (image.path / ".git/hooks/post-checkout").write_text(GOLD)
    assert image.gold_blob in objects_of(repo), "positive control"
    (image.path / ".git/config").write_text("[core]\n\tfsmonitor = touch /nothing\n[include]\n\tpath = /etc/passwd\n")
    template = await image.template()
    tree = tree_of(template)
    reached = set(tree.git("rev-list", "--objects", "--no-object-names", "HEAD").split())
    assert objects_of(tree) == reached
    for where, _, files in os.walk(tree.path):
        for name in files:
            assert GOLD.strip().encode() not in (Path(where) / name).read_bytes(), name
    assert sorted(os.listdir(tree.path / ".git")) == ["HEAD", "config", "index", "objects", "refs"]
    assert tree.git("for-each-ref", "--format=%(refname)") == "refs/heads/main"


async def test_nothing_of_the_images_git_runs_on_the_host(image: Image, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    for hook in ("post-checkout", "post-index-change", "reference-transaction", "pre-auto-gc"):
        (image.path / ".git/hooks").mkdir(exist_ok=True)
        (image.path / ".git/hooks" / hook).write_text(f"#!/bin/sh\ntouch {canary}\n")
        (image.path / ".git/hooks" / hook).chmod(0o755)
    with (image.path / ".git/config").open("a") as config:
        config.write(f'[core]\n\tfsmonitor = "touch {canary}"\n\tsshCommand = "touch {canary}"\n')
        config.write(f'[filter "x"]\n\tclean = "touch {canary}"\n\tsmudge = "touch {canary}"\n')
    (image.path / ".gitattributes").write_text("* filter=x\n")
    (image.path / ".git/info").mkdir(exist_ok=True)
    (image.path / ".git/info/attributes").write_text("* filter=x\n")
    await image.template(image.base)
    await image.template()
    assert not canary.exists()
    image.repo.git("status")
    assert canary.exists(), "positive control"


async def test_changes_to_tracked_files_stay_where_the_commit_is_checked_out(image: Image) -> None:
    (image.path / "pkg/a.py").write_text("a = 2  # patched while the image was built\n")
    (image.path / "tool.sh").unlink()
    template = await image.template(image.middle)
    assert "tool.sh" not in template.manifest
    tree = tree_of(template)
    assert "patched" in (tree.path / "pkg/a.py").read_text()
    assert tree.git("status", "--porcelain").split() == ["M", "pkg/a.py", "D", "tool.sh"]


async def test_another_commit_takes_every_tracked_file_and_leaves_the_rest(image: Image, tmp_path: Path) -> None:
    image.repo.git("checkout", "-q", image.future)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "gold.py").write_text("the host's")
    template = await image.template(image.middle)
    tree = tree_of(template)
    assert list(template.manifest) == [
        ".gitignore", "pkg.egg-info/PKG-INFO", "pkg/a.py", "pkg/fast.so", "tool.sh",
    ]  # fmt: skip
    assert (tree.path / "pkg/a.py").read_text() == "a = 2\n"
    assert tree.git("status", "--porcelain") == ""
    assert image.gold_blob not in objects_of(tree)


async def test_a_folder_that_became_a_link_leads_nowhere(image: Image, tmp_path: Path) -> None:
    """HEAD tracks pkg/a.py; in the image pkg is a link to a folder of the host's that holds a file of that name."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "a.py").write_text("the host's\n")
    for path in sorted((image.path / "pkg").iterdir()):
        path.unlink()
    (image.path / "pkg").rmdir()
    (image.path / "pkg").symlink_to(outside)
    template = await image.template(image.base)
    assert (outside / "a.py").read_text() == "the host's\n"
    assert (tree_of(template).path / "pkg/a.py").read_text() == "a = 1\n"
    assert not (tree_of(template).path / "pkg").is_symlink()


async def test_one_commit_of_a_shallow_clone(image: Image, tmp_path: Path) -> None:
    import shutil

    shallow = tmp_path / "shallow"
    image.repo.git("clone", "-q", "--depth=1", f"file://{image.path}", str(shallow))
    shutil.rmtree(image.path)
    shallow.rename(image.path)
    with pytest.raises(RepositoryError, match='write "history": "orphan"'):
        await image.template()
    tree = tree_of(await image.template(history="orphan"))
    assert tree.git("log", "--format=%s") == "Start of the task"
    assert (tree.path / "pkg/a.py").read_text() == "a = 2\n"


def _nested(image: Image) -> None:
    make_repo(image.path / "vendor" / "x")


def _bare(image: Image) -> None:
    image.repo.git("clone", "-q", "--bare", str(image.path), str(image.path / "backup"))


def _bundle(image: Image) -> None:
    image.repo.git("bundle", "create", "-q", str(image.path / "all.bundle"), "--all")


def _alternates(image: Image) -> None:
    (image.path / ".git/objects/info").mkdir(exist_ok=True)
    (image.path / ".git/objects/info/alternates").write_text("/srv/other/objects\n")


def _worktree(image: Image) -> None:
    (image.path / ".git").rename(image.root / "away.git")
    (image.path / ".git").write_text("gitdir: /away.git\n")


def _linked(image: Image) -> None:
    (image.path / ".git").rename(image.root / "away.git")
    (image.path / ".git").symlink_to("/away.git")


def _none(image: Image) -> None:
    (image.path / ".git").rename(image.root / "away.git")


def _headless(image: Image) -> None:
    (image.path / ".git/HEAD").write_text("ref: refs/heads/../../../etc/passwd\n")


def _pipe(image: Image) -> None:
    os.mkfifo(image.path / "pipe")


@pytest.mark.parametrize(
    ("spoil", "error", "words"),
    [
        (_nested, LeakFound, "another git repository in vendor/x"),
        (_bare, LeakFound, "another git repository in backup"),
        (_bundle, LeakFound, r"bundle of git commits .* all\.bundle"),
        (_alternates, RepositoryError, "borrows objects"),
        (_worktree, RepositoryError, "a worktree or submodule of another"),
        (_linked, RepositoryError, "a worktree or submodule of another"),
        (_none, RepositoryError, "no git repository at the task's workspace"),
        (_headless, RepositoryError, "cannot be told from its HEAD"),
        (_pipe, RepositoryError, "pipe in the image is a pipe"),
    ],
)
async def test_what_cannot_be_sealed_is_refused_with_words(
    image: Image, spoil: object, error: type[Exception], words: str
) -> None:
    assert callable(spoil)
    spoil(image)
    with pytest.raises(error, match=words):
        await image.template()
    assert os.listdir(image.root.parent / "cache" / "building") == []


async def test_a_commit_that_is_not_there_a_bad_path_and_both_origins_are_refused(image: Image) -> None:
    with pytest.raises(RepositoryError, match="has no commit"):
        await image.template("c" * 40)
    for task, words in (
        (replace(image.task(), workspace="image:/none"), "no folder"),
        (replace(image.task(), workspace="image:/a/../b"), "normal form"),
        (replace(image.task(), repo="/srv/repo"), "not both"),
        (replace(image.task(), commit="main"), "full SHA"),
    ):
        with pytest.raises(Misconfigured, match=words):
            await image.cache.template(task, deadline=soon())


async def test_image_commit_and_path_decide_the_key(image: Image, tmp_path: Path) -> None:
    images = FakeImages(known={"base": "sha256:" + "1" * 64, "other": "sha256:" + "2" * 64}, root=image.root)
    cache = TemplateCache(tmp_path / "cache", setup=FakeSetup(), images=images)
    tasks = (image.task(), image.task(image.base), image.task(image="other"), image.task(history="orphan"))
    keys = [(await cache.template(task, deadline=soon())).key for task in tasks]
    assert len(set(keys)) == 4
    assert (await cache.template(image.task(), deadline=soon())).key == keys[0]


def test_copies_that_the_mount_does_not_cover_are_found(image: Image) -> None:
    image.repo.git("clone", "-q", "--bare", str(image.path), str(image.root / "srv" / "copy.git"))
    image.repo.git("clone", "-q", str(image.path), str(image.root / "home" / "dev"))
    image.repo.git("bundle", "create", "-q", str(image.root / "all.bundle"), "--all")
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.add(image.root, arcname=".")
    stream.seek(0)
    found = imaged.repositories(stream, but=f"/{PLACE}")
    assert found == ["/all.bundle", "/home/dev/.git", "/srv/copy.git"]


# ---- archives


Member = tuple[tarfile.TarInfo, bytes]


def member(name: str, kind: bytes = tarfile.REGTYPE, *, link: str = "", data: bytes = b"", mode: int = 0o644) -> Member:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size, info.mode = kind, link, len(data), mode
    return info, data


def archive_of(*members: Member) -> io.BytesIO:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    stream.seek(0)
    return stream


ROOT = member("r", tarfile.DIRTYPE, mode=0o755)


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ((ROOT, member("r/../../x", data=b"x")), "leads out"),
        ((ROOT, member("/r/x", data=b"x")), "leads out"),
        ((ROOT, member("r/l", tarfile.SYMTYPE, link="/"), member("r/l/x", data=b"x")), "lies in no folder"),
        ((ROOT, member("r/l", tarfile.SYMTYPE, link=".."), member("r/l/x", data=b"x")), "lies in no folder"),
        ((ROOT, member("r/h", tarfile.LNKTYPE, link="../../etc/passwd")), "leads out"),
        ((ROOT, member("r/l", tarfile.SYMTYPE, link="/etc"), member("r/h", tarfile.LNKTYPE, link="r/l/passwd")), "no folder"),
        ((ROOT, member("r/h", tarfile.LNKTYPE, link="r")), "names its root"),
        ((ROOT, member("r/a", data=b"1"), member("r/a", data=b"2")), "comes twice"),
        ((ROOT, member("r/l", tarfile.SYMTYPE, link="/x"), member("r/l", data=b"2")), "comes twice"),
        ((ROOT, member("r/d", tarfile.CHRTYPE)), "is a device"),
        ((member("r", data=b"x"),), "no folder"),
        ((ROOT, member("r/" + "d/" * 300 + "x", data=b"x")), "leads out"),
        ((ROOT, member("r/big", data=b"x" * 2000)), "more than"),
        ((ROOT, *(member(f"r/{n}") for n in range(10))), "more than 8 files"),
    ],
)  # fmt: skip
def test_a_hostile_archive_writes_nothing_outside(tmp_path: Path, members: tuple[Member, ...], words: str) -> None:
    target = tmp_path / "in" / "target"
    target.mkdir(parents=True)
    with pytest.raises(RepositoryError, match=words):
        unpack(archive_of(*members), target, Caps(bytes=1000, members=8))
    assert os.listdir(tmp_path) == ["in"]
    assert os.listdir(tmp_path / "in") == ["target"]


def test_files_links_modes_and_times_arrive(tmp_path: Path) -> None:
    members = (
        ROOT,
        member("r/d", tarfile.DIRTYPE, mode=0o500),
        member("r/d/tool", data=b"x", mode=0o4755),
        member("r/same", tarfile.LNKTYPE, link="r/d/tool"),
        member("r/python", tarfile.SYMTYPE, link="/usr/bin/python3"),
    )
    unpack(archive_of(*members), tmp_path, Caps())
    assert (tmp_path / "d/tool").stat().st_mode & 0o7777 == 0o755
    assert (tmp_path / "same").samefile(tmp_path / "d/tool")
    assert os.readlink(tmp_path / "python") == "/usr/bin/python3"
    assert (tmp_path / "d").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "d").stat().st_mtime == 0


def test_a_cut_archive_is_told(tmp_path: Path) -> None:
    whole = archive_of(ROOT, member("r/a", data=b"x" * 5000)).getvalue()
    with pytest.raises(RepositoryError, match="broke off"):
        unpack(io.BytesIO(whole[:3000]), tmp_path, Caps())
