"""Makes and unmakes boxes on a machine without a container engine."""

import asyncio
import logging
import os
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

from anyio import CapacityLimiter

from orchestrator.agent.binary import agent_binary
from orchestrator.backends.agent_binary import install_agent
from orchestrator.backends.boxes import remove_workspace
from orchestrator.backends.finish import finish
from orchestrator.backends.local import box, callfilter, cgroups, notices, processes, root
from orchestrator.backends.local.box import Ground, Line, Parts
from orchestrator.backends.local.settings import LocalSettings
from orchestrator.backends.local.spec import MASKED, MASKED_FOLDERS, check_spec, command
from orchestrator.backends.machine import three_quarters_of_memory_mib
from orchestrator.errors import (
    Misconfigured,
    SandboxLost,
    SandboxOverDisk,
    StartFailed,
    TiltyardError,
)
from orchestrator.interfaces import Capacity, OwnedSandbox, Sandbox, SandboxSpec, Scope
from orchestrator.models import SandboxId
from orchestrator.repos.folders import BOXES, BoxFolder
from orchestrator.repos.plain import PlainWorkspaces
from orchestrator.repos.watch import watch_space
from orchestrator.repos.workspace import Workspaces

log = logging.getLogger(__name__)

PROGRAMS = ("bwrap", "setsid", "prlimit", "unshare", "sh")


class LocalBackend:
    """Implements `orchestrator.interfaces.SandboxBackend`; `async with` looks at the machine first.

    `workspaces` stays its maker's. Boxes live on after `aclose()`, and after our death: the next process attaches to them, or destroys them.
    """

    scope = Scope.HOST

    def __init__(self, settings: LocalSettings, workspaces: Workspaces, *, line: Line = command) -> None:
        """`line` makes the command line from a plan. Tests weaken it, to see the suite turn red."""
        self._line = line
        self._settings = settings
        self._workspaces = workspaces
        self._slots = asyncio.Semaphore(settings.start_slots)
        self._making: dict[SandboxId, float] = {}
        self._ground = Ground(
            boxes=settings.state_dir.resolve() / BOXES,
            cgroups=cgroups.Cgroups(settings.deployment),
            limiter=CapacityLimiter(box.PARALLEL),
        )
        self._parts: Parts | None = None
        self._notices: tuple[str, ...] = ()
        self._watch: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        """The form without root gives less, so that it is told apart wherever backends are named."""
        return "local" if os.geteuid() == 0 else "local-without-root"

    @property
    def notices(self) -> tuple[str, ...]:
        """What an operator must read at every start."""
        return self._notices

    async def __aenter__(self) -> Self:
        """Raises Misconfigured when this machine lacks what a box needs: nothing is left out silently."""
        self._parts = await asyncio.to_thread(read_parts, self._settings, self._line)
        hierarchies = await asyncio.to_thread(lambda: self._ground.cgroups.hierarchies)
        self._notices = notices.notices(self._settings, hierarchies, rooted=os.geteuid() == 0)
        if isinstance(self._workspaces, PlainWorkspaces):
            self._watch = asyncio.create_task(watch_space(self._workspaces, self._end), name="watch boxes' space")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Idempotent."""
        watching, self._watch = self._watch, None
        if watching is not None:
            watching.cancel()
            await asyncio.wait({watching})

    async def create(self, sandbox_id: SandboxId, spec: SandboxSpec, *, deadline: float) -> Sandbox:
        """See SandboxBackend. Whatever fails, the caller's cancellation included, nothing of the box is left behind."""
        check_spec(sandbox_id, spec, any_image=self._settings.any_image, rooted=os.geteuid() == 0)
        if sandbox_id in self._making:
            raise StartFailed(f"box {sandbox_id} is being made already")
        self._making[sandbox_id] = time.time()
        try:
            async with asyncio.timeout(box.left_s(deadline)), self._slots:
                return await self._make(sandbox_id, spec, deadline)
        except TimeoutError:
            raise StartFailed("the box did not come up in time; the machine may be busy: try again") from None
        finally:
            del self._making[sandbox_id]

    async def attach(self, sandbox_id: SandboxId) -> Sandbox:
        """A box made earlier. Raises SandboxLost, SandboxDead."""
        folder = BoxFolder(self._ground.boxes / sandbox_id)
        record = await asyncio.to_thread(processes.read_record, folder.root)
        if record is None or not await asyncio.to_thread(processes.lives, record.process):
            raise await self._explain_loss(sandbox_id)
        return box.client_of(sandbox_id, folder.agent, lambda: self._explain_loss(sandbox_id))

    async def destroy(self, sandbox_id: SandboxId) -> None:
        """Idempotent, also beside others; begun, it goes to its end. Raises SandboxError (still busy: try again)."""
        await finish(self._remove(sandbox_id))

    async def owned(self) -> Sequence[OwnedSandbox]:
        """Every box of this deployment that left a folder, a mount, a process or a cgroup."""
        found = {name: OwnedSandbox(id=name, created_at=at, running=False) for name, at in self._making.items()}
        names = {*await self._workspaces.owned(), *await asyncio.to_thread(self._ground.cgroups.names)}
        for name in names:
            found[name] = await asyncio.to_thread(self._listed, name, found.get(name))
        return [found[name] for name in sorted(found)]

    async def capacity(self) -> Capacity:
        """What all boxes together may be promised."""
        memory_mib = self._settings.memory_limit_mib or await asyncio.to_thread(three_quarters_of_memory_mib)
        return Capacity(memory_mib=memory_mib, boxes=self._settings.max_boxes, start_slots=self._settings.start_slots)

    def _listed(self, name: SandboxId, making: OwnedSandbox | None) -> OwnedSandbox:
        folder = self._ground.boxes / name
        record = processes.read_record(folder)
        if record is not None:
            return OwnedSandbox(id=name, created_at=record.created_at, running=processes.lives(record.process))
        if making is not None:
            return making
        made_at = 0.0
        with suppress(OSError):
            made_at = folder.stat().st_mtime
        return OwnedSandbox(id=name, created_at=made_at, running=False)

    async def _make(self, sandbox_id: SandboxId, spec: SandboxSpec, deadline: float) -> Sandbox:
        if self._parts is None:
            raise Misconfigured("the local backend was not entered: nothing is known of this machine")
        expires_at = time.time() + self._settings.lifetime_s
        workspace = await self._workspaces.prepare(sandbox_id, spec.template, spec.limits, expires_at=expires_at)
        try:
            return await box.started(
                self._ground, self._parts, spec, workspace, deadline, lambda: self._explain_loss(sandbox_id)
            )
        except SandboxLost as error:
            await finish(self._abandon(sandbox_id))
            raise StartFailed(f"the box did not start: {error.message}") from error
        except BaseException:
            await finish(self._abandon(sandbox_id))
            raise

    async def _explain_loss(self, sandbox_id: SandboxId) -> TiltyardError:
        found = await box.explain_loss(self._ground, sandbox_id)
        if isinstance(self._workspaces, PlainWorkspaces) and await self._workspaces.was_overfull(sandbox_id):
            return SandboxOverDisk("the sandbox took more disk than its limit and was ended")
        return found

    async def _end(self, sandbox_id: SandboxId) -> None:
        """Of a box beyond its disk limit: its processes end, its removal is its owner's."""
        await box.end(self._ground, sandbox_id)

    async def _remove(self, sandbox_id: SandboxId) -> None:
        """Processes, cgroups, then the workspace: each is held by the one before it."""
        await box.end(self._ground, sandbox_id)
        await remove_workspace(self._workspaces, sandbox_id)

    async def _abandon(self, sandbox_id: SandboxId) -> None:
        """Remove what a failed start left; what cannot be removed now is the sweeper's, who finds it by name."""
        try:
            await self._remove(sandbox_id)
        except TiltyardError as error:
            log.error("box %s is left behind after a failed start: %s", sandbox_id, error.message)


def read_parts(settings: LocalSettings, line: Line = command) -> Parts:
    """Look at this machine, lay down what boxes share. Blocks. Raises Misconfigured."""
    check_programs()
    _check_own(settings)
    root.check_shown(settings.paths, settings.state_dir)
    try:
        settings.own_dir.mkdir(parents=True, exist_ok=True, mode=0o711)
        return Parts(
            line=line,
            root=root.read_root(settings.own_dir, settings.paths, MASKED, MASKED_FOLDERS),
            agent=install_agent(settings.agent_binary or agent_binary(), settings.state_dir),
            seccomp=callfilter.installed(settings.own_dir / "seccomp"),
        )
    except OSError as error:
        raise Misconfigured(f"the local backend cannot use its folder: {error.strerror}") from error


def check_programs() -> None:
    """Raises Misconfigured with the fix."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        raise Misconfigured(f"the local backend needs {', '.join(missing)}: apt-get install bubblewrap util-linux")


def _check_own(settings: LocalSettings) -> None:
    """Boxes of another backend in the same folder would be taken for ours."""
    boxes = settings.state_dir / BOXES
    if not settings.own_dir.exists() and boxes.is_dir() and any(boxes.iterdir()):
        raise Misconfigured(
            f"deployment {settings.deployment!r} holds boxes of another backend: sweep it first (tiltyard sweep), or name another deployment"
        )
