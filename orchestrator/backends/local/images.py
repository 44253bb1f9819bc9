"""The one image there is, this machine's own programs, and set-up commands run over them in a throw-away box."""

import hashlib
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, TypeVar

from anyio import CapacityLimiter

from orchestrator.agent.client import AgentClient
from orchestrator.backends.finish import finish as finish_task
from orchestrator.backends.local import box, cgroups
from orchestrator.backends.local.backend import read_parts
from orchestrator.backends.local.box import Ground
from orchestrator.backends.local.root import forget_unfinished
from orchestrator.backends.local.settings import LocalSettings
from orchestrator.backends.local.spec import check_image, check_workdir
from orchestrator.errors import Misconfigured, RepositoryError, StartFailed, TiltyardError
from orchestrator.interfaces import SandboxSpec
from orchestrator.models import (
    DEFAULT_WORKDIR,
    CallKey,
    Epoch,
    JobId,
    Limits,
    Network,
    OpId,
    PendingCall,
    RolloutKey,
    SandboxId,
    TraceId,
)
from orchestrator.operations import Exec, ExecResult, Output
from orchestrator.repos import idmap, mounts
from orchestrator.repos.folders import BOXES, BoxFolder
from orchestrator.repos.threads import finish
from orchestrator.repos.workspace import HostPath, Workspace, Workspaces, make_workspaces, remove_stale

T = TypeVar("T")
SETUPS = "setups"
SETUP_LIMITS = Limits(memory_mib=4096, pids=1024, disk_mib=2048, cpus=2.0)
"""The workspace itself is not counted in here: what set-up leaves there lies with the templates."""
STATES = (Path("/etc/os-release"), Path("/var/lib/dpkg/status"), Path("/var/lib/rpm/rpmdb.sqlite"))
"""What changes when programs of this machine do: templates that set-up commands made are then made anew."""
TAIL_BYTES = 4000


class LocalImages:
    """Implements `orchestrator.repos.images.ImageResolver` and `SetupRunner`.

    Set-up commands run as an unprivileged user: they can change the workspace and nothing else, since there is no image to keep more in.
    """

    def __init__(self, settings: LocalSettings) -> None:
        """Raises Misconfigured for a state folder that is too deep."""
        self._settings = settings
        self._workspaces: Workspaces = make_workspaces(settings.own_dir, SETUPS)
        self._ground = Ground(
            boxes=settings.own_dir.resolve() / SETUPS / BOXES,
            cgroups=cgroups.Cgroups(f"{settings.deployment}.{SETUPS}"),
            limiter=CapacityLimiter(box.PARALLEL),
        )

    async def image_id(self, reference: str) -> str:
        """`host:` and a digest of what programs this machine has. Raises Misconfigured, with the way out, for every other image."""
        check_image(reference, any_image=self._settings.any_image)
        return f"host:{await finish(None, _state)}"

    async def read_folder(self, image: str, path: str, read: Callable[[BinaryIO], T], *, timeout_s: float) -> T:
        """Always Misconfigured."""
        raise Misconfigured(f"boxes of the local backend have no image, so no repository of its at {path}: name a repo")

    async def sweep(self) -> int:
        """Remove what set-up runs of a killed process left; how many. Only for whoever holds the host's lock."""
        left = {*await self._workspaces.owned(), *await finish(None, self._ground.cgroups.names)}
        for name in left:
            await box.end(self._ground, name)
        await remove_stale(self._workspaces, ())
        await finish(None, forget_unfinished, self._settings.own_dir)
        return len(left)

    async def run_setup(
        self,
        *,
        image: str,
        commands: tuple[str, ...],
        tree: Path,
        upper: Path,
        tag: str,
        network: Network,
        timeout_s: float,
        workdir: str = DEFAULT_WORKDIR,
    ) -> str:
        """See `orchestrator.repos.images.SetupRunner`; nothing but the workspace is kept. Raises RepositoryError, Misconfigured."""
        if network.allow:
            raise Misconfigured(
                "the local backend gives set-up commands no network: take setup_network off the task, or serve with docker"
            )
        image_id = await self.image_id(image)
        check_workdir(workdir)
        deadline = time.monotonic() + timeout_s
        spec = SandboxSpec(image=image_id, template=None, limits=SETUP_LIMITS, workdir=workdir)
        name = SandboxId(f"setup-{secrets.token_hex(6)}")
        try:
            async with self._box(name, spec, tree, upper, deadline) as client:
                await _run_all(client, commands, deadline)
        except StartFailed as error:
            raise RepositoryError(f"the box for set-up commands could not run: {error.message}") from error
        return image_id

    @asynccontextmanager
    async def _box(
        self, name: SandboxId, spec: SandboxSpec, tree: Path, upper: Path, deadline: float
    ) -> AsyncIterator[AgentClient]:
        parts = await finish(None, read_parts, self._settings)

        async def lost() -> TiltyardError:
            return RepositoryError(
                f"the box for set-up commands was lost: {(await box.explain_loss(self._ground, name)).message}"
            )

        try:
            workspace = await self._workspaces.prepare(name, None, SETUP_LIMITS)
            workspace = await finish(None, _over_tree, workspace, tree, upper)
            client = await box.started(self._ground, parts, spec, workspace, deadline, lost)
            try:
                yield client
            finally:
                await client.aclose()
        finally:
            await finish_task(self._discard(name))

    async def _discard(self, name: SandboxId) -> None:
        await box.end(self._ground, name)
        await self._workspaces.remove(name)


def _state() -> str:
    digest = hashlib.sha256()
    for path in STATES:
        if path.exists():
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _over_tree(workspace: Workspace, tree: Path, upper: Path) -> Workspace:
    """The workspace over `tree`, writing into `upper`. Without root `upper` is a copy of the tree already. Raises RepositoryError."""
    if os.geteuid() != 0:
        return replace(workspace, workspace_mount=HostPath(path=upper))
    folder = BoxFolder(workspace.root)
    lower = folder.lower(0)
    try:
        os.chown(upper, workspace.uid_base, workspace.uid_base)
        folder.workspace.mkdir(mode=0o755)
        lower.mkdir()
        with idmap.user_namespace(0, workspace.uid_base) as userns:
            idmap.attach_mapped(tree, lower, userns)
        mounts.overlay(folder.workspace, lowers=[lower], upper=upper, work=upper.with_name("work"))
        mounts.unmount(lower)
        lower.rmdir()
    except OSError as error:
        raise RepositoryError(f"the workspace for set-up commands could not be made: {error.strerror}") from error
    return replace(workspace, workspace_mount=HostPath(path=folder.workspace))


async def _run_all(client: AgentClient, commands: tuple[str, ...], deadline: float) -> None:
    await client.lease(RolloutKey(job=JobId(SETUPS), trace_id=TraceId(client.id)), Epoch(1))
    for number, text in enumerate(commands):
        left_s = box.left_s(deadline)
        if left_s <= 0:
            raise RepositoryError("the task's set-up commands did not end in time")
        key = CallKey(f"setup-{number}")
        header = PendingCall(key=key, sequence=number + 1, tool="setup", arguments={}, operations=0)
        op = Exec(argv=("sh", "-ec", text), timeout_s=left_s)
        result = await client.run(op, op_id=OpId(call=key, number=0), deadline=deadline + 30, call=header)
        if not isinstance(result, ExecResult) or result.exit_code != 0:
            raise RepositoryError(_report(text, result))


def _report(text: str, result: object) -> str:
    if not isinstance(result, ExecResult):
        return f"the task's set-up command {text!r} could not start"
    how = (
        "did not end in time"
        if result.timed_out
        else f"failed with status {result.exit_code if result.signal is None else result.signal}"
    )
    return f"the task's set-up command {text!r} {how}; the end of its output:\n{_tail(result.stdout)}"


def _tail(output: Output) -> str:
    return (output.head + output.tail)[-TAIL_BYTES:].decode("utf-8", "replace")
