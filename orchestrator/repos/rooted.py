"""Workspaces where we are root: hard caps and a uid block per box, all made in about fifty milliseconds.

Per box: a sparse ext4 on a loop (upper, work, tmp, home) mounted at `disk`, the template's layers id-mapped to the box's own uid, and over
both an overlay at `workspace`. The id-mapped mounts go as soon as the overlay holds its own clones of them: two mounts and one loop remain.
"""

import errno
import os
import subprocess
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path

from anyio import CapacityLimiter

from orchestrator.errors import Misconfigured, SandboxError, StartFailed
from orchestrator.interfaces import Template
from orchestrator.models import Limits, SandboxId
from orchestrator.repos import folders, idmap, loops, mounts
from orchestrator.repos.folders import BoxFolder
from orchestrator.repos.locks import NamedLocks
from orchestrator.repos.threads import finish
from orchestrator.repos.uids import DEFAULT_REGISTRY, UidBlock, UidRegistry
from orchestrator.repos.workspace import HostPath, Workspace, check_state_dir, remove_stale

_MIB = 1024 * 1024
MIN_DISK_MIB = 4
MIN_INODES = 64
PARALLEL = 4
"""Boxes made or removed at once: the kernel's mount lock serialises more than that anyway."""


class RootWorkspaces:
    """See `orchestrator.repos.workspace.Workspaces`. One owner per deployment; calls for the same box wait for each other."""

    def __init__(self, state_dir: Path, deployment: str, *, registry: Path = DEFAULT_REGISTRY) -> None:
        self._boxes = check_state_dir(state_dir) / folders.check_name(deployment, "deployment") / folders.BOXES
        self._uids = UidRegistry(registry)
        self._limiter = CapacityLimiter(PARALLEL)
        self._locks = NamedLocks()

    async def prepare(
        self, sandbox_id: SandboxId, template: Template | None, limits: Limits, *, expires_at: float | None = None
    ) -> Workspace:
        box = folders.box_folder(self._boxes, sandbox_id)
        check_limits(limits)
        async with self._locks[sandbox_id]:
            await finish(self._limiter, folders.refuse_existing, box)
            try:
                block = await finish(self._limiter, self._prepare, box, template, limits, expires_at)
            except BaseException:
                with suppress(SandboxError):  # the sweeper finds what stays busy; the first error is the one to tell
                    await finish(self._limiter, self._remove, box)
                raise
        return _described(sandbox_id, box, block, template)

    async def remove(self, sandbox_id: SandboxId) -> None:
        box = folders.box_folder(self._boxes, sandbox_id)
        async with self._locks[sandbox_id]:
            await finish(self._limiter, self._remove, box)

    async def owned(self) -> Sequence[SandboxId]:
        return await finish(self._limiter, self._owned)

    async def remove_all_stale(self, keep: Collection[SandboxId]) -> Sequence[SandboxId]:
        removed = await remove_stale(self, keep)
        await finish(self._limiter, self._uids.free_void, self._boxes)
        return removed

    async def usage_bytes(self, sandbox_id: SandboxId) -> int:
        box = folders.box_folder(self._boxes, sandbox_id)
        return await finish(self._limiter, folders.disk_usage_bytes, box.root)

    def _prepare(self, box: BoxFolder, template: Template | None, limits: Limits, expires_at: float | None) -> UidBlock:
        try:
            block = self._claim(box, template, expires_at)
            _make_disk(box, limits, block)
            if template:
                _mount_workspace(box, template, block)
        except (OSError, subprocess.SubprocessError) as error:
            raise StartFailed(f"the box's workspace could not be made: {_why(error)}") from error
        return block

    def _claim(self, box: BoxFolder, template: Template | None, expires_at: float | None) -> UidBlock:
        self._boxes.mkdir(parents=True, exist_ok=True, mode=0o700)
        box.root.mkdir(mode=0o700)
        box.record(template, expires_at)
        block = self._uids.claim(box.root)
        box.agent.mkdir(mode=0o755)
        box.agent.chmod(0o755)  # whatever the umask
        return block

    def _remove(self, box: BoxFolder) -> None:
        """Mounts, then the loop, then the folder, and the uids last: killed anywhere in between, what is left still names its box."""
        try:
            while points := mounts.mounted_below(box.root):
                mounts.unmount(points[0])
            loops.wait_released(box.root)
            folders.remove_tree(box.root)
            self._uids.free(box.root)
        except OSError as error:
            raise SandboxError(f"the workspace of {box.root.name} cannot be removed yet: {_why(error)}") from error

    def _owned(self) -> Sequence[SandboxId]:
        found = {SandboxId(name) for name in _listed(self._boxes)}
        found |= folders.names_below(self._boxes, mounts.mounted_below(self._boxes))
        found |= folders.names_below(self._boxes, list(loops.backing_files().values()))
        return sorted(found)


def check_limits(limits: Limits) -> None:
    """Raises Misconfigured for a disk on which nothing could be made."""
    if limits.disk_mib < MIN_DISK_MIB or limits.inodes < MIN_INODES:
        raise Misconfigured(f"limits: disk_mib must be at least {MIN_DISK_MIB} and inodes at least {MIN_INODES}")


def _make_disk(box: BoxFolder, limits: Limits, block: UidBlock) -> None:
    loops.make_disk(box.image, usable_bytes=limits.disk_mib * _MIB, inodes=limits.inodes)
    box.writable.mkdir(mode=0o700)
    loops.mount_disk(box.image, box.writable)
    for folder, mode, owner in (
        (box.upper, 0o755, block.base),
        (box.work, 0o700, 0),
        (box.tmp, 0o1777, 0),
        (box.home, 0o755, block.base),
    ):
        folder.mkdir()
        folder.chmod(mode)
        os.chown(folder, owner, owner)


def _mount_workspace(box: BoxFolder, template: Template, block: UidBlock) -> None:
    box.workspace.mkdir(mode=0o755)
    lowers = [box.lower(number) for number in range(len(template.lowers))]
    with idmap.user_namespace(template.owner_uid, block.base) as userns:
        for source, lower in zip(template.lowers, lowers, strict=True):
            lower.mkdir()
            idmap.attach_mapped(Path(source), lower, userns)
    mounts.overlay(box.workspace, lowers=lowers, upper=box.upper, work=box.work)
    for lower in lowers:
        mounts.unmount(lower)
        lower.rmdir()


def _described(sandbox_id: SandboxId, box: BoxFolder, block: UidBlock, template: Template | None) -> Workspace:
    workspace = box.workspace if template else box.upper
    return Workspace(
        sandbox_id=sandbox_id,
        root=box.root,
        agent_dir=box.agent,
        workspace_mount=HostPath(path=workspace),
        tmp=box.tmp,
        home=box.home,
        uid_base=block.base,
        uid_count=block.count,
        capped=True,
    )


def _listed(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


def _why(error: OSError | subprocess.SubprocessError) -> str:
    """In words, without paths of the machine."""
    if isinstance(error, FileNotFoundError):
        return "a folder or a program (mkfs.ext4, unshare) is missing; `tiltyard doctor` says which"
    if isinstance(error, OSError):
        name = errno.errorcode.get(error.errno or 0, "unknown error")
        if error.errno in (errno.EPERM, errno.EACCES, errno.ENOSYS):
            return f"{name}: this root may not mount (a container?), or the kernel is older than 5.19; see `tiltyard doctor`"
        return f"{name}: the host's disk is full" if error.errno == errno.ENOSPC else f"{name} ({error.strerror})"
    stderr = getattr(error, "stderr", None) or b""
    return "mkfs.ext4 failed: " + stderr.decode("utf-8", "replace").strip()[-200:]
