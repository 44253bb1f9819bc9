"""The cache of templates: each sealed repository is built once per machine and shared by every box over it.

Layout on disk: `orchestrator.repos.pruning.CacheFolders`.
"""

import errno
import hashlib
import os
import tarfile
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import structlog
from anyio import CapacityLimiter

from orchestrator.errors import Misconfigured, RepositoryError
from orchestrator.interfaces import Template
from orchestrator.models import IMAGE_WORKSPACE_FORM, Network, Task, canonical_json
from orchestrator.operations import Manifest
from orchestrator.repos import folders, imaged, layers, manifests, pruning, seal, stored, syscalls
from orchestrator.repos.images import Images, SetupRunner
from orchestrator.repos.locks import NamedLocks, file_lock
from orchestrator.repos.lru import CacheEntry
from orchestrator.repos.mirror import FULL_SHA, Mirrors
from orchestrator.repos.pruning import CacheFolders
from orchestrator.repos.sources import Source, parse_source
from orchestrator.repos.threads import finish
from orchestrator.repos.unpacking import Caps, unpack
from orchestrator.repos.works import WorkPool
from orchestrator.repos.workspace import check_state_dir

PARALLEL = 4
"""Blocking jobs of builds at once; sealing is bound by the processor. What is built already waits for none of them."""
_REMEMBERED = 64
"""Templates kept in memory with their manifests."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that decides a template's content."""

    source: Source | None
    """None: the repository that the image has at `workdir`."""
    sha: str
    """Of an image's repository: empty where the task leaves it to the image."""
    history: str
    image: str
    setup: tuple[str, ...]
    network: Network
    """Of the set-up commands."""
    workdir: str

    @property
    def name(self) -> str:
        """Of the repository, for people."""
        return self.source.name if self.source else self.workdir

    @property
    def key(self) -> str:
        """Without set-up commands the image has no say in a tree that it does not hold, so tasks with different images share it."""
        parts: dict[str, object] = {"format": stored.FORMAT, "commit": self.sha, "history": self.history}
        if self.source:
            parts |= {"repository": self.source.key}
        else:
            parts |= {"image": self.image, "workspace": self.workdir}
        if self.setup:
            network: object = asdict(self.network) if self.network.allow else "none"
            parts |= {"image": self.image, "setup": list(self.setup), "network": network}
        return hashlib.sha256(canonical_json(parts).encode("utf-8", "surrogatepass")).hexdigest()[:40]


class TemplateCache:
    """Implements `interfaces.Templates`. Several caches, in this or other processes, may share one root.

    Templates belong to the user this runs as; with root, boxes see them id-mapped.
    """

    def __init__(self, root: Path, *, setup: SetupRunner, images: Images) -> None:
        self._folders = CacheFolders(check_state_dir(root))
        self._setup = setup
        self._images = images
        self._rooted = os.geteuid() == 0
        self._mirrors = Mirrors(self._folders)
        self._works = WorkPool(self._folders.works)
        self._locks = NamedLocks()
        self._limiter = CapacityLimiter(PARALLEL)
        self._remembered: OrderedDict[str, Template] = OrderedDict()

    async def template(self, task: Task, *, deadline: float) -> Template:
        """See `interfaces.Templates`. The first caller builds, by its own deadline; who waits takes over if that caller is cancelled.

        Raises RepositoryError, LeakFound, Misconfigured; whatever the resolver and the set-up runner raise.
        """
        if task.history not in seal.HISTORIES:
            raise Misconfigured(f"history {task.history!r}: use one of {', '.join(seal.HISTORIES)}")
        image = await self._images.image_id(task.image)
        source, sha = await self._origin(task, deadline)
        plan = Plan(
            source=source,
            sha=sha,
            history=task.history,
            image=image,
            setup=task.setup,
            network=task.setup_network,
            workdir=task.workdir,
        )
        if found := await self._found(plan):
            return found
        async with self._locked(plan.key, deadline):
            if found := await self._found(plan):
                return found
            await self._build(plan, deadline)
            if found := await self._found(plan):
                return found
        raise RepositoryError(
            "the template was removed as soon as it was built: is another process clearing the cache?"
        )

    async def _origin(self, task: Task, deadline: float) -> tuple[Source | None, str]:
        """Where the tree comes from, and the commit's full name."""
        if not task.workspace:
            source = await finish(None, parse_source, task.repo)
            return source, await self._mirrors.pin(source, task.commit, deadline=deadline)
        if task.repo:
            raise Misconfigured("a task has repo or workspace, not both")
        if not IMAGE_WORKSPACE_FORM.fullmatch(task.workspace):
            raise Misconfigured(
                f"workspace {task.workspace!r}: write image:/path, absolute, in normal form, of its own"
            )
        if task.commit and not FULL_SHA.fullmatch(task.commit):
            raise Misconfigured(
                "commit: of a repository inside an image, write the full SHA (40 hex digits) or leave it out"
            )
        return None, task.commit

    async def prune(self, max_bytes: int, in_use: Collection[str]) -> Sequence[CacheEntry]:
        """Remove the least recently used mirrors and templates beyond `max_bytes`, and leftovers of killed builds; what was removed.

        `in_use`: keys of templates that live boxes lie over, in every deployment that shares this root (`folders.templates_in_use`).
        """
        return await finish(self._limiter, pruning.prune, self._folders, max_bytes, in_use)

    async def sweep(self) -> None:
        """Remove what killed builds left. Builds under way, in any process, are not touched."""
        await finish(self._limiter, pruning.sweep, self._folders)

    @asynccontextmanager
    async def _locked(self, key: str, deadline: float) -> AsyncIterator[None]:
        what = "building the template"
        async with (
            self._locks.holding(key, deadline=deadline, what=what),
            file_lock(self._folders.template_lock(key), deadline=deadline, what=what),
        ):
            yield

    async def _found(self, plan: Plan) -> Template | None:
        template = await finish(None, self._load, plan.key)
        if template is None:
            return None
        if not template.image:
            return replace(template, image=plan.image)
        await self._check_image(template)
        return template

    async def _check_image(self, template: Template) -> None:
        try:
            await self._images.image_id(template.image)
        except Misconfigured as error:
            raise RepositoryError(
                f"the image that set-up made for template {template.key} is gone from the engine: "
                "remove the template's folder, and it will be built anew"
            ) from error

    def _load(self, key: str) -> Template | None:
        folder = self._folders.template(key)
        try:
            os.utime(folder)  # last use, for pruning
        except FileNotFoundError:
            self._remembered.pop(key, None)
            return None
        template = self._remembered.pop(key, None) or stored.read(folder)
        if template:
            self._remembered[key] = template
            while len(self._remembered) > _REMEMBERED:
                self._remembered.popitem(last=False)
        return template

    async def _build(self, plan: Plan, deadline: float) -> None:
        build = self._folders.fresh(plan.key)
        started = time.monotonic()
        try:
            await finish(self._limiter, self._begin, plan.key, build)
            sha, manifest = await self._tree(plan, build, deadline)
            image: str | None = None
            lowers: tuple[str, ...] = (layers.TREE,)
            if plan.setup:
                image, manifest, lowers = await self._set_up(plan, build, deadline)
            await finish(self._limiter, self._publish, replace(plan, sha=sha), plan.key, build, image, manifest, lowers)
        except OSError as error:
            raise _building_failed(error) from error
        finally:
            await finish(self._limiter, folders.try_remove_tree, build)
        log.info(
            "template_built",
            key=plan.key,
            repository=plan.name,
            commit=sha,
            took_s=time.monotonic() - started,
        )

    async def _tree(self, plan: Plan, build: Path, deadline: float) -> tuple[str, Manifest]:
        """The sealed tree in `build`: its commit's full name, and its manifest."""
        tree = build / layers.TREE
        if plan.source is None:
            return await self._tree_of_image(plan, build, deadline)
        async with self._mirrors.holding(plan.source, plan.sha, deadline=deadline) as mirror:
            manifest = await finish(
                self._limiter, seal.seal, mirror, plan.sha, tree, history=plan.history, deadline=deadline
            )
        return plan.sha, manifest

    async def _tree_of_image(self, plan: Plan, build: Path, deadline: float) -> tuple[str, Manifest]:
        tree = build / layers.TREE
        tree.mkdir(mode=0o755)
        unpacked = partial(unpack, target=tree, caps=Caps())
        await self._images.read_folder(plan.image, plan.workdir, unpacked, timeout_s=_left_s(deadline))
        made = await finish(
            self._limiter, imaged.seal_in_place, build, plan.sha, history=plan.history, deadline=deadline
        )
        await self._warn_of_copies(plan, deadline)
        return made

    async def _warn_of_copies(self, plan: Plan, deadline: float) -> None:
        """What the mount does not cover is the image's, and stays in reach of a box."""
        elsewhere = partial(imaged.repositories, but=plan.workdir)
        try:
            found = await self._images.read_folder(plan.image, "/", elsewhere, timeout_s=_left_s(deadline))
        except tarfile.TarError as error:
            raise RepositoryError("the image could not be read: try again") from error
        if found:
            log.warning(
                "image_has_other_repositories", image=plan.image, paths=found[: imaged.MAX_TOLD], count=len(found)
            )

    async def _set_up(self, plan: Plan, build: Path, deadline: float) -> tuple[str, Manifest, tuple[str, ...]]:
        upper = await finish(self._limiter, layers.make_ready, build, self._works, rooted=self._rooted)
        timeout_s = deadline - time.monotonic()
        if timeout_s <= 0:
            raise RepositoryError("no time was left for the set-up commands: try again, or allow more time")
        try:
            image = await self._setup.run_setup(
                image=plan.image,
                commands=plan.setup,
                tree=build / layers.TREE,
                upper=upper,
                tag=f"tiltyard-setup:{plan.key}",
                network=plan.network,
                timeout_s=timeout_s,
                workdir=plan.workdir,
            )
        finally:
            await finish(self._limiter, layers.give_back, build, self._works)
        manifest, lowers = await finish(self._limiter, layers.settle, build, rooted=self._rooted)
        return image, manifest, lowers

    def _begin(self, key: str, build: Path) -> None:
        """Under the key's lock: whatever else is being built under it was left by a killed process."""
        self._folders.make()
        for leftover in self._folders.leftovers(key):
            folders.try_remove_tree(leftover)
        build.mkdir(mode=0o700)

    def _publish(
        self, plan: Plan, key: str, build: Path, image: str | None, manifest: Manifest, lowers: tuple[str, ...]
    ) -> None:
        record = stored.StoredTemplate(
            format=stored.FORMAT,
            key=key,
            repository=plan.name,
            commit=plan.sha,
            image=image,
            lowers=lowers,
            owner_uid=os.geteuid(),
            files=manifests.to_stored(manifest),
        )
        stored.write(build, record, folders.disk_usage_bytes(build))
        fd = os.open(build, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            syscalls.syncfs(fd)  # a template that outlives a fall of the machine must have its bytes
            build.rename(self._folders.template(key))
        finally:
            os.close(fd)


def _left_s(deadline: float) -> float:
    return max(deadline - time.monotonic(), 0.0)


def _building_failed(error: OSError) -> RepositoryError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RepositoryError("the disk is full: free space, or prune mirrors and templates")
    name = errno.errorcode.get(error.errno or 0, "unknown error")
    return RepositoryError(f"the template could not be built: {name} ({error.strerror})")
