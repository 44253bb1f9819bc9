"""After a restart: the rollouts that an earlier process of this host left behind are taken back with their boxes.

Per rollout: epoch + 1 in the store, then the box's lease under that epoch, then the calls that the box knows and the record does not, in
journal order, then everybody else. A box that is gone closes its rollout for ever; one that ran nothing yet is removed and forgotten.
"""

import asyncio
import time
from collections.abc import Sequence

import structlog

from orchestrator.errors import SandboxDead, SandboxLost, StaleLease
from orchestrator.hosts.admission import Kind, Ticket, TicketId
from orchestrator.hosts.calls import Entry, order_of, plan, rejoined
from orchestrator.hosts.events import (
    BoxAdopted,
    BoxDied,
    BoxLost,
    Call,
    EvidenceStored,
    LeaseState,
    Phase,
    RecordRead,
    Stale,
    StartFailed,
)
from orchestrator.hosts.evidence import end_of
from orchestrator.hosts.lifecycle import Lifecycle, ours
from orchestrator.hosts.parts import promised_disk_mib
from orchestrator.hosts.rollout import Rollout, watched
from orchestrator.interfaces import Lease, Sandbox
from orchestrator.models import Binding, CallRecord, PendingCall, RolloutState, Task

FIRST_DELAY_S = 0.5
LONGEST_DELAY_S = 30.0

log = structlog.get_logger(__name__)


class Adoption:
    """Takes rollouts back; each in a task of its own, a few at a time."""

    def __init__(self, life: Lifecycle, *, at_once: int = 8) -> None:
        self._life = life
        self._parts = life.parts
        self._at_once = asyncio.Semaphore(at_once)

    async def run(self, timeout_s: float) -> None:
        """All of this host's, waiting at most `timeout_s`; what takes longer (an engine that is down) goes on beside serving.

        From here on every box that a binding names is covered, so that a sweep may follow. Raises StoreError.
        """
        adopting = []
        for binding in await self._parts.store.open_bindings(self._parts.host_id):
            task = self._parts.task_of(binding.rollout.job, binding.task)
            if task is None:
                await self._without_task(binding)
            elif binding.sandbox is not None or binding.state is RolloutState.GRADING:
                adopting.append(self.begin(binding, task))
        if adopting:
            log.info("adopting", rollouts=len(adopting))
            await asyncio.wait(adopting, timeout=timeout_s)

    def begin(self, binding: Binding, task: Task) -> asyncio.Task[None]:
        """Put a rollout into memory as ADOPTING and take it back in the background."""
        settings = self._parts.settings
        idle_s = max(0.0, time.time() - binding.touched_at)
        state = LeaseState(
            phase=Phase.ADOPTING,
            budget=task.max_calls,
            ttl_s=settings.idle_ttl_s,
            active_at=self._parts.clock() - min(idle_s, max(0.0, settings.idle_ttl_s - settings.adoption_grace_s)),
            sandbox=binding.sandbox,
        )
        rollout = Rollout(binding=binding, task=task, state=state)
        rollout.adopted = watched()
        self._life.live[rollout.key] = rollout
        if binding.sandbox is not None:
            rollout.ticket = self._hold(rollout)
        return self._life.tasks.start(self._adopt(rollout), name=f"adopt {rollout.key}")

    def _hold(self, rollout: Rollout) -> TicketId:
        ticket = Ticket(
            id=self._parts.ticket_id(),
            job=rollout.key.job,
            kind=Kind.OPEN,
            memory_mib=rollout.task.limits.memory_mib,
            disk_mib=promised_disk_mib(rollout.task),
        )
        self._parts.gate.hold(ticket)
        return ticket.id

    async def _without_task(self, binding: Binding) -> None:
        reason = f"task {binding.task} is no longer served"
        log.error("adoption_impossible", rollout=str(binding.rollout), reason=reason)
        await self._parts.store.close(binding, RolloutState.LOST, reason)
        if binding.sandbox is not None:
            self._parts.remover.retire(binding.sandbox)

    async def _adopt(self, rollout: Rollout) -> None:
        delay_s, owned = FIRST_DELAY_S, False
        while True:
            try:
                async with self._at_once:
                    if not owned:
                        rollout.binding = await self._parts.store.adopt(rollout.binding, self._parts.host_id)
                        owned = True
                    await self._take(rollout)
            except StaleLease as error:
                return self._life.post(rollout, Stale(), error)
            except SandboxDead as error:
                return self._life.post(rollout, BoxDied(end=end_of(error)))
            except SandboxLost as error:
                return self._life.post(rollout, BoxLost(reason=f"{error.reason}: {error.message}"), error)
            except Exception as error:  # noqa: BLE001  the engine or the store is not there yet: nothing is lost by waiting
                reason = ours(error, "adoption", rollout.key).reason
                log.warning("adoption_waits", rollout=str(rollout.key), reason=reason, retry_in_s=delay_s)
            else:
                return None
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, LONGEST_DELAY_S)

    async def _take(self, rollout: Rollout) -> None:
        if await self._graded_so_far(rollout):
            self._life.post(rollout, EvidenceStored())
            return
        if rollout.binding.boot_id is None:  # under our epoch now, so that no late write hands this box out after all
            self._life.post(rollout, StartFailed())
            return
        records = await self._parts.store.calls(rollout.key)
        self._life.post(rollout, record_read(records))
        rollout.finished = {record.key for record in records}
        assert rollout.binding.sandbox is not None  # a boot id was stored, so an id was before it
        sandbox = await self._parts.backend.attach(rollout.binding.sandbox)
        try:
            lease = await self._lease(rollout, sandbox)
        except BaseException:
            await sandbox.aclose()
            raise
        rollout.sandbox = sandbox
        self._life.fenced.discard(sandbox.id)
        self._rejoin(rollout, lease)

    async def _graded_so_far(self, rollout: Rollout) -> bool:
        """Whether evidence is stored: then grading goes on from there, and the agent's box, if it still exists, ends."""
        rollout.evidence = await self._parts.store.evidence(rollout.key)
        if rollout.evidence is not None and rollout.binding.state is RolloutState.OPEN:
            rollout.binding = await self._parts.store.close(rollout.binding, RolloutState.GRADING, "")
        return rollout.evidence is not None or rollout.binding.state is RolloutState.GRADING

    async def _lease(self, rollout: Rollout, sandbox: Sandbox) -> Lease:
        lease = await sandbox.lease(rollout.key, rollout.binding.epoch)
        if lease.boot_id != rollout.binding.boot_id:
            raise SandboxLost("the box was restarted")
        return lease

    def _rejoin(self, rollout: Rollout, lease: Lease) -> None:
        """Acknowledge again what is recorded; run again, in journal order, what is not: the box replays what it did."""
        unfinished = [call for call in lease.pending if call.key not in rollout.finished]
        rollout.unacknowledged = [call.key for call in lease.pending if call.key in rollout.finished]
        calls = [] if lease.frozen else [self._entered(rollout, call) for call in unfinished]
        self._life.post(rollout, BoxAdopted(pending=tuple(calls), frozen=lease.frozen))
        self._life.flush(rollout)
        self._life.reserve.want(rollout.task)
        log.info("adopted", rollout=str(rollout.key), epoch=rollout.binding.epoch, rejoined=len(calls))

    def _entered(self, rollout: Rollout, pending: PendingCall) -> Call:
        request = rejoined(pending, rollout.key)
        planned = plan(request.tool, request.arguments_text, rollout.task, self._parts.tools)
        rollout.entries[pending.key] = Entry(request, planned)
        return Call(key=pending.key, sequence=pending.sequence, order=order_of(planned))


def record_read(records: Sequence[CallRecord]) -> RecordRead:
    """Where numbering and budget stand. Pure."""
    return RecordRead(
        next_sequence=1 + max((record.sequence for record in records), default=0),
        charged=sum(record.charged for record in records),
    )
