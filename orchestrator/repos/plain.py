"""Workspaces without root: plain folders, no mounts of ours, one fixed uid; space is watched, not capped.

The engine mounts the overlay (a volume of type overlay), so that the repository is shared copy-on-write all the same.
"""

import os
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path

from anyio import CapacityLimiter

from orchestrator.errors import Misconfigured, SandboxError, StartFailed
from orchestrator.interfaces import Template
from orchestrator.models import Limits, SandboxId
from orchestrator.repos import folders
from orchestrator.repos.folders import BoxFolder
from orchestrator.repos.locks import NamedLocks
from orchestrator.repos.space import held, limit_of
from orchestrator.repos.threads import finish
from orchestrator.repos.works import WorkPool
from orchestrator.repos.workspace import HostPath, OverlayVolume, Workspace, check_state_dir, remove_stale

PARALLEL = 4


class PlainWorkspaces:
    """See `orchestrator.repos.workspace.Workspaces`. `capped` is False: `orchestrator.repos.watch` ends boxes that outgrow their limits."""

    def __init__(self, state_dir: Path, deployment: str) -> None:
        own = check_state_dir(state_dir) / folders.check_name(deployment, "deployment")
        self._boxes = own / folders.BOXES
        self._works = WorkPool(own / "works")
        self._limiter = CapacityLimiter(PARALLEL)
        self._looking = CapacityLimiter(1)
        self._locks = NamedLocks()
        self._overfull: set[SandboxId] = set()
        """What looks of this process found: a full disk may have no room for the mark."""

    async def prepare(
        self, sandbox_id: SandboxId, template: Template | None, limits: Limits, *, expires_at: float | None = None
    ) -> Workspace:
        box = folders.box_folder(self._boxes, sandbox_id)
        if template and template.owner_uid != os.geteuid():
            raise Misconfigured("the template belongs to another user: without root, templates and boxes share one uid")
        async with self._locks[sandbox_id]:
            await finish(self._limiter, folders.refuse_existing, box)
            try:
                await finish(self._limiter, self._prepare, box, template, limits, expires_at)
            except OSError as error:
                await finish(self._limiter, self._remove, box)
                raise StartFailed(f"the box's folders could not be made: {error.strerror}") from error
            except BaseException:
                await finish(self._limiter, self._remove, box)
                raise
        return _described(sandbox_id, box, template)

    async def remove(self, sandbox_id: SandboxId) -> None:
        box = folders.box_folder(self._boxes, sandbox_id)
        async with self._locks[sandbox_id]:
            await finish(self._limiter, self._remove, box)
            self._overfull.discard(sandbox_id)

    async def owned(self) -> Sequence[SandboxId]:
        def listed() -> list[SandboxId]:
            return sorted(SandboxId(name) for name in os.listdir(self._boxes)) if self._boxes.is_dir() else []

        return await finish(self._limiter, listed)

    async def remove_all_stale(self, keep: Collection[SandboxId]) -> Sequence[SandboxId]:
        return await remove_stale(self, keep)

    async def usage_bytes(self, sandbox_id: SandboxId) -> int:
        box = folders.box_folder(self._boxes, sandbox_id)
        return await finish(self._limiter, folders.disk_usage_bytes, box.writable)

    async def overfull(self) -> Sequence[SandboxId]:
        """See `orchestrator.repos.watch.Watched`. One look at a time, beside everything else that is done here."""
        return await finish(self._looking, self._look)

    async def was_overfull(self, sandbox_id: SandboxId) -> bool:
        """Whether a look, of this process or an earlier one, found the box beyond its limits."""
        box = folders.box_folder(self._boxes, sandbox_id)
        return sandbox_id in self._overfull or await finish(self._limiter, box.overfull.exists)

    def _look(self) -> Sequence[SandboxId]:
        names = sorted(os.listdir(self._boxes)) if self._boxes.is_dir() else []
        self._overfull.intersection_update(names)
        return [SandboxId(name) for name in names if self._outgrown(BoxFolder(self._boxes / name))]

    def _outgrown(self, box: BoxFolder) -> bool:
        """The mark stays until the box is removed: who asks why it ended must hear it."""
        name = SandboxId(box.root.name)
        if name in self._overfull or box.overfull.exists():
            return True
        record = folders.read_record(box.root)
        if record is None or record.space is None or held(box.writable, record.space).within(record.space):
            return False
        self._overfull.add(name)
        with suppress(OSError):
            box.overfull.touch()
        return True

    def _prepare(self, box: BoxFolder, template: Template | None, limits: Limits, expires_at: float | None) -> None:
        self._boxes.mkdir(parents=True, exist_ok=True, mode=0o700)
        box.root.mkdir(mode=0o700)
        box.record(template, expires_at, limit_of(limits))
        box.writable.mkdir(mode=0o755)
        self._works.take(box.work)
        for folder, mode in ((box.agent, 0o755), (box.upper, 0o755), (box.tmp, 0o1777), (box.home, 0o755)):
            folder.mkdir()
            folder.chmod(mode)

    def _remove(self, box: BoxFolder) -> None:
        try:
            self._works.give(box.work)
            folders.remove_tree(box.root)
        except OSError as error:
            raise SandboxError(
                f"files of box {box.root.name} belong to another user ({error.strerror}): remove its container and volume first"
            ) from error


def _described(sandbox_id: SandboxId, box: BoxFolder, template: Template | None) -> Workspace:
    mount: HostPath | OverlayVolume = HostPath(path=box.upper)
    if template:
        mount = OverlayVolume(lowers=template.lowers, upper=box.upper, work=box.work)
    return Workspace(
        sandbox_id=sandbox_id,
        root=box.root,
        agent_dir=box.agent,
        workspace_mount=mount,
        tmp=box.tmp,
        home=box.home,
        uid_base=os.geteuid(),
        uid_count=1,
        capped=False,
    )
