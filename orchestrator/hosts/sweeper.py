"""The host's round, every so often: idle rollouts end, forgotten places go, boxes that nobody knows are removed."""

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Sequence

import structlog

from orchestrator.errors import HostFull, StaleLease, TiltyardError
from orchestrator.hosts.events import Phase, Stale, StartFailed, Tick
from orchestrator.hosts.leases import due
from orchestrator.hosts.lifecycle import Lifecycle
from orchestrator.hosts.rollout import Rollout
from orchestrator.interfaces import OwnedSandbox, Scope
from orchestrator.models import Binding, HostId, RolloutState, SandboxId, Task

TOUCHED_AT_ONCE = 200

log = structlog.get_logger(__name__)


ABANDONED_S = 120.0
"""Several rounds of a live host's own sweep."""
FOREIGN_S = 3600.0
"""Another host's box that no open rollout names is in a grade, which takes minutes, or in a reserve, which can spare it."""


def orphans(
    owned: Sequence[OwnedSandbox],
    covered: Collection[SandboxId],
    *,
    own: HostId,
    now: float,
    started_at: float,
    grace_s: float,
) -> list[SandboxId]:
    """Boxes to remove. Times are wall-clock seconds; `started_at` is this process's, `own` this host.

    What an earlier process of this host made and nobody took over goes at once; anything else only after the creation grace, since an engine
    may still be making what a dead process asked for. What another host made, and may be using, goes after an hour. Pure.
    """
    return [
        box.id
        for box in owned
        if box.id not in covered
        and (
            now - box.created_at > FOREIGN_S
            if box.host not in (None, own)
            else box.created_at < started_at or now - box.created_at > grace_s
        )
    ]


def abandoned(bindings: Sequence[Binding], *, own: HostId, now: float, ttl_s: float) -> list[Binding]:
    """Other hosts' rollouts whose host must be dead: a live one would have ended them when they had been idle for `ttl_s`. Pure."""
    return [
        binding
        for binding in bindings
        if binding.host != own
        and binding.sandbox is not None
        and now - binding.touched_at > (FOREIGN_S if binding.state is RolloutState.GRADING else ttl_s + ABANDONED_S)
    ]


class Sweeper:
    """Runs only after adoption: until then nobody knows which boxes are covered."""

    def __init__(self, life: Lifecycle, *, started_at: float, adopt: Callable[[Binding, Task], object]) -> None:
        """`adopt` takes a rollout of another host over."""
        self._life = life
        self._adopt = adopt
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
            self.covered() | await self._leased_anywhere(),
            own=self._parts.host_id,
            now=time.time(),
            started_at=self._started_at,
            grace_s=self._parts.settings.creation_grace_s,
        )
        for sandbox_id in found:
            log.warning("orphan_removed", sandbox=sandbox_id)
            self._parts.remover.retire(sandbox_id)

    async def _leased_anywhere(self) -> frozenset[SandboxId]:
        """What open rollouts of other hosts have, where this host sees their boxes. Asked after `owned`: bindings name their boxes first."""
        if self._parts.backend.scope is Scope.HOST:
            return frozenset()
        bindings = await self._parts.store.open_bindings(None)
        self._take_over(bindings)
        return frozenset(
            binding.sandbox
            for binding in bindings
            if binding.host != self._parts.host_id and binding.sandbox is not None
        )

    def _take_over(self, bindings: Sequence[Binding]) -> None:
        """Idle rollouts of dead hosts end like our own: taken over first."""
        ttl_s = self._parts.settings.idle_ttl_s
        for binding in abandoned(bindings, own=self._parts.host_id, now=time.time(), ttl_s=ttl_s):
            task = self._parts.task_of(binding.rollout.job, binding.task)
            if task is not None and binding.rollout not in self._life.live:
                log.warning("taking_over", rollout=str(binding.rollout), host=binding.host)
                self._adopt(binding, task)

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
