"""What a grader works with: the evidence, and clean boxes over the task's pristine tree."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count

from orchestrator.errors import GraderError, SandboxError, StoreError
from orchestrator.hosts.admission import Kind, Ticket, TicketId
from orchestrator.hosts.calls import span_s
from orchestrator.hosts.opening import create, first_lease
from orchestrator.hosts.parts import Parts, new_sandbox_id, promised_disk_mib, spec_for
from orchestrator.hosts.reserve import Reserve
from orchestrator.interfaces import GraderBox, Sandbox, Template
from orchestrator.models import CallKey, Epoch, Evidence, FileChange, OpId, PendingCall, RolloutKey, Task, TraceId
from orchestrator.operations import Delta, Freeze, Get, Operation, OperationResult, Put

SLACK_S = 120.0
"""Beyond a command's own time-out: for unpacking a large tree, or a machine under load."""
HOST_OWN = (Put, Get, Delta, Freeze)


class HostBench:
    """`orchestrator.interfaces.Bench`. Grading boxes are never kept: each is made or taken warm, leased to this grade, and removed.

    `slot` is the ended box's ticket, whose memory the first box that is not warm uses once `removal` is done. Locks are taken in one order:
    memory, then a test run, then a start slot; nobody who holds one waits for an earlier one.
    """

    def __init__(
        self,
        parts: Parts,
        reserve: Reserve,
        *,
        task: Task,
        evidence: Evidence,
        template: Template | None,
        slot: TicketId | None,
        removal: asyncio.Task[None] | None,
    ) -> None:
        """`template`: what the rollout's box lay over; None where it never had one."""
        self._parts = parts
        self._reserve = reserve
        self._template = template
        self._task = task
        self._evidence = evidence
        self.slot = slot
        self.removal = removal
        """Of the last box that used the slot; the slot may be given up when it is done."""
        self._numbers = count(1)
        self._in_use = False

    @property
    def task(self) -> Task:
        return self._task

    @property
    def evidence(self) -> Evidence:
        return self._evidence

    async def blob(self, change: FileChange) -> bytes:
        """Raises GraderError for a change that carries no content, StoreError."""
        if change.blob is None:
            raise GraderError("this change carries no content")
        return await self._parts.blobs.get(change.blob)

    @asynccontextmanager
    async def fresh_box(self) -> AsyncIterator[GraderBox]:
        """One at a time; the second one of a grade is for a run that failed to end, and has no other test run beside it.

        Raises StartFailed, HostFull, RepositoryError; GraderError for a second one beside the first.
        """
        if self._in_use:
            raise GraderError("a grader may have one fresh box at a time")
        self._in_use = True
        number = next(self._numbers)
        try:
            async with self._box(alone=number > 1) as sandbox:
                yield _Box(sandbox, CallKey(f"grade-{number}"))
        finally:
            self._in_use = False

    @asynccontextmanager
    async def _box(self, *, alone: bool) -> AsyncIterator[Sandbox]:
        warm = await self._warm()
        if warm is None:
            slot = self.slot or await self._own_slot()
            async with self._parts.test_runs.one(alone=alone), self._cold(slot) as sandbox:
                yield sandbox
            return
        try:
            async with self._parts.test_runs.one(alone=alone):
                yield warm
        finally:
            self._reserve.spent(warm)

    async def _pristine(self) -> Template:
        if self._template is None:
            self._template = await self._parts.template(self._task)
        return self._template

    async def _warm(self) -> Sandbox | None:
        """A warm box, leased; None when there is none, or when it did not survive its waiting."""
        sandbox = self._reserve.claim(self._task, await self._pristine())
        if sandbox is None:
            return None
        leased = False
        try:
            await self._lease(sandbox)
            leased = True
        except SandboxError:
            return None
        finally:
            if not leased:
                self._reserve.spent(sandbox)
        return sandbox

    async def _own_slot(self) -> TicketId:
        """Memory for a grade without calls, which inherits none."""
        ticket = self._ticket(inherits=None)
        await self._parts.gate.enter(ticket)
        self.slot = ticket.id
        self._parts.gate.started(ticket.id)
        return ticket.id

    def _ticket(self, inherits: TicketId | None) -> Ticket:
        return Ticket(
            id=self._parts.ticket_id(),
            job=self._evidence.rollout.job,
            kind=Kind.GRADE,
            memory_mib=self._task.limits.memory_mib,
            disk_mib=promised_disk_mib(self._task),
            inherits=inherits,
        )

    @asynccontextmanager
    async def _cold(self, slot: TicketId) -> AsyncIterator[Sandbox]:
        """A new box in `slot`, once the box before it is gone."""
        template = await self._pristine()
        if self.removal is not None and not self.removal.done():
            await asyncio.wait({self.removal})
        start = self._ticket(inherits=slot)
        await self._parts.gate.enter(start)
        sandbox_id = new_sandbox_id("g")
        sandbox: Sandbox | None = None
        self._parts.grading_boxes.add(sandbox_id)
        try:
            try:
                spec = spec_for(self._task, template, rollout=self._evidence.rollout, grader=True)
                sandbox = await create(self._parts, sandbox_id, spec)
            finally:
                self._parts.gate.release(start.id)
            await self._lease(sandbox)
            yield sandbox
        finally:
            self.removal = self._parts.remover.retire(sandbox_id, box=lambda: sandbox)
            self._parts.grading_boxes.discard(sandbox_id)

    async def _lease(self, sandbox: Sandbox) -> None:
        await first_lease(sandbox, grading_key(self._evidence.rollout), Epoch(1))


def grading_key(rollout: RolloutKey) -> RolloutKey:
    """To whom a grading box is leased."""
    return RolloutKey(job=rollout.job, trace_id=TraceId(f"{rollout.trace_id}#grade"))


class _Box:
    """`orchestrator.interfaces.GraderBox`."""

    def __init__(self, sandbox: Sandbox, key: CallKey) -> None:
        self._sandbox = sandbox
        self._header = PendingCall(key=key, sequence=1, tool="grade", arguments={}, operations=0)
        self._journaled = count()
        self._own = count()

    async def run(self, op: Operation) -> OperationResult:
        """Raises GraderError when the box is lost or does not answer in time; SandboxDead when what runs in it brought it down."""
        own = isinstance(op, HOST_OWN)
        number = next(self._own if own else self._journaled)
        key = CallKey("host") if own else self._header.key
        header = self._header if number == 0 and not own else None
        deadline = time.monotonic() + span_s(op) + SLACK_S
        try:
            return await self._sandbox.run(op, op_id=OpId(call=key, number=number), deadline=deadline, call=header)
        except TimeoutError as error:
            raise GraderError("the grading box did not answer in time") from error
        except (SandboxError, StoreError) as error:
            raise GraderError(f"the grading box failed: {error.message}") from error
