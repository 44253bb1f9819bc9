"""Carries out what `leases` decides: the thin, asynchronous side of every rollout in this host's memory.

Each piece of work is a task that this host owns and that reports back by an event; nobody's disconnect cancels it.
"""

import asyncio
import time
from functools import partial
from typing import assert_never

import structlog

from orchestrator import failpoints
from orchestrator.errors import (
    AgentProtocolError,
    GraderError,
    ReplayDiverged,
    RolloutClosed,
    SandboxDead,
    SandboxLost,
    StaleLease,
    StoreError,
    TiltyardError,
)
from orchestrator.grading import grade_rollout
from orchestrator.hosts.bench import HostBench
from orchestrator.hosts.calls import Entry, Runnable, dead_reply, record_of, reply_to
from orchestrator.hosts.events import (
    Action,
    Barred,
    BoxChosen,
    BoxDied,
    BoxLost,
    BoxReady,
    Call,
    CallEnded,
    EndBox,
    Event,
    EvidenceStored,
    FailCalls,
    Forget,
    Gather,
    Graded,
    GradeFailed,
    OpenBox,
    Phase,
    RunGraders,
    Stale,
    StartCall,
    StartFailed,
    TombstoneFailed,
    TombstoneWritten,
    Verdict,
    WriteTombstone,
)
from orchestrator.hosts.evidence import end_of, gather
from orchestrator.hosts.leases import step
from orchestrator.hosts.opening import open_box, template_of
from orchestrator.hosts.parts import Parts
from orchestrator.hosts.reserve import Reserve
from orchestrator.hosts.rollout import Rollout, fail, over, watched
from orchestrator.hosts.supervised import OwnedTasks
from orchestrator.interfaces import Sandbox
from orchestrator.models import Evidence, Reward, RolloutKey, RolloutState, SandboxId, ToolReply

log = structlog.get_logger(__name__)

MAX_UNCHARGED = 100
"""Calls beyond the budget, or to a dead box, that are recorded: a model that goes on calling must not fill the disk. Later ones get the same
text, which needs no record to stay the same."""

NEVER = "never to be scored"


class NeverScored(RolloutClosed):
    """A caller's mistake was answered."""


def ours(error: Exception, what: str, rollout: RolloutKey) -> TiltyardError:
    """The error for those who wait. One that is not of our tree is a fault in tiltyard: the log has it, the trainer does not."""
    if isinstance(error, TiltyardError):
        return error
    log.error("fault", what=what, rollout=str(rollout), exc_info=error)
    return TiltyardError(f"{what} failed by a fault of tiltyard ({type(error).__name__}); its log says more")


class Lifecycle:
    """Every rollout in memory, by key; those that are over leave it."""

    def __init__(self, parts: Parts, tasks: OwnedTasks, reserve: Reserve) -> None:
        self.parts = parts
        self.tasks = tasks
        self.reserve = reserve
        self.live: dict[RolloutKey, Rollout] = {}
        self.fenced: set[SandboxId] = set()
        """Boxes of rollouts that another host took over: never touched from here."""
        self.stopped = False
        """Nothing follows from an event any more: the successor goes on from the store and the boxes."""

    def post(self, rollout: Rollout, event: Event, error: TiltyardError | None = None) -> None:
        """Tell what happened; what follows from it is started. `error` is what those whose wish ends with it are told."""
        if self.stopped:
            return
        rollout.state, actions = step(rollout.state, event, self.parts.clock())
        for action in actions:
            self._act(rollout, action, error)
        rollout.settle(error)

    def _act(self, rollout: Rollout, action: Action, error: TiltyardError | None) -> None:
        match action:
            case OpenBox():
                rollout.opened = watched()
                rollout.opening = self.tasks.start(self._open(rollout), name=f"open {rollout.key}")
            case StartCall(call=call):
                entry = rollout.entries[call.key]
                entry.task = self.tasks.start(self._run(rollout, entry, call), name="call")
            case FailCalls():
                self._fail_calls(rollout, action, error)
            case Gather():
                self.tasks.start(self._gather(rollout), name=f"gather {rollout.key}")
            case EndBox(sandbox=sandbox_id):
                rollout.removal = self.parts.remover.retire(sandbox_id, box=lambda: rollout.sandbox)
            case RunGraders():
                self.tasks.start(self._grade(rollout), name=f"grade {rollout.key}")
            case WriteTombstone():
                self._stop_opening(rollout)
                self.tasks.start(self._tombstone(rollout, action), name=f"close {rollout.key}")
            case Forget():
                self._forget(rollout, action)
            case _:
                assert_never(action)

    # ---- the box

    async def _open(self, rollout: Rollout) -> None:
        try:
            await open_box(self.parts, rollout, lambda chosen: self.post(rollout, BoxChosen(sandbox=chosen)))
        except StaleLease as error:
            self.post(rollout, Stale(), error)
        except Exception as error:  # noqa: BLE001  whatever it is, those who wait must hear it
            failure = ours(error, "opening a box", rollout.key)
            log.warning("open_failed", rollout=str(rollout.key), reason=failure.reason, error=failure.message)
            self.post(rollout, StartFailed(), failure)
        else:
            self.post(rollout, BoxReady())
            self.reserve.want(rollout.task)

    def _stop_opening(self, rollout: Rollout) -> None:
        opening = rollout.opening
        if opening is not None and opening is not asyncio.current_task():
            opening.cancel()

    def _forget(self, rollout: Rollout, action: Forget) -> None:
        """Out of memory at once; the slot comes back when the last box that used it is gone."""
        if self.live.get(rollout.key) is rollout:
            del self.live[rollout.key]
        self._stop_opening(rollout)
        if rollout.acknowledging is not None:
            rollout.acknowledging.cancel()
        if action.fence is not None:
            self.fenced.add(action.fence)
            log.warning("lease_lost", rollout=str(rollout.key), sandbox=action.fence)
        if action.remove is not None:
            after = None if rollout.opening is asyncio.current_task() else rollout.opening
            rollout.removal = self.parts.remover.retire(action.remove, box=lambda: rollout.sandbox, after=after)
        elif rollout.sandbox is not None and rollout.removal is None:
            self.tasks.start(rollout.sandbox.aclose(), name="close connection")
        self._give_back(rollout)

    def _give_back(self, rollout: Rollout) -> None:
        if rollout.ticket is None:
            return
        release = partial(self.parts.gate.release, rollout.ticket)
        if rollout.removal is None or rollout.removal.done():
            release()
        else:
            rollout.removal.add_done_callback(lambda _: release())

    # ---- calls

    async def _run(self, rollout: Rollout, entry: Entry, call: Call) -> None:
        started_at = time.time()
        try:
            reply = await self._reply(rollout, entry, call)
            recorded = call.verdict is Verdict.RUN or call.sequence <= rollout.task.max_calls + MAX_UNCHARGED
            if recorded:
                await self.parts.store.record(rollout.binding, record_of(entry, call, reply, started_at=started_at))
            failpoints.hit("before_reply")
        except Exception as error:  # noqa: BLE001  whatever it is, those who wait must hear it
            self._call_failed(rollout, entry, error)
            return
        entry.finish(reply)
        if recorded:
            rollout.keep(entry, reply, self.parts.settings.kept_replies_bytes)
        else:
            rollout.entries.pop(call.key, None)
        self.post(rollout, CallEnded(key=call.key, recorded=True))
        if isinstance(entry.plan, Runnable) and call.verdict is Verdict.RUN:
            self.acknowledge(rollout, entry)

    async def _reply(self, rollout: Rollout, entry: Entry, call: Call) -> ToolReply:
        """A box that does not answer is asked once more, from a new connection, before it counts as lost; the tool replays what was done."""
        slack_s = self.parts.settings.operation_slack_s
        for retry in (True, False):
            used = rollout.sandbox
            try:
                try:
                    died = rollout.state.died
                    return await reply_to(entry, call, sandbox=used, died=died, task=rollout.task, slack_s=slack_s)
                except SandboxLost as error:
                    if not retry or isinstance(error, AgentProtocolError):
                        raise
                    await self._reattach(rollout, used)
            except SandboxDead as error:
                self.post(rollout, BoxDied(end=end_of(error)))
                return dead_reply(end_of(error))
        raise AssertionError("unreachable")  # pragma: no cover

    async def _reattach(self, rollout: Rollout, used: Sandbox | None) -> None:
        """A new connection in place of `used`, unless another call made one already. Raises SandboxLost, SandboxDead, StaleLease."""
        async with rollout.reattaching:
            if used is None or rollout.sandbox is not used:
                return
            fresh = await self.parts.backend.attach(used.id)
            lease = await fresh.lease(rollout.key, rollout.binding.epoch)
            if lease.boot_id != rollout.binding.boot_id:
                await fresh.aclose()
                raise SandboxLost("the box was restarted")
            rollout.sandbox = fresh
            await used.aclose()

    def _call_failed(self, rollout: Rollout, entry: Entry, error: Exception) -> None:
        failure = ours(error, "the call", rollout.key)
        grading = rollout.state.phase is Phase.GATHERING
        if grading:  # the box is frozen: what it says of a running call means nothing
            failure = over(rollout.state)
        log.warning("call_failed", rollout=str(rollout.key), tool=entry.request.tool, reason=failure.reason)
        if isinstance(error, StaleLease):
            self.post(rollout, Stale(), failure)
        elif isinstance(error, SandboxLost | ReplayDiverged) and not grading:
            self.post(rollout, BoxLost(reason=f"{failure.reason}: {failure.message}"), failure)
        else:
            rollout.entries.pop(entry.request.key, None)
            entry.fail(failure)
            self.post(rollout, CallEnded(key=entry.request.key, recorded=False))

    def _fail_calls(self, rollout: Rollout, action: FailCalls, error: TiltyardError | None) -> None:
        for key in action.keys:
            entry = rollout.entries.pop(key, None)
            if entry is None:
                continue
            if entry.task is not None and entry.task is not asyncio.current_task():
                entry.task.cancel()
            if rollout.state.phase is Phase.CLOSING:
                rollout.leaving.append(entry)
            else:
                entry.fail(error or over(rollout.state))

    def acknowledge(self, rollout: Rollout, entry: Entry) -> None:
        """Tell the box, a little later and many at once, that a reply is in the record."""
        rollout.unacknowledged.append(entry.request.key)
        self.flush(rollout)

    def flush(self, rollout: Rollout) -> None:
        if rollout.unacknowledged and (rollout.acknowledging is None or rollout.acknowledging.done()):
            rollout.acknowledging = self.tasks.start(self._flush(rollout), name="acknowledge")

    async def _flush(self, rollout: Rollout) -> None:
        await asyncio.sleep(self.parts.settings.acknowledge_delay_s)
        while rollout.unacknowledged and rollout.sandbox is not None and rollout.state.phase is Phase.LIVE:
            batch, rollout.unacknowledged = rollout.unacknowledged, []
            try:
                failpoints.hit("before_acknowledge")
                await rollout.sandbox.acknowledge(batch)
            except StaleLease as error:
                self.post(rollout, Stale(), error)
            except TiltyardError as error:  # goes with the next one: the box keeps more than it must, no harm is done
                rollout.unacknowledged[:0] = batch
                log.warning("acknowledge_failed", rollout=str(rollout.key), reason=error.reason)
                return

    # ---- the grade

    async def _gather(self, rollout: Rollout) -> None:
        try:
            await self._refuse_tainted(rollout.key)
            evidence = await self._evidence(rollout)
            rollout.evidence = await self.parts.store.put_evidence(rollout.binding, evidence)
            rollout.binding = await self.parts.store.close(rollout.binding, RolloutState.GRADING, "")
            failpoints.hit("after_evidence")
        except StaleLease as error:
            self.post(rollout, Stale(), error)
        except SandboxLost as error:
            self.post(rollout, BoxLost(reason=f"{error.reason}: {error.message}"), error)
        except Exception as error:  # noqa: BLE001  whatever it is, those who wait must hear it
            self._grade_failed(rollout, error)
        else:
            self.post(rollout, EvidenceStored())

    async def _evidence(self, rollout: Rollout) -> Evidence:
        """A box that does not answer is asked once more, from a new connection, before it counts as lost."""
        used = rollout.sandbox
        try:
            return await gather(self.parts, rollout)
        except AgentProtocolError:
            raise
        except SandboxLost:
            try:
                await self._reattach(rollout, used)
            except SandboxDead as dead:
                self.post(rollout, BoxDied(end=end_of(dead)))
        return await gather(self.parts, rollout)

    async def _grade(self, rollout: Rollout) -> None:
        try:
            reward = await self.parts.store.reward(rollout.key) or await self._first_reward(rollout)
            rollout.binding = await self.parts.store.close(rollout.binding, RolloutState.GRADED, "")
        except StaleLease as error:
            self.post(rollout, Stale(), error)
        except NeverScored as error:
            await self._bar(rollout, error)
        except Exception as error:  # noqa: BLE001  whatever it is, those who wait must hear it
            self._grade_failed(rollout, error)
        else:
            if rollout.graded is not None and not rollout.graded.done():
                rollout.graded.set_result(reward)
            log.info("graded", rollout=str(rollout.key), outcome=reward.outcome, score=reward.score)
            self.post(rollout, Graded())

    async def _first_reward(self, rollout: Rollout) -> Reward:
        await self._refuse_tainted(rollout.key)
        return await self._reward(rollout, rollout.evidence or await self._stored_evidence(rollout))

    async def _bar(self, rollout: Rollout, error: NeverScored) -> None:
        """A tombstone: nobody is to run this rollout's graders again. Where it cannot be written, the next one who asks tries."""
        try:
            rollout.binding = await self.parts.store.close(rollout.binding, RolloutState.RELEASED, NEVER)
        except StaleLease as stale:
            self.post(rollout, Stale(), stale)
        except StoreError:
            self._grade_failed(rollout, error)
        else:
            self.post(rollout, Barred(), error)

    async def _reward(self, rollout: Rollout, evidence: Evidence) -> Reward:
        template = await template_of(self.parts, rollout) if rollout.binding.template else rollout.template
        bench = HostBench(
            self.parts,
            self.reserve,
            task=rollout.task,
            evidence=evidence,
            template=template,
            slot=rollout.ticket,
            removal=rollout.removal,
        )
        falls = self.parts.disk_falls.count
        try:
            grader = self.parts.graders(rollout.task.grader)
            reward = await grade_rollout(grader, bench, graded_at=time.time())
        finally:
            rollout.ticket, rollout.removal = bench.slot, bench.removal
        if self.parts.disk_falls.count != falls:  # what the grading box wrote may be lost
            raise GraderError("the host's disk ran full while grading; retry")
        await self._refuse_tainted(rollout.key)
        return await self.parts.store.put_reward(rollout.binding, reward)

    async def _stored_evidence(self, rollout: Rollout) -> Evidence:
        evidence = await self.parts.store.evidence(rollout.key)
        if evidence is None:
            raise RolloutClosed("this rollout is being graded, but its evidence is missing from the record")
        return evidence

    async def _refuse_tainted(self, key: RolloutKey) -> None:
        if reason := await self.parts.store.tainted(key):
            raise tainted(reason)

    def _grade_failed(self, rollout: Rollout, error: Exception) -> None:
        failure = ours(error, "grading", rollout.key)
        log.warning("grade_failed", rollout=str(rollout.key), reason=failure.reason, error=failure.message)
        fail(rollout.graded, failure)
        rollout.graded = None
        self.post(rollout, GradeFailed(), failure)

    # ---- the end

    async def _tombstone(self, rollout: Rollout, action: WriteTombstone) -> None:
        try:
            rollout.binding = await self.parts.store.close(rollout.binding, action.end, action.reason)
        except StaleLease as error:
            self.post(rollout, Stale(), error)
        except Exception as error:  # noqa: BLE001  tried again at the next sweep
            ours(error, "closing", rollout.key)
            log.warning("close_failed", rollout=str(rollout.key), error=str(error))
            self.post(rollout, TombstoneFailed())
        else:
            log.info("closed", rollout=str(rollout.key), end=action.end, reason=action.reason)
            self.post(rollout, TombstoneWritten())


def tainted(reason: str) -> NeverScored:
    return NeverScored(f"this rollout was answered a caller's mistake and is never scored ({reason})")
