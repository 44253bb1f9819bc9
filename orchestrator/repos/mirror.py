"""Mirrors: one bare repository per source, holding the commits that tasks asked for.

A commit is fetched by its name, and only when it is missing; heads and tags are fetched where the server does not give commits by name, and to
resolve tags. Each mirror has a machine-wide lock, held from the fetch to the end of sealing, so that nothing is pruned under a reader.
"""

import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from anyio import CapacityLimiter

from orchestrator.errors import Misconfigured, RepositoryError
from orchestrator.repos import folders, gitcmd
from orchestrator.repos.locks import NamedLocks, file_lock
from orchestrator.repos.pruning import CacheFolders
from orchestrator.repos.sources import Source
from orchestrator.repos.threads import finish

FULL_SHA = re.compile(r"[0-9a-f]{40}")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/+-]{0,199}")
_ABBREVIATION = re.compile(r"[0-9a-f]{7,39}")
_KEPT = "refs/tiltyard/commits/"
"""A ref here says: this commit and all it reaches are in the mirror."""
_FETCH = ("fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--no-auto-maintenance")


PARALLEL = 8
"""Fetches at once; a slow server holds its place until its caller's deadline."""


class Mirrors:
    """The mirrors of one cache."""

    def __init__(self, cache: CacheFolders) -> None:
        self._folders = cache
        self._locks = NamedLocks()
        self._limiter = CapacityLimiter(PARALLEL)

    async def pin(self, source: Source, revision: str, *, deadline: float) -> str:
        """The full name of the commit that `revision` (a SHA, a tag, an abbreviated SHA) means.

        Raises Misconfigured (branch names and expressions, which move), RepositoryError.
        """
        if FULL_SHA.fullmatch(revision):
            return revision
        check_revision(revision)
        async with self._locked(source, deadline):
            return await finish(self._limiter, self._resolve, source, revision, deadline)

    @asynccontextmanager
    async def holding(self, source: Source, sha: str, *, deadline: float) -> AsyncIterator[Path]:
        """The mirror, with commit `sha` and all it reaches in it, locked. Raises RepositoryError."""
        async with self._locked(source, deadline):
            yield await finish(self._limiter, self._ensure, source, sha, deadline)

    @asynccontextmanager
    async def _locked(self, source: Source, deadline: float) -> AsyncIterator[None]:
        lock = self._folders.mirror_lock(source.key)
        what = f"fetching repository {source.name}"
        async with (
            self._locks.holding(source.key, deadline=deadline, what=what),
            file_lock(lock, deadline=deadline, what=what),
        ):
            yield

    def _ensure(self, source: Source, sha: str, deadline: float) -> Path:
        mirror = self._made(source, deadline)
        if not _has_ref(mirror, _KEPT + sha, deadline):
            self._fetch_commit(mirror, source, sha, deadline)
        os.utime(mirror)  # last use, for pruning
        return mirror

    def _made(self, source: Source, deadline: float) -> Path:
        mirror = self._folders.mirror(source.key)
        if source.local is not None and not source.local.exists():
            raise RepositoryError(f"repository {source.name}: there is no such folder; correct the task's repo")
        if not mirror.exists():
            self._init(mirror, source.key, deadline)
        _clear_leftovers(mirror)
        return mirror

    def _init(self, mirror: Path, key: str, deadline: float) -> None:
        self._folders.make()
        for leftover in self._folders.leftovers(key):
            folders.try_remove_tree(leftover)
        fresh = self._folders.fresh(key)
        try:
            fresh.mkdir()
            gitcmd.run(fresh, "init", "--quiet", "--bare", "--template=", deadline=deadline)
            fresh.rename(mirror)
        finally:
            folders.try_remove_tree(fresh)

    def _fetch_commit(self, mirror: Path, source: Source, sha: str, deadline: float) -> None:
        kept = _KEPT + sha
        by_name = _fetch(mirror, source, [f"{sha}:{kept}"], deadline)
        if by_name.status == 0:
            return _check_fetched(mirror, source, sha, deadline)
        if not is_missing_commit(by_name.stderr):
            raise gitcmd.failed(by_name, "fetch", source)
        self._fetch_names(mirror, source, deadline)
        if commit_named(mirror, sha, deadline) != sha:
            raise RepositoryError(
                f"repository {source.name} has no commit {sha}: push it there, or correct the task's commit"
            )
        gitcmd.run(mirror, "update-ref", kept, sha, deadline=deadline)
        return None

    def _fetch_names(self, mirror: Path, source: Source, deadline: float) -> None:
        names = ["+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"]
        result = _fetch(mirror, source, ["--prune", *names], deadline)
        if result.status:
            raise gitcmd.failed(result, "fetch", source)

    def _resolve(self, source: Source, revision: str, deadline: float) -> str:
        mirror = self._made(source, deadline)
        found = _pinned(mirror, revision, deadline)
        if found is None:
            self._fetch_names(mirror, source, deadline)
            found = _pinned(mirror, revision, deadline)
        if found is not None:
            return found
        head = commit_named(mirror, f"refs/heads/{revision}", deadline)
        if head is not None:
            raise Misconfigured(f"commit {revision!r} is a branch, which moves: write the full SHA, today {head}")
        raise RepositoryError(f"repository {source.name} has no commit or tag {revision!r}: correct the task's commit")


def check_revision(revision: str) -> None:
    """Raises Misconfigured for what is neither a SHA nor could be a tag's name."""
    bad = not _REVISION.fullmatch(revision) or ".." in revision or revision.endswith((".lock", "/", "."))
    if bad or revision in ("HEAD", "FETCH_HEAD", "ORIG_HEAD"):
        raise Misconfigured(f"commit {revision[:80]!r}: write a full SHA (40 hex digits), or a tag")


def is_missing_commit(stderr: str) -> bool:
    """Whether a fetch by SHA failed because the other side has no such object, or does not give objects by name."""
    words = ("not our ref", "unadvertised object", "couldn't find remote ref", "Cannot obtain needed object")
    return any(word in stderr for word in words)


def _check_fetched(mirror: Path, source: Source, sha: str, deadline: float) -> None:
    """git leaves out, with no more than a warning, a ref whose history it would have to cut off; and any object can be fetched by name."""
    kept = _KEPT + sha
    if not _has_ref(mirror, kept, deadline):
        raise RepositoryError(f"repository {source.name} is a shallow clone: run `git fetch --unshallow` in it")
    if commit_named(mirror, kept, deadline) != sha:
        gitcmd.run(mirror, "update-ref", "-d", kept, deadline=deadline)
        raise RepositoryError(f"{sha} in repository {source.name} is not a commit: correct the task's commit")


def _fetch(mirror: Path, source: Source, arguments: list[str], deadline: float) -> gitcmd.GitResult:
    options = [argument for argument in arguments if argument.startswith("--")]
    refs = [argument for argument in arguments if not argument.startswith("--")]
    command = (*_FETCH, *options, "--", source.fetch_from, *refs)
    return gitcmd.attempt(mirror, *command, deadline=deadline, config=source.secret_config)


def _pinned(mirror: Path, revision: str, deadline: float) -> str | None:
    if found := commit_named(mirror, f"refs/tags/{revision.removeprefix('refs/tags/')}", deadline):
        return found
    return commit_named(mirror, revision, deadline) if _ABBREVIATION.fullmatch(revision) else None


def commit_named(mirror: Path, name: str, deadline: float) -> str | None:
    """The full name of the commit that `name` means in `mirror`; None where there is none."""
    command = ("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
    result = gitcmd.attempt(mirror, *command, deadline=deadline)
    return result.text if result.status == 0 and FULL_SHA.fullmatch(result.text) else None


def _has_ref(mirror: Path, name: str, deadline: float) -> bool:
    return gitcmd.attempt(mirror, "show-ref", "--verify", "--quiet", name, deadline=deadline).status == 0


def _clear_leftovers(mirror: Path) -> None:
    """Locks and half packs of a git that was killed. The mirror's own lock is held, and git dies with us, so nobody is using them."""
    for pattern in ("*.lock", "refs/**/*.lock", "objects/pack/tmp_*", "objects/tmp_*", "objects/??/tmp_*"):
        for path in mirror.glob(pattern):
            folders.remove_tree(path) if path.is_dir() else path.unlink(missing_ok=True)
