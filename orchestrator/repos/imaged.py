"""A repository that an image brings along, sealed in place: what the commit reaches, one ref, and the image's own files around it.

The image's `.git` is only a store of objects here: its packs are indexed anew, its HEAD and refs are read as text, and git never runs with its
configuration, hooks, attributes, alternates or index. It is removed before anything is mounted.

What becomes of the tree: where the commit is what the image has checked out, the tree stays as the image has it, changes to tracked files
included: that is the environment its author built. Where the task names another commit, all files that either commit tracks are that commit's,
and what neither tracks (build results, installed metadata) stays.
"""

import os
import re
import stat
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from orchestrator.errors import LeakFound, RepositoryError
from orchestrator.operations import Manifest
from orchestrator.repos import folders, gitcmd, manifests, seal
from orchestrator.repos.layers import TREE
from orchestrator.repos.mirror import FULL_SHA, commit_named
from orchestrator.repos.unpacking import parent_of

_PACK = re.compile(r"pack-[0-9a-f]{40}\.pack")
_REF = re.compile(r"refs/[A-Za-z0-9._/@+-]{1,200}")
_SMALL_BYTES = 64 * 1024 * 1024
"""Of packed-refs, the largest text read: some repositories have hundreds of thousands of refs."""
_SYMBOLIC_DEPTH = 5
_BUNDLE = re.compile(rb"# v\d git bundle\n")
MAX_TOLD = 10


def seal_in_place(build: Path, commit: str, *, history: str, deadline: float) -> tuple[str, Manifest]:
    """Seal `build/tree`, just unpacked from an image, at `commit` (empty: its HEAD): the commit's full name and the tree's manifest. Blocks.

    Raises LeakFound (another repository below it), RepositoryError (with the way out), Misconfigured, OSError.
    """
    tree, original, objects, sealed = build / TREE, build / "image.git", build / "objects.git", build / "sealed"
    _take_out(tree, original)
    head = _head(original)
    if head is None:  # then nobody knows which of its files are of a later commit
        raise RepositoryError("what the image has checked out cannot be told from its HEAD: check a commit out in it")
    sha = commit or head
    _gather_objects(original, objects, deadline)
    _check(original, objects, sha, history, deadline)
    tracked = seal.seal(objects, sha, sealed, history=history, deadline=deadline)
    _refuse_repositories(tree, tracked)
    if sha != head:
        for path in _files_of(objects, head, deadline):
            _remove(tree, path.split("/"))
        for path in tracked:
            _place(sealed, tree, path.split("/"))
    (sealed / ".git").rename(tree / ".git")
    for spent in (original, objects, sealed):
        folders.remove_tree(spent)
    gitcmd.attempt(
        tree, "update-index", "-q", "--really-refresh", deadline=deadline
    )  # tells changed files by its status
    seal.assert_sealed(tree, (tree / ".git/refs/heads/main").read_text(encoding="ascii").strip(), deadline=deadline)
    return sha, manifests.take_manifest(tree)


def repositories(stream: BinaryIO, *, but: str) -> Sequence[str]:
    """Where in an image (a tar of all of it) repositories and bundles of git lie that `but`, an absolute path, does not cover. Sorted.

    Names alone are looked at. Raises tarfile.TarError, OSError.
    """
    marks: dict[str, set[str]] = {}
    found: set[str] = set()
    covered = but.strip("/") + "/"
    with tarfile.open(fileobj=stream, mode="r|") as archive:
        for member in archive:
            archive.members = []  # type: ignore[attr-defined]  # else a stream's members pile up
            name = "/".join(part for part in member.name.split("/") if part not in ("", "."))
            where, _, last = name.rpartition("/")
            if f"{name}/".startswith(covered):
                continue
            if last in ("HEAD", "objects", "refs"):
                marks.setdefault(where, set()).add(last)
            elif last.endswith(".bundle") and member.isreg():
                found.add(name)
    found |= {where for where, names in marks.items() if len(names) == 3}
    return sorted(f"/{name}" for name in found)


def _take_out(tree: Path, original: Path) -> None:
    git = tree / ".git"
    try:
        mode = git.lstat().st_mode
    except FileNotFoundError:
        raise RepositoryError("the image has no git repository at the task's workspace: correct its path") from None
    if not stat.S_ISDIR(mode):
        raise RepositoryError(
            "the repository in the image is a worktree or submodule of another: clone it in the image"
        )
    git.rename(original)


def _read(original: Path, name: str) -> str | None:
    """The text of a small regular file, reached through no symlink; None where there is none."""
    try:
        with parent_of(original, name.split("/")) as (folder, last):
            descriptor = os.open(last, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except OSError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        return file.read(_SMALL_BYTES).decode("utf-8", "replace")


def _head(original: Path) -> str | None:
    """The full name of the commit that HEAD means."""
    text = (_read(original, "HEAD") or "").strip()
    for _ in range(_SYMBOLIC_DEPTH):
        if FULL_SHA.fullmatch(text):
            return text
        name = text.removeprefix("ref:").strip()
        if not text.startswith("ref:") or not _REF.fullmatch(name) or ".." in name:
            return None
        text = (_read(original, name) or _packed(original, name)).strip()
    return None


def _packed(original: Path, name: str) -> str:
    for line in (_read(original, "packed-refs") or "").splitlines():
        sha, _, ref = line.partition(" ")
        if ref.strip() == name:
            return sha
    return ""


def _gather_objects(original: Path, objects: Path, deadline: float) -> None:
    """A bare repository of ours with the image's objects: loose ones as they are, packs with indices of our making."""
    objects.mkdir()
    gitcmd.run(objects, "init", "--quiet", "--bare", "--template=", deadline=deadline)
    store = original / "objects"
    for folder in _real_folders(store):
        if re.fullmatch(r"[0-9a-f]{2}", folder.name):
            (objects / "objects" / folder.name).mkdir(exist_ok=True)
            _move_files(folder, objects / "objects" / folder.name, re.compile(r"[0-9a-f]{38}"))
        elif folder.name == "pack":
            packs = objects / "objects" / "pack"
            packs.mkdir(exist_ok=True)
            for pack in _move_files(folder, packs, _PACK):
                gitcmd.run(packs, "index-pack", pack, deadline=deadline)


def _real_folders(folder: Path) -> Iterator[Path]:
    if folder.is_symlink() or not folder.is_dir():
        return
    with os.scandir(folder) as entries:
        found = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    yield from (folder / name for name in sorted(found))


def _move_files(source: Path, target: Path, names: re.Pattern[str]) -> list[str]:
    with os.scandir(source) as entries:
        found = [each.name for each in entries if each.is_file(follow_symlinks=False) and names.fullmatch(each.name)]
    for name in found:
        (source / name).rename(target / name)
    return sorted(found)


def _check(original: Path, objects: Path, sha: str, history: str, deadline: float) -> None:
    if _read(original, "objects/info/alternates"):
        raise RepositoryError("the repository in the image borrows objects of another: run `git repack -a -d` in it")
    if history == "full" and _read(original, "shallow"):
        raise RepositoryError('the repository in the image is a shallow clone: write "history": "orphan" in the task')
    if commit_named(objects, sha, deadline) != sha:
        raise RepositoryError(
            f"the repository in the image has no commit {sha}: correct the task's commit, or its path"
        )
    gitcmd.run(objects, "update-ref", f"refs/tiltyard/commits/{sha}", sha, deadline=deadline)


def _files_of(objects: Path, sha: str, deadline: float) -> Sequence[str]:
    """What `sha` tracks."""
    listing = gitcmd.run(objects, "ls-tree", "-r", "-z", "--name-only", "--full-tree", sha, deadline=deadline)
    return [os.fsdecode(name) for name in listing.records()]


def _refuse_repositories(tree: Path, tracked: Manifest) -> None:
    """Whatever may hold more than the commit. What the commit itself tracks (a test's fixture) is the commit's."""
    for where, inner, files in os.walk(tree):
        place = Path(where).relative_to(tree).as_posix()
        bare = "HEAD" in files and "objects" in inner and "refs" in inner
        bare = bare and f"{place}/HEAD".removeprefix("./") not in tracked
        if bare or ".git" in inner or ".git" in files:
            raise LeakFound(f"the image has another git repository in {place} of the task's workspace: remove it")
        for name in files:
            path = f"{place}/{name}".removeprefix("./")
            if name.endswith(".bundle") and path not in tracked and _is_bundle(tree, path):
                raise LeakFound(f"the image has a bundle of git commits in the task's workspace, {path}: remove it")


def _is_bundle(tree: Path, path: str) -> bool:
    with parent_of(tree, path.split("/")) as (folder, name):
        if not stat.S_ISREG(os.lstat(name, dir_fd=folder).st_mode):
            return False
        with open(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder), "rb") as file:
            return bool(_BUNDLE.match(file.read(32)))


def _remove(tree: Path, parts: Sequence[str]) -> None:
    """A tracked file; folders that are empty then go, too, as git does it. What is none any more is left alone."""
    try:
        with parent_of(tree, parts) as (folder, name):
            os.unlink(name, dir_fd=folder)
        for depth in range(len(parts) - 1, 0, -1):
            with parent_of(tree, parts[:depth]) as (folder, name):
                os.rmdir(name, dir_fd=folder)
    except OSError:
        return


def _place(sealed: Path, tree: Path, parts: Sequence[str]) -> None:
    """Move one file of the commit into the tree; what stands in its way, untracked, goes."""
    for depth in range(1, len(parts)):
        with parent_of(tree, parts[:depth]) as (folder, name):
            if not _is_folder(folder, name):
                _clear(tree, parts[:depth], folder, name)
                os.mkdir(name, 0o755, dir_fd=folder)
    with parent_of(tree, parts) as (folder, name):
        _clear(tree, parts, folder, name)
        os.rename(sealed.joinpath(*parts), name, dst_dir_fd=folder)


def _is_folder(folder: int, name: str) -> bool:
    try:
        return stat.S_ISDIR(os.lstat(name, dir_fd=folder).st_mode)
    except FileNotFoundError:
        return False


def _clear(tree: Path, parts: Sequence[str], folder: int, name: str) -> None:
    if _is_folder(folder, name):
        folders.remove_tree(tree.joinpath(*parts))
        return
    try:
        os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        return
