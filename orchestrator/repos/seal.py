"""Sealing: a work tree whose `.git` holds exactly what one commit reaches, one ref, and nothing else; asserted object by object.

Not used, since each leaks: `clone` (annotated tags come along, local clones hard-link everything), `archive` (obeys export-ignore and export-subst).
Submodules and Git LFS pointers are refused: their content lies elsewhere, and boxes have no network to fetch it.
"""

import os
import re
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from orchestrator.errors import LeakFound, Misconfigured, RepositoryError
from orchestrator.operations import Manifest, ManifestFile
from orchestrator.repos import gitcmd, manifests

DEFAULT_TIMEOUT_S = 600.0
HISTORIES = ("full", "orphan")

_CONFIG = """\
[core]
\trepositoryformatversion = 0
\tfilemode = true
\tbare = false
\tlogAllRefUpdates = true
\tcheckStat = minimal
\ttrustctime = false
[gc]
\tauto = 0
[maintenance]
\tauto = false
[user]
\tname = Agent
\temail = agent@tiltyard.invalid
"""
"""checkStat and trustctime: in a box every file has another owner and inode than when the index was written, yet the same bytes and time.
No gc: it would write the whole history anew into the box's capped disk."""

_ALLOWED = re.compile(
    r"HEAD|config|index|refs/heads/main|objects/pack/pack-[0-9a-f]{40}\.(pack|idx|rev)|objects/[0-9a-f]{2}/[0-9a-f]{38}"
)
"""Every file that a sealed `.git` may hold: no logs, packed-refs, ORIG_HEAD, FETCH_HEAD, shallow, alternates, hooks, info, bundles."""

_EARLIEST_S = 315_532_800
"""1980-01-01: zip files, and so wheels, know no earlier time."""
_COMMITTED = re.compile(rb"^committer .*> (\d{1,18}) [+-]\d{4}$", re.MULTILINE)
_LFS_HEAD = b"version https://git-lfs.github.com/spec/"
_LFS_MAX_BYTES = 1024
_ORPHAN_NAME = "tiltyard"
_ORPHAN_EMAIL = "tiltyard@tiltyard.invalid"


def seal(mirror: Path, commit: str, target: Path, *, history: str = "full", deadline: float | None = None) -> Manifest:
    """Make `target` (absent, or an empty folder) the work tree of `commit`, from `mirror`. Blocks; the manifest of the tree.

    `history="orphan"`: one new commit with the same tree. Files carry the commit's time, so that `git status` re-reads none of them.
    Raises LeakFound, RepositoryError (submodules, LFS, odd names, git's failures), Misconfigured, OSError.
    """
    limit = time.monotonic() + DEFAULT_TIMEOUT_S if deadline is None else deadline
    if history not in HISTORIES:
        raise Misconfigured(f"history {history!r}: use one of {', '.join(HISTORIES)}")
    _refuse_submodules(mirror, commit, limit)
    sealed = commit if history == "full" else _orphan(mirror, commit, limit)
    _check_out(mirror, sealed, target, limit)
    _settle_times(target, sealed, limit)
    assert_sealed(target, sealed, deadline=limit)
    manifest = manifests.take_manifest(target)
    _refuse_lfs(target, manifest, limit)
    return manifest


def _check_out(mirror: Path, sha: str, target: Path, deadline: float) -> None:
    target.mkdir(exist_ok=True, mode=0o755)
    target.chmod(0o755)
    gitcmd.run(target, "init", "--quiet", "--template=", "--initial-branch=main", deadline=deadline)
    (target / ".git" / "config").write_text(_CONFIG, encoding="utf-8")
    fetch = ("fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--update-head-ok", "--no-auto-maintenance")
    gitcmd.run(target, *fetch, "--", str(mirror), f"{sha}:refs/heads/main", deadline=deadline)
    gitcmd.run(target, "read-tree", "-u", "-m", "HEAD", deadline=deadline)
    for empty in ("refs/tags", "objects/info"):
        (target / ".git" / empty).mkdir(parents=True, exist_ok=True)


def assert_sealed(tree: Path, sha: str, *, deadline: float) -> None:
    """Raises LeakFound unless `.git` holds only allowed files, one ref at `sha`, and the objects `sha` reaches."""
    strangers = sorted(name for name in _git_files(tree / ".git") if not _ALLOWED.fullmatch(name))
    if strangers:
        raise LeakFound(f"the sealed repository holds files it must not: {', '.join(strangers[:5])}")
    if (tree / ".git" / "config").read_text(encoding="utf-8") != _CONFIG:
        raise LeakFound("the sealed repository's config is not the one that was written")
    refs = gitcmd.run(tree, "for-each-ref", "--format=%(refname) %(objectname)", deadline=deadline).text
    if refs != f"refs/heads/main {sha}":
        raise LeakFound(f"the sealed repository holds other refs than its one: {refs[:200]}")
    reached = _lines(gitcmd.run(tree, "rev-list", "--objects", "--no-object-names", sha, deadline=deadline))
    every = ("cat-file", "--batch-check=%(objectname)", "--batch-all-objects", "--unordered")
    held = _lines(gitcmd.run(tree, *every, deadline=deadline))
    if held != reached:
        extra, lacking = len(held - reached), len(reached - held)
        raise LeakFound(f"the sealed repository holds {extra} objects its commit does not reach, and lacks {lacking}")


def _lines(result: gitcmd.GitResult) -> frozenset[bytes]:
    return frozenset(result.stdout.split())


def _git_files(folder: Path) -> Iterator[str]:
    for where, folders, files in os.walk(folder):
        linked = [name for name in folders if (Path(where) / name).is_symlink()]
        for name in (*files, *linked):
            yield (Path(where) / name).relative_to(folder).as_posix()


def _refuse_submodules(mirror: Path, commit: str, deadline: float) -> None:
    listing = gitcmd.run(mirror, "ls-tree", "-r", "-z", "--full-tree", commit, deadline=deadline)
    paths = [record.split(b"\t", 1)[1] for record in listing.records() if record.startswith(b"160000 ")]
    if paths:
        shown = ", ".join(path.decode("utf-8", "backslashreplace") for path in paths[:5])
        raise RepositoryError(
            f"the commit holds submodules ({shown}), which are not supported: vendor their files in a commit"
        )


def _orphan(mirror: Path, commit: str, deadline: float) -> str:
    """One commit with the tree and time of `commit`; made in the mirror, the same name every time."""
    when = f"{_commit_time(mirror, commit, deadline)} +0000"
    identity = {
        f"GIT_{role}_{part}": value
        for role in ("AUTHOR", "COMMITTER")
        for part, value in (("NAME", _ORPHAN_NAME), ("EMAIL", _ORPHAN_EMAIL), ("DATE", f"@{when}"))
    }
    command = ("commit-tree", f"{commit}^{{tree}}", "-m", "Start of the task")
    return gitcmd.run(mirror, *command, deadline=deadline, extra_environment=identity).text


def _commit_time(repository: Path, commit: str, deadline: float) -> int:
    """Committer's time in seconds, kept between 1980 and now: commits may claim any. Read from the commit alone: its parents may be missing."""
    raw = gitcmd.run(repository, "cat-file", "commit", commit, deadline=deadline).stdout
    found = _COMMITTED.search(raw.partition(b"\n\n")[0])
    claimed = int(found[1]) if found else _EARLIEST_S
    return min(max(claimed, _EARLIEST_S), int(time.time()) - 10)


def _settle_times(tree: Path, sha: str, deadline: float) -> None:
    """Give everything the commit's time and bring the index up to it: entries older than their index are never re-read."""
    seconds = _commit_time(tree, sha, deadline)
    for where, folders, files in os.walk(tree):
        if where == str(tree):
            folders.remove(".git")
        for name in (*files, *folders):
            os.utime(os.path.join(where, name), (seconds, seconds), follow_symlinks=False)
    os.utime(tree, (seconds, seconds))
    gitcmd.run(tree, "update-index", "-q", "--really-refresh", deadline=deadline)


def _refuse_lfs(tree: Path, manifest: Manifest, deadline: float) -> None:
    suspects = [
        path for path, entry in manifest.items() if isinstance(entry, ManifestFile) and _is_pointer(tree / path, entry)
    ]
    for start in range(0, len(suspects), 500):
        chosen = suspects[start : start + 500]
        found = gitcmd.run(tree, "check-attr", "-z", "filter", "--", *chosen, deadline=deadline)
        values = list(found.records())
        pointers = [path for path, value in zip(values[0::3], values[2::3], strict=True) if value == b"lfs"]
        if pointers:
            shown = ", ".join(path.decode("utf-8", "backslashreplace") for path in pointers[:5])
            raise RepositoryError(
                f"the commit holds Git LFS pointers ({shown}), which are not supported: commit the files"
            )


def _is_pointer(path: Path, entry: ManifestFile) -> bool:
    if entry.size_bytes > _LFS_MAX_BYTES:
        return False
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return stat.S_ISREG(os.fstat(fd).st_mode) and os.read(fd, len(_LFS_HEAD)) == _LFS_HEAD
    finally:
        os.close(fd)
