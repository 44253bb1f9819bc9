"""The host's round, every so often: idle rollouts end, forgotten places go, boxes that nobody knows are removed."""

import asyncio
import time
from collections.abc import Collection, Iterable, Sequence

import structlog

from orchestrator.errors import HostFull, StaleLease, TiltyardError
from orchestrator.hosts.events import Phase, Stale, StartFailed, Tick
from orchestrator.hosts.leases import due
from orchestrator.hosts.lifecycle import Lifecycle
from orchestrator.hosts.rollout import Rollout
from orchestrator.interfaces import OwnedSandbox
from orchestrator.models import SandboxId

TOUCHED_AT_ONCE = 200

log = structlog.get_logger(__name__)


def orphans(
    owned: Sequence[OwnedSandbox], covered: Collection[SandboxId], *, now: float, started_at: float, grace_s: float
) -> list[SandboxId]:
    """Boxes to remove. Times are wall-clock seconds; `started_at` is this process's.

    What an earlier process made and nobody took over goes at once; anything else only after the creation grace, since an engine may still be
    making what a dead process asked for. Pure.
    """
    return [
        box.id
        for box in owned
        if box.id not in covered and (box.created_at < started_at or now - box.created_at > grace_s)
    ]


class Sweeper:
    """Runs only after adoption: until then nobody knows which boxes are covered."""

    def __init__(self, life: Lifecycle, *, started_at: float) -> None:
        self._life = life
        self._parts = life.parts
        self._started_at = started_at

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self.sweep()
            except TiltyardError as error:
                log.warning("sweep_failed", reason=error.reason, error=error.message)
            await asyncio.sleep(self._parts.settings.sweep_period_s)

    async def sweep(self) -> None:
        """One round. Raises EngineUnavailable, StoreError; the next round does what this one could not."""
        self._end_idle()
        self._tend_reserve()
        await self._remove_orphans()
        await self._touch()

    def _end_idle(self) -> None:
        now = self._parts.clock()
        for rollout in list(self._life.live.values()):
            if self._place_forgotten(rollout):
                self._life.post(
                    rollout, StartFailed(), HostFull("its place in the queue was kept and nobody came back")
                )
            elif due(rollout.state, now):
                self._life.post(rollout, Tick())

    def _place_forgotten(self, rollout: Rollout) -> bool:
        waiting = rollout.ticket is not None and self._parts.gate.admission.is_waiting(rollout.ticket)
        idle_s = self._parts.clock() - rollout.interest_at
        forgotten = waiting and not rollout.waiters and idle_s > self._parts.settings.place_ttl_s
        return rollout.state.phase is Phase.OPENING and forgotten

    def _tend_reserve(self) -> None:
        tasks = {rollout.task.id: rollout.task for rollout in self._with_box()}
        self._life.reserve.keep_only(tasks.values())
        for task in tasks.values():
            self._life.reserve.want(task)

    def _with_box(self) -> Iterable[Rollout]:
        return (rollout for rollout in self._life.live.values() if rollout.sandbox is not None)

    async def _remove_orphans(self) -> None:
        owned = await self._parts.backend.owned()
        found = orphans(
            owned,
            self.covered(),
            now=time.time(),
            started_at=self._started_at,
            grace_s=self._parts.settings.creation_grace_s,
        )
        for sandbox_id in found:
            log.warning("orphan_removed", sandbox=sandbox_id)
            self._parts.remover.retire(sandbox_id)

    def covered(self) -> frozenset[SandboxId]:
        """Boxes that a lease, a grade, the reserve or the remover answers for, and those of other hosts' leases."""
        leased = (rollout.state.sandbox for rollout in self._life.live.values())
        return frozenset(
            {
                *(sandbox for sandbox in leased if sandbox is not None),
                *self._life.reserve.sandboxes,
                *self._parts.grading_boxes,
                *self._parts.remover.pending,
                *self._life.fenced,
            }
        )

    async def _touch(self) -> None:
        """Tell the store who was active, for a successor's idle clock."""
        active = [r for r in self._with_box() if r.state.active_at > r.touched and r.state.phase is Phase.LIVE]
        for start in range(0, len(active), TOUCHED_AT_ONCE):
            await asyncio.gather(*(self._touch_one(rollout) for rollout in active[start : start + TOUCHED_AT_ONCE]))

    async def _touch_one(self, rollout: Rollout) -> None:
        active_at = rollout.state.active_at
        try:
            await self._parts.store.touch(rollout.binding)
        except StaleLease as error:
            self._life.post(rollout, Stale(), error)
        else:
            rollout.touched = active_at
