"""A host: owner of rollouts on one machine, in one event loop (D5). What it promises stands in `orchestrator.interfaces.Host`.

Nothing that a caller started ends with the caller: opens, calls and grades are tasks of the host, a deadline or a disconnect only ends the
waiting, and the same request again joins what runs. On exit boxes are left, with their leases, for the successor.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import NoReturn, Self, TypeVar

import structlog

from orchestrator.errors import (
    Draining,
    HostFull,
    StaleLease,
    StillRunning,
    StoreError,
    TaskConflict,
    TiltyardError,
    UnknownRollout,
)
from orchestrator.hosts.admission import Admission
from orchestrator.hosts.adoption import Adoption, record_read
from orchestrator.hosts.calls import Entry, Runnable, order_of, plan
from orchestrator.hosts.disk import DiskWatch, Gauge
from orchestrator.hosts.events import OVER, BoxWanted, CallArrived, GradeAsked, LeaseState, Phase, ReleaseAsked
from orchestrator.hosts.gate import Gate
from orchestrator.hosts.lifecycle import Lifecycle, ours, tainted
from orchestrator.hosts.parts import Parts, new_sandbox_id
from orchestrator.hosts.permits import Permits
from orchestrator.hosts.remover import Remover
from orchestrator.hosts.reserve import Reserve
from orchestrator.hosts.rollout import Rollout, ended, over, watched
from orchestrator.hosts.settings import HostSettings
from orchestrator.hosts.supervised import OwnedTasks
from orchestrator.hosts.sweeper import Sweeper
from orchestrator.interfaces import Blobs, Grader, HostLoad, SandboxBackend, Scope, Store, Templates, Tool
from orchestrator.models import (
    Binding,
    CallRequest,
    GradeRequest,
    HostId,
    JobId,
    Reward,
    RolloutKey,
    RolloutState,
    Task,
    TaskId,
    ToolReply,
)

T = TypeVar("T")

ADOPTION_WAIT_S = 60.0
"""How long a start waits for its boxes before it serves the others."""
OPEN_STATES = frozenset({RolloutState.OPEN, RolloutState.GRADING})

log = structlog.get_logger(__name__)


class SandboxHost:
    """`orchestrator.interfaces.Host`, as `async with`: entering adopts what an earlier process of this host left, then sweeps, then serves."""

    def __init__(
        self,
        *,
        host_id: HostId,
        settings: HostSettings,
        backend: SandboxBackend,
        store: Store,
        blobs: Blobs,
        templates: Templates,
        task_of: Callable[[JobId, TaskId], Task | None],
        share_of: Callable[[JobId], float],
        tools: Callable[[str], Tool],
        graders: Callable[[str], Grader],
        free_disk: Gauge | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`free_disk` reads the disk that boxes lie on; None: they lie on none. `clock` (monotonic seconds) drives idle times and kept
        places alone, so that a test may hurry them."""
        self._id = host_id
        self._settings = settings
        self._tasks = OwnedTasks("host")
        self._removals = OwnedTasks("removals")
        admission = Admission(settings.admission_limits(), share_of)
        self._gate = Gate(admission, short=lambda: self._reserve.make_room())
        self._parts = Parts(
            host_id=host_id,
            settings=settings,
            backend=backend,
            store=store,
            blobs=blobs,
            templates=templates,
            task_of=task_of,
            tools=tools,
            graders=graders,
            gate=self._gate,
            remover=Remover(backend, self._removals),
            test_runs=Permits(settings.test_runs),
            clock=clock,
        )
        self._reserve = Reserve(self._parts, self._tasks, settings.grader_reserve)
        self._life = Lifecycle(self._parts, self._tasks, self._reserve)
        self._adoption = Adoption(self._life)
        self._sweeper = Sweeper(self._life, started_at=time.time(), adopt=self._adoption.begin)
        reserve_mib = settings.disk_reserve_mib
        self._disk = free_disk and DiskWatch(free_disk, self._gate, self._life, reserve_mib=reserve_mib)
        self._loading: dict[RolloutKey, asyncio.Future[Rollout | Binding]] = {}
        self._draining = False

    @property
    def id(self) -> HostId:
        return self._id

    async def __aenter__(self) -> Self:
        """Raises StoreError."""
        try:
            if self._disk is not None:
                await self._disk.look()
            await self._adoption.run(ADOPTION_WAIT_S)
        except BaseException:
            await self._stop()
            raise
        self._tasks.start(self._sweeper.run(), name="sweeper")
        if self._disk is not None:
            self._tasks.start(self._disk.run(), name="disk")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await self.drain()
        finally:
            await self._stop()

    async def _stop(self) -> None:
        """Every task ends; boxes of rollouts stay, those of grades and of the reserve go."""
        self._draining = self._life.stopped = True
        async with self._removals:
            await self._tasks.__aexit__(None, None, None)
            self._reserve.close()
            for rollout in list(self._life.live.values()):
                await self._leave(rollout)
            await self._removals.settle(self._settings.removal_wait_s)
        self._life.live.clear()

    async def _leave(self, rollout: Rollout) -> None:
        stopping = Draining("the host is stopping; retry: what began is taken up again")
        rollout.fail_waiting(stopping)
        for entry in rollout.entries.values():
            entry.fail(stopping)
        if rollout.state.phase is Phase.OPENING and rollout.state.sandbox is not None:
            self._parts.remover.retire(rollout.state.sandbox)  # it ran nothing; the successor makes another
        elif rollout.sandbox is not None:
            await rollout.sandbox.aclose()

    # ---- what callers ask

    async def open(self, rollout: RolloutKey, task: Task, *, timeout_s: float) -> Binding:
        """See `Host.open`. Raises also StillRunning: the start goes on, a retry joins it."""
        deadline = time.monotonic() + min(timeout_s, self._settings.call_deadline_s)
        found = await self._find(rollout, task, deadline)
        if isinstance(found, Binding):
            raise ended(found.state, found.reason)
        if found.state.phase is Phase.UNOPENED:
            self._refuse_when_draining()
        self._life.post(found, BoxWanted())
        if found.state.phase is Phase.OPENING and found.opened is not None:
            await self._wait(found, found.opened, deadline)
        if found.state.phase not in (Phase.LIVE, Phase.DEAD):
            raise over(found.state)
        return found.binding

    async def call(self, request: CallRequest, task: Task, *, timeout_s: float) -> ToolReply:
        """See `Host.call`. A key whose reply is recorded gets those bytes again, whatever became of the rollout since.

        Raises what opening raises, RolloutClosed, SandboxLost, StoreError, StaleLease; after any of these the same key may come again.
        """
        deadline = time.monotonic() + min(timeout_s, self._settings.call_deadline_s)
        try:
            return await self._call(request, task, deadline)
        except Draining:
            await self._mark_refused(request.rollout, task)
            raise

    async def _call(self, request: CallRequest, task: Task, deadline: float) -> ToolReply:
        found = self._ready(request.rollout, task) or await self._find(request.rollout, task, deadline)
        if isinstance(found, Binding):
            return await self._recorded(request) or _raise(ended(found.state, found.reason))
        entry = found.entries.get(request.key)
        if entry is None:
            if request.key in found.finished and (reply := await self._recorded(request)) is not None:
                return reply
            entry = self._enter(found, request)
        elif not entry.request.call_id:
            entry.request = request  # taken up from the box's journal, which knows no call_id
        return await self._wait(found, entry.done, deadline)

    async def _mark_refused(self, key: RolloutKey, task: Task) -> None:
        """A first call that found us stopping leaves the id of a box that is never made: else a grade would take the rollout for one that
        did nothing. A retry of the call makes a box all the same."""
        with suppress(TiltyardError):  # a store that is closed already
            binding = await self._parts.store.bind(key, task.id, self._id)
            if binding.state is RolloutState.OPEN and binding.sandbox is None and binding.host == self._id:
                await self._parts.store.attach_sandbox(binding, new_sandbox_id("r"), None)

    async def grade(self, request: GradeRequest, task: Task, *, timeout_s: float) -> Reward:
        """See `Host.grade`. Calls that wait are refused, running ones have `settle_s`; then the box is frozen."""
        deadline = time.monotonic() + min(timeout_s, self._settings.grade_deadline_s)
        found = await self._gradable(request.rollout, task, deadline)
        if isinstance(found, Binding):
            return await self._parts.store.reward(request.rollout) or _raise(ended(found.state, found.reason))
        if found.graded is None:
            found.graded = watched()
            found.final_answer = request.final_answer
        graded = found.graded
        self._life.post(found, GradeAsked())
        return await self._wait(found, graded, deadline)

    async def _gradable(self, key: RolloutKey, task: Task, deadline: float) -> Rollout | Binding:
        """A rollout whose grade may begin, or be joined; or the binding of one that is over. Raises RolloutClosed when it is tainted."""
        while True:
            found = await self._find(key, task, deadline)
            if isinstance(found, Binding) or found.graded is not None:
                return found
            self._refuse_when_draining()
            if reason := await self._parts.store.tainted(key):
                self._life.post(found, ReleaseAsked(reason="never to be scored"))
                raise tainted(reason)
            if found.state.phase not in OVER:  # else it ended while we asked
                return found

    async def release(self, rollout: RolloutKey) -> None:
        """See `Host.release`. Returns when the end is stored; a rollout that is being graded ends with its grade instead."""
        while (
            loading := self._loading.get(rollout)
        ) is not None:  # a first call is binding it: it ends when it is there
            await asyncio.wait({loading})
        found = self._life.live.get(rollout)
        if found is not None and found.adopted is not None:
            await self._wait(found, found.adopted, time.monotonic() + self._settings.call_deadline_s)
            found = self._life.live.get(rollout)
        if found is None:
            return await self._release_stored(rollout)
        self._life.post(found, ReleaseAsked(reason="released"))
        if found.state.phase is Phase.CLOSING:
            await found.rested.wait()
            if found.state.phase is not Phase.CLOSING:
                return None
            raise StoreError("the end of the rollout could not be recorded; retry")
        return None

    async def _release_stored(self, rollout: RolloutKey) -> None:
        """One that is not in memory: over, without a box, or with stored evidence (which a later grade needs). Nobody loads it meanwhile."""
        loading = self._loading[rollout] = watched()
        try:
            await self._end_stored(rollout)
        finally:
            del self._loading[rollout]
            loading.set_exception(StillRunning("this rollout was just being ended; retry"))

    async def _end_stored(self, rollout: RolloutKey) -> None:
        binding = await self._parts.store.binding(rollout)
        if binding is None:
            raise UnknownRollout(f"no rollout {rollout.trace_id!r}")
        if binding.state is RolloutState.OPEN:
            self._refuse_foreign(binding)
            if binding.host != self._id:
                binding = await self._parts.store.adopt(binding, self._id)
            await self._parts.store.close(binding, RolloutState.RELEASED, "released")
            if binding.sandbox is not None:
                self._parts.remover.retire(binding.sandbox)

    async def load(self) -> HostLoad:
        live = self._life.live.values()
        return HostLoad(
            live=len(live),
            queued=self._gate.admission.queued,
            grading=sum(rollout.state.phase in (Phase.GATHERING, Phase.GRADING) for rollout in live),
            draining=self._draining,
            free_memory_mib=self._gate.admission.free_memory_mib,
        )

    async def drain(self) -> None:
        """See `Host.drain`. What has not ended within `drain_s` is taken up by the successor."""
        self._draining = True
        with suppress(TimeoutError):
            async with asyncio.timeout(self._settings.drain_s):
                for rollout in list(self._life.live.values()):
                    await rollout.rested.wait()

    async def sweep(self) -> None:
        """One round of the sweeper, now. Raises EngineUnavailable, StoreError."""
        await self._sweeper.sweep()

    # ---- finding a rollout

    def _ready(self, key: RolloutKey, task: Task) -> Rollout | None:
        """The rollout, when it is in memory and at work: the way of nearly every call."""
        rollout = self._life.live.get(key)
        if rollout is None or rollout.state.phase is not Phase.LIVE or rollout.task.id != task.id:
            return None
        return rollout

    async def _find(self, key: RolloutKey, task: Task, deadline: float) -> Rollout | Binding:
        """The rollout in memory, loaded if need be; the binding of one that is over. Adoption is waited for.

        Raises TaskConflict, StaleLease, Draining, StillRunning.
        """
        while True:
            rollout = self._life.live.get(key)
            if rollout is None:
                found = await self._load(key, task, deadline)
                if isinstance(found, Binding):
                    _refuse_other_task(found.task, task)
                    return found
                rollout = found
            _refuse_other_task(rollout.task.id, task)
            if rollout.adopted is not None and not rollout.adopted.done():
                await self._wait(rollout, rollout.adopted, deadline)
            if self._life.live.get(key) is rollout:
                return rollout

    async def _load(self, key: RolloutKey, task: Task, deadline: float) -> Rollout | Binding:
        """From the store, once for all who ask at the same time."""
        loading = self._loading.get(key)
        if loading is None:
            self._refuse_when_draining()
            loading = self._loading[key] = watched()
            self._tasks.start(self._bind(key, task, loading), name=f"bind {key}")
        await asyncio.wait({loading}, timeout=max(0.0, deadline - time.monotonic()))
        if not loading.done():
            raise StillRunning("the store has not answered yet; retry")
        return loading.result()

    async def _bind(self, key: RolloutKey, task: Task, loading: "asyncio.Future[Rollout | Binding]") -> None:
        try:
            loading.set_result(await self._bound(key, task))
        except asyncio.CancelledError:
            loading.set_exception(Draining("the host is stopping; retry"))
            raise
        except Exception as error:  # noqa: BLE001  whatever it is, those who wait must hear it
            loading.set_exception(ours(error, "binding the rollout", key))
        finally:
            del self._loading[key]

    async def _bound(self, key: RolloutKey, task: Task) -> Rollout | Binding:
        asked_at = time.time()
        binding = await self._parts.store.bind(key, task.id, self._id)
        if binding.state not in OPEN_STATES:
            return binding
        _refuse_other_task(binding.task, task)
        binding = await self._own(binding)
        if binding.boot_id is not None and binding.state is RolloutState.OPEN:
            self._adoption.begin(binding, task)
            return self._life.live[key]
        rollout = Rollout(binding=binding, task=task, state=self._boxless(binding, task))
        if binding.sandbox is not None or binding.created_at < asked_at:
            await self._read_record(rollout)
        self._life.live[key] = rollout
        return rollout

    async def _own(self, binding: Binding) -> Binding:
        """Another host's rollout is taken over where its box can be: by compare-and-set, and its next epoch. Raises StaleLease."""
        if binding.host == self._id:
            return binding
        self._refuse_foreign(binding)
        if binding.boot_id is not None and binding.state is RolloutState.OPEN:
            return binding  # adoption takes it over
        return await self._parts.store.adopt(binding, self._id)

    def _boxless(self, binding: Binding, task: Task) -> LeaseState:
        """Of a rollout that never had a box, or whose evidence is stored and whose grade failed: its box has ended."""
        return LeaseState(
            phase=Phase.GRADING if binding.state is RolloutState.GRADING else Phase.UNOPENED,
            budget=task.max_calls,
            ttl_s=self._settings.idle_ttl_s,
            active_at=self._parts.clock(),
        )

    async def _read_record(self, rollout: Rollout) -> None:
        """A rollout that was seen before and has no box: calls may have been answered, and a grade may have begun."""
        records = await self._parts.store.calls(rollout.key)
        rollout.finished = {record.key for record in records}
        rollout.evidence = await self._parts.store.evidence(rollout.key)
        if rollout.state.phase is Phase.UNOPENED:
            rollout.restore(record_read(records), graded_so_far=rollout.evidence is not None)

    # ---- the rest

    def _enter(self, rollout: Rollout, request: CallRequest) -> Entry:
        """Start a call, or queue it behind those it has to wait for."""
        self._refuse_when_draining()
        planned = plan(request.tool, request.arguments_text, rollout.task, self._parts.tools)
        entry = rollout.entries[request.key] = Entry(request, planned)
        runnable = isinstance(planned, Runnable)
        self._life.post(rollout, CallArrived(key=request.key, order=order_of(planned), boxless=not runnable))
        return entry

    async def _wait(self, rollout: Rollout, work: "asyncio.Future[T]", deadline: float) -> T:
        """Wait for work that goes on without us. Raises HostFull (still queued after `open_wait_s`), StillRunning."""
        rollout.waiters += 1
        try:
            if rollout.state.phase is Phase.OPENING:
                opens_by = min(deadline, time.monotonic() + self._settings.open_wait_s)
                await asyncio.wait({work}, timeout=max(0.0, opens_by - time.monotonic()))
                if not work.done() and self._is_queued(rollout):
                    short = self._gate.admission.shortage()
                    raise HostFull(f"no box is free yet ({short}); the place in the queue is kept for a retry")
            if not work.done():
                await asyncio.wait({work}, timeout=max(0.0, deadline - time.monotonic()))
            if not work.done():
                raise StillRunning("the work goes on; a retry joins it")
            return work.result()
        finally:
            rollout.waiters -= 1
            rollout.interest_at = self._parts.clock()

    def _is_queued(self, rollout: Rollout) -> bool:
        return rollout.ticket is not None and self._gate.admission.is_waiting(rollout.ticket)

    async def _recorded(self, request: CallRequest) -> ToolReply | None:
        record = await self._parts.store.recorded(request.rollout, request.key)
        return None if record is None else record.reply

    def _refuse_when_draining(self) -> None:
        if self._draining:
            raise Draining("this host is draining; retry")

    def _refuse_foreign(self, binding: Binding) -> None:
        if binding.host != self._id and self._parts.backend.scope is Scope.HOST:
            raise StaleLease(f"this rollout is owned by host {binding.host}")


def _refuse_other_task(bound: TaskId, asked: Task) -> None:
    if bound != asked.id:
        raise TaskConflict(f"this rollout is bound to task {bound!r}; the request names {asked.id!r}")


def _raise(error: TiltyardError) -> NoReturn:
    raise error
