"""Boxes that have to go: removed until they are gone, however often the engine refuses."""

import asyncio
from collections.abc import Callable
from contextlib import suppress

import structlog

from orchestrator.errors import TiltyardError
from orchestrator.hosts.supervised import OwnedTasks
from orchestrator.interfaces import Sandbox, SandboxBackend
from orchestrator.models import SandboxId

FIRST_DELAY_S = 0.5
LONGEST_DELAY_S = 60.0

log = structlog.get_logger(__name__)


class Remover:
    """The ledger of boxes on their way out. What process death interrupts, the successor's sweep finds by `owned()`."""

    def __init__(self, backend: SandboxBackend, tasks: OwnedTasks, *, first_delay_s: float = FIRST_DELAY_S) -> None:
        self._backend = backend
        self._tasks = tasks
        self._first_delay_s = first_delay_s
        self._then: dict[SandboxId, list[Callable[[], None]]] = {}
        self._removals: dict[SandboxId, asyncio.Task[None]] = {}

    @property
    def pending(self) -> frozenset[SandboxId]:
        """Boxes not yet known to be gone."""
        return frozenset(self._then)

    def retire(
        self,
        sandbox_id: SandboxId,
        *,
        box: Callable[[], Sandbox | None] = lambda: None,
        after: asyncio.Task[None] | None = None,
        then: Callable[[], None] | None = None,
    ) -> asyncio.Task[None]:
        """Remove a box: once `after` has ended, its connection `box()` closed first, `then` called when it is gone. Idempotent."""
        waiting = self._then.setdefault(sandbox_id, [])
        if then is not None:
            waiting.append(then)
        if sandbox_id not in self._removals:
            removal = self._remove(sandbox_id, box, after)
            self._removals[sandbox_id] = self._tasks.start(removal, name=f"remove {sandbox_id}")
        return self._removals[sandbox_id]

    async def _remove(
        self, sandbox_id: SandboxId, box: Callable[[], Sandbox | None], after: asyncio.Task[None] | None
    ) -> None:
        if after is not None and not after.done():
            await asyncio.wait({after})
        if (connection := box()) is not None:
            with suppress(TiltyardError):  # it may be gone already, which is what we are here for
                await connection.aclose()
        await self._destroy(sandbox_id)
        del self._removals[sandbox_id]
        for then in self._then.pop(sandbox_id):
            then()

    async def _destroy(self, sandbox_id: SandboxId) -> None:
        delay_s = self._first_delay_s
        while True:
            try:
                await self._backend.destroy(sandbox_id)
            except Exception as error:  # noqa: BLE001  whatever the engine says, the box has to go
                log.warning("removal_failed", sandbox=sandbox_id, retry_in_s=delay_s, error=str(error))
            else:
                return
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, LONGEST_DELAY_S)
