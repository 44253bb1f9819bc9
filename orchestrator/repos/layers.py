"""The layer that set-up commands leave over a sealed tree: made ready, checked, and read back as one merged tree.

With root: a second overlay layer over the tree, read through a mount of the kernel's that no path names. Without root nobody can read overlay's
marks, so `upper` begins as a full copy of the tree and afterwards is the whole tree by itself; the marks in it are removed.

`.git` is the sealed one in every case: what set-up did to it is dropped, since nothing of it may be trusted, run, or hold more than the commit.
"""

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from orchestrator.errors import LeakFound
from orchestrator.operations import Manifest
from orchestrator.repos import folders, manifests, mounts
from orchestrator.repos.works import WorkPool

TREE = "tree"
UPPER = "upper"
_WORK = "work"


def make_ready(build: Path, works: WorkPool, *, rooted: bool) -> Path:
    """Make `upper` and `work` beside `tree` in `build`; the path of `upper`. Blocks. Raises OSError."""
    upper = build / UPPER
    works.take(build / _WORK)
    if rooted:
        upper.mkdir(mode=0o755)
    else:
        shutil.copytree(build / TREE, upper, symlinks=True)
    upper.chmod(0o755)
    return upper


def give_back(build: Path, works: WorkPool) -> None:
    """Part with the work folder, however set-up ended. Idempotent. Blocks. Raises OSError."""
    works.give(build / _WORK)


def settle(build: Path, *, rooted: bool) -> tuple[Manifest, tuple[str, ...]]:
    """Check and close what set-up left, its work folder given back: the merged manifest and the template's layers. Blocks.

    Raises LeakFound (a repository inside), RepositoryError (files of odd kinds), OSError.
    """
    upper, tree = build / UPPER, build / TREE
    _drop(upper / ".git")
    _refuse_repositories(upper)
    if rooted:
        _own(upper, 0)
        view = mounts.detached_view([upper, tree])
        try:
            return manifests.take_manifest(view), (UPPER, TREE)
        finally:
            os.close(view)
    _remove_whiteouts(upper)
    shutil.copytree(tree / ".git", upper / ".git", symlinks=True)
    folders.remove_tree(tree)
    return manifests.take_manifest(upper), (UPPER,)


def _entries(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    for where, inner, files in os.walk(folder):
        for name in (*inner, *files):
            path = os.path.join(where, name)
            yield path, os.lstat(path)


def _drop(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        folders.remove_tree(path)
    else:
        path.unlink(missing_ok=True)


def _refuse_repositories(upper: Path) -> None:
    for path, _ in _entries(upper):
        if os.path.basename(path) == ".git":
            place = Path(path).relative_to(upper).parent.as_posix()
            raise LeakFound(
                f"set-up left a git repository in {place}: it may hold what the task hides; remove its .git"
            )


def _own(folder: Path, uid: int) -> None:
    """Give everything to `uid`: layers are id-mapped from one owner, and files of any other would be nobody's."""
    os.chown(folder, uid, uid)
    for path, info in _entries(folder):
        if (info.st_uid, info.st_gid) != (uid, uid):
            os.lchown(path, uid, uid)


def _remove_whiteouts(folder: Path) -> None:
    for path, info in _entries(folder):
        if stat.S_ISCHR(info.st_mode) and info.st_rdev == 0:
            os.unlink(path)
