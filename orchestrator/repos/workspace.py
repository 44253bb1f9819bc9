"""A box's writable places: the copy-on-write workspace, /tmp, home, and the folder of its agent.

Two forms, one Protocol: `RootWorkspaces` (hard caps, a uid block per box) and `PlainWorkspaces` (no root: no mounts of ours).
Everything of a box lies under `<state_dir>/<deployment>/boxes/<sandbox_id>/`, so that a sweeper finds it by name.
"""

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import structlog

from orchestrator.errors import Misconfigured, TiltyardError
from orchestrator.interfaces import Template
from orchestrator.models import Limits, SandboxId

log = structlog.get_logger(__name__)


MAX_SOCKET_PATH = 107
"""sun_path of unix(7), less its terminating zero."""
LONGEST_SANDBOX_ID = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class HostPath:
    """Bind this folder of the host, read-write."""

    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class OverlayVolume:
    """A docker volume of the local driver: `type=overlay`, `device=overlay`, `o=options`. `lowers` are topmost first."""

    lowers: tuple[str, ...]
    upper: Path
    work: Path

    @property
    def options(self) -> str:
        return f"lowerdir={':'.join(self.lowers)},upperdir={self.upper},workdir={self.work},redirect_dir=on"


@dataclass(frozen=True, slots=True, kw_only=True)
class Workspace:
    """What a backend mounts into a box. `tmp` and `home` are folders of the host to bind read-write.

    Principal k of the box is uid = gid = `uid_base + k`, k < `uid_count`; `workspace_mount`, `home` belong to `uid_base`, `tmp` is 1777.
    `agent_dir` (root's, 0755, outside every cap) is for /run/tiltyard. `capped`: bytes and inodes stop hard at the box's limits.
    """

    sandbox_id: SandboxId
    root: Path
    agent_dir: Path
    workspace_mount: HostPath | OverlayVolume
    tmp: Path
    home: Path
    uid_base: int
    uid_count: int
    capped: bool


class Workspaces(Protocol):
    """Makes, finds and removes the workspaces of one deployment on this machine."""

    async def prepare(
        self, sandbox_id: SandboxId, template: Template | None, limits: Limits, *, expires_at: float | None = None
    ) -> Workspace:
        """Make the box's folders and mounts; `template=None`: an empty workspace. `expires_at` (wall clock) is only recorded.

        Raises StartFailed (nothing is left behind), Misconfigured (limits or paths that cannot be honoured).
        """
        ...

    async def remove(self, sandbox_id: SandboxId) -> None:
        """Take everything of the box away; idempotent, complete when it returns. Raises SandboxError when the kernel keeps it busy: try again."""
        ...

    async def owned(self) -> Sequence[SandboxId]:
        """Every box that left a folder, a mount or a loop device, whoever made it and however it died. Sorted."""
        ...

    async def remove_all_stale(self, keep: Collection[SandboxId]) -> Sequence[SandboxId]:
        """Remove every owned box but `keep`; what was removed. A box that will not go is logged and left for the next sweep."""
        ...

    async def usage_bytes(self, sandbox_id: SandboxId) -> int:
        """Disk space the box holds now; 0 for an unknown one."""
        ...


async def remove_stale(workspaces: Workspaces, keep: Collection[SandboxId]) -> Sequence[SandboxId]:
    """`remove_all_stale` of both forms."""
    removed = []
    for sandbox_id in await workspaces.owned():
        if sandbox_id in keep:
            continue
        try:
            await workspaces.remove(sandbox_id)
            removed.append(sandbox_id)
        except TiltyardError as error:
            log.warning("stale_box_stays", sandbox_id=sandbox_id, error=error.message)
    return removed


def check_state_dir(state_dir: Path) -> Path:
    """`state_dir`, resolved. Raises Misconfigured for characters that overlay and docker options cannot carry."""
    resolved = state_dir.resolve()
    if set(str(resolved)) & set(':,\\"\n '):
        raise Misconfigured(
            "the state folder's path holds one of : , \\ \" or a space, which mount options cannot carry"
        )
    return resolved


def check_socket_room(state_dir: Path, deployment: str) -> None:
    """Raises Misconfigured when a box's socket would lie deeper than the kernel can name, before any box is made."""
    deepest = state_dir.resolve() / deployment / "boxes" / ("x" * LONGEST_SANDBOX_ID) / "agent" / "agent.sock"
    over = len(str(deepest).encode()) - MAX_SOCKET_PATH
    if over > 0:
        raise Misconfigured(
            f"the state folder's path is {over} bytes too long for the unix sockets below it: "
            "choose a shorter TILTYARD_STATE_DIR or TILTYARD_DEPLOYMENT"
        )


def make_workspaces(state_dir: Path, deployment: str) -> Workspaces:
    """The form that this process's rights allow. Raises Misconfigured for a bad folder or deployment name."""
    check_socket_room(check_state_dir(state_dir), deployment)
    from orchestrator.repos.plain import PlainWorkspaces
    from orchestrator.repos.rooted import RootWorkspaces

    return RootWorkspaces(state_dir, deployment) if os.geteuid() == 0 else PlainWorkspaces(state_dir, deployment)
