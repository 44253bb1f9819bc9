"""The life of one rollout as a pure state machine: events and `now` in, new state and actions out. No I/O, clock or loop.

    UNOPENED -> OPENING -> LIVE -> GATHERING -> GRADING -> CLOSED (graded)
        |          |        |`-> DEAD -^  |        |
        |          |        `-----|-------+--------+--> CLOSING -> CLOSED (expired, released, lost)
        |          `-> DROPPED (failed start, stale epoch, failed grade: the store alone remembers)
        `-> GATHERING (a grade without calls)
    ADOPTING -> LIVE | DEAD | GATHERING | GRADING | CLOSING | DROPPED

Events tell facts that have happened; those that speak of the store (`EvidenceStored`, `Graded`, `TombstoneWritten`) come after its commit.
Late events are no error: a phase ignores what it has no use for.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import assert_never

from orchestrator.hosts.events import (
    OVER,
    TAKES_CALLS,
    Action,
    Barred,
    BoxAdopted,
    BoxChosen,
    BoxDied,
    BoxLost,
    BoxReady,
    BoxWanted,
    Call,
    CallArrived,
    CallEnded,
    EndBox,
    Event,
    EvidenceStored,
    FailCalls,
    Forget,
    Gather,
    GradeAsked,
    Graded,
    GradeFailed,
    LeaseState,
    OpenBox,
    Phase,
    RecordRead,
    ReleaseAsked,
    RunGraders,
    Stale,
    StartCall,
    StartFailed,
    Tick,
    TombstoneFailed,
    TombstoneWritten,
    Verdict,
    WriteTombstone,
)
from orchestrator.models import RolloutState

BESIDE = 64
"""Calls of one rollout that run at once; others wait. A box takes 256 operations and connections, and a model may ask for any number."""

Step = tuple[LeaseState, tuple[Action, ...]]


def step(state: LeaseState, event: Event, now: float) -> Step:
    """The one transition function. `now` is monotonic seconds."""
    if state.phase in OVER:
        return state, _refusal(event)
    match event:
        case CallArrived():
            return _call_arrived(state, event, now)
        case CallEnded():
            return _call_ended(state, event, now)
        case Tick():
            return _tick(state, now)
        case (
            BoxWanted() | BoxChosen() | BoxReady() | StartFailed() | RecordRead() | BoxAdopted() | BoxDied() | BoxLost()
        ):
            return _box(state, event, now)
        case GradeAsked() | EvidenceStored() | GradeFailed() | Graded() | Barred():
            return _grade(state, event, now)
        case ReleaseAsked():
            ending = state.phase is Phase.GRADING or state.busy
            return (state, ()) if ending else _close(state, RolloutState.RELEASED, event.reason)
        case TombstoneWritten() | TombstoneFailed() | Stale():
            return _end(state, event)
        case _:
            assert_never(event)


def _refusal(event: Event) -> tuple[Action, ...]:
    return (FailCalls(keys=(event.key,)),) if isinstance(event, CallArrived) else ()


# ---- calls


def _call_arrived(state: LeaseState, event: CallArrived, now: float) -> Step:
    if state.phase not in TAKES_CALLS or state.grade_asked:
        return state, _refusal(event)
    if any(call.key == event.key for call in state.queue):
        return state, ()
    call, state = _numbered(state, event)
    state = replace(state, active_at=now)
    if call.boxless:
        started = replace(call, running=True)
        return replace(state, queue=(*state.queue, started)), (StartCall(call=started),)
    state = replace(state, queue=(*state.queue, call))
    if state.phase is Phase.UNOPENED:
        return replace(state, phase=Phase.OPENING), (OpenBox(),)
    return _start(state) if state.phase is Phase.LIVE else (state, ())


def _numbered(state: LeaseState, event: CallArrived) -> tuple[Call, LeaseState]:
    """The call with its number; a retry keeps the one it had, and is charged once."""
    dead = state.phase is Phase.DEAD
    known = next((call for call in state.failed if call.key == event.key), None)
    if known is not None:
        failed = tuple(call for call in state.failed if call is not known)
        verdict = Verdict.DEAD if dead else known.verdict
        return replace(known, running=False, verdict=verdict, boxless=known.boxless or dead), replace(
            state, failed=failed
        )
    verdict = Verdict.DEAD if dead else Verdict.EXHAUSTED if state.charged >= state.budget else Verdict.RUN
    charged = state.charged + (verdict is Verdict.RUN)
    call = Call(
        key=event.key,
        sequence=state.next_sequence,
        order=event.order,
        boxless=event.boxless or verdict is not Verdict.RUN,
        last=verdict is Verdict.RUN and charged == state.budget,
        verdict=verdict,
    )
    return call, replace(state, next_sequence=state.next_sequence + 1, charged=charged)


def startable(queue: tuple[Call, ...]) -> Iterator[Call]:
    """In order of arrival: an exclusive call starts when all earlier ones ended, a shared one when no exclusive one and none of
    its lane is before it, and fewer than BESIDE run."""
    first, running, lanes = True, sum(call.running and not call.boxless for call in queue), set[str]()
    for call in queue:
        if call.boxless:
            continue
        if call.order.exclusive:
            if first and not call.running:
                yield call
            return
        if not call.running and call.order.lane not in lanes and running < BESIDE:
            running += 1
            yield call
        if call.order.lane is not None:
            lanes.add(call.order.lane)
        first = False


def _start(state: LeaseState) -> Step:
    """Start what may start. In DEAD everything may: it only answers."""
    dead = state.phase is Phase.DEAD
    ready = {call.key for call in (state.queue if dead else startable(state.queue)) if not call.running}
    if not ready:
        return state, ()
    verdict = Verdict.DEAD if dead else Verdict.RUN
    queue = tuple(replace(call, running=True, verdict=verdict) if call.key in ready else call for call in state.queue)
    return replace(state, queue=queue), tuple(StartCall(call=call) for call in queue if call.key in ready)


def _call_ended(state: LeaseState, event: CallEnded, now: float) -> Step:
    ended = next((call for call in state.queue if call.key == event.key), None)
    if ended is None:
        return state, ()
    queue = tuple(call for call in state.queue if call.key != event.key)
    failed = state.failed if event.recorded else (*state.failed, ended)
    state = replace(state, queue=queue, failed=failed, active_at=now)
    return _start(state) if state.phase in (Phase.LIVE, Phase.DEAD) else (state, ())


def _fail_all(state: LeaseState) -> Step:
    """Empty the queue."""
    if not state.queue:
        return state, ()
    return replace(state, queue=()), (FailCalls(keys=tuple(call.key for call in state.queue)),)


# ---- the box


def _box(
    state: LeaseState,
    event: BoxWanted | BoxChosen | BoxReady | StartFailed | RecordRead | BoxAdopted | BoxDied | BoxLost,
    now: float,
) -> Step:
    match event:
        case BoxWanted() if state.phase is Phase.UNOPENED:
            return replace(state, phase=Phase.OPENING, active_at=now), (OpenBox(),)
        case BoxChosen() if state.phase is Phase.OPENING:
            return replace(state, sandbox=event.sandbox), ()
        case BoxReady() if state.phase is Phase.OPENING:
            return _live(replace(state, active_at=now))
        case StartFailed() if state.phase in (Phase.OPENING, Phase.ADOPTING):
            state, failed = _fail_all(replace(state, phase=Phase.DROPPED))
            return state, (*failed, Forget(remove=state.sandbox))
        case RecordRead() if state.phase is Phase.ADOPTING:
            return replace(state, next_sequence=event.next_sequence, charged=event.charged), ()
        case BoxAdopted() if state.phase is Phase.ADOPTING:
            return _adopted(state, event)
        case BoxDied() if state.phase in (Phase.LIVE, Phase.ADOPTING, Phase.GATHERING):
            return _died(state, event)
        case BoxLost() if state.phase not in (Phase.GRADING, Phase.CLOSING):
            return _close(state, RolloutState.LOST, event.reason)
        case _:
            return state, ()


def _live(state: LeaseState) -> Step:
    state = replace(state, phase=Phase.LIVE)
    return _gather(state) if state.grade_asked else _start(state)


def _adopted(state: LeaseState, event: BoxAdopted) -> Step:
    if event.frozen:  # a grade had begun: no operation runs there any more, and its retry gathers again
        state = replace(state, phase=Phase.GATHERING)
        return _grade_asked(state) if state.grade_asked else (state, ())
    pending = tuple(
        replace(call, last=state.charged + place == state.budget) for place, call in enumerate(event.pending, start=1)
    )
    state = replace(
        state,
        queue=pending,
        charged=state.charged + len(pending),
        next_sequence=max([state.next_sequence, *(call.sequence + 1 for call in pending)]),
    )
    return _live(state)


def _died(state: LeaseState, event: BoxDied) -> Step:
    state = replace(state, died=state.died or event.end)
    if state.phase is Phase.GATHERING:
        return state, ()
    state = replace(state, phase=Phase.DEAD)
    return _gather(state) if state.grade_asked else _start(state)


# ---- the grade


def _grade(state: LeaseState, event: GradeAsked | EvidenceStored | GradeFailed | Graded | Barred, now: float) -> Step:
    match event:
        case GradeAsked():
            return _grade_asked(state)
        case EvidenceStored() if state.phase in (Phase.GATHERING, Phase.ADOPTING):
            return _graders(state)
        case GradeFailed() if state.phase is Phase.GATHERING:
            return replace(state, busy=False, active_at=now), ()
        case GradeFailed() if state.phase is Phase.GRADING:
            return replace(state, phase=Phase.DROPPED, busy=False), (Forget(),)
        case Graded() if state.phase is Phase.GRADING:
            return replace(state, phase=Phase.CLOSED, busy=False, end=RolloutState.GRADED), (Forget(),)
        case Barred() if state.phase is Phase.GRADING:
            return replace(state, phase=Phase.CLOSED, busy=False, end=RolloutState.RELEASED), (Forget(),)
        case _:
            return state, ()


def _grade_asked(state: LeaseState) -> Step:
    if state.phase in (Phase.OPENING, Phase.ADOPTING):
        return replace(state, grade_asked=True), ()
    if state.phase is Phase.CLOSING or state.busy:
        return state, ()
    if state.phase is Phase.GRADING:
        return replace(state, busy=True), (RunGraders(),)
    return _gather(state)


def _gather(state: LeaseState) -> Step:
    """Refuse what did not start, let the rest end."""
    waiting = tuple(call.key for call in state.queue if not call.running)
    state = replace(state, phase=Phase.GATHERING, busy=True, grade_asked=True, queue=state.running)
    return state, ((FailCalls(keys=waiting), Gather()) if waiting else (Gather(),))


def _graders(state: LeaseState) -> Step:
    state, failed = _fail_all(state)
    ended = (EndBox(sandbox=state.sandbox),) if state.sandbox is not None else ()
    return replace(state, phase=Phase.GRADING, busy=True, sandbox=None), (*failed, *ended, RunGraders())


# ---- the end


def _close(state: LeaseState, end: RolloutState, reason: str) -> Step:
    if state.phase is Phase.CLOSING:
        return state, ()
    state, failed = _fail_all(replace(state, phase=Phase.CLOSING, busy=True, end=end, reason=reason))
    return state, (*failed, WriteTombstone(end=end, reason=reason))


def _end(state: LeaseState, event: TombstoneWritten | TombstoneFailed | Stale) -> Step:
    match event:
        case Stale():
            state, failed = _fail_all(replace(state, phase=Phase.DROPPED, busy=False))
            return state, (*failed, Forget(fence=state.sandbox))
        case TombstoneWritten() if state.phase is Phase.CLOSING:
            return replace(state, phase=Phase.CLOSED, busy=False), (Forget(remove=state.sandbox),)
        case TombstoneFailed() if state.phase is Phase.CLOSING:
            return replace(state, busy=False), ()
        case _:
            return state, ()


def due(state: LeaseState, now: float) -> bool:
    """Whether a `Tick` would do anything: thousands of rollouts are asked this every round."""
    return not state.queue and not state.busy and (state.phase is Phase.CLOSING or now - state.active_at >= state.ttl_s)


def _tick(state: LeaseState, now: float) -> Step:
    if not due(state, now) or state.phase in (Phase.OPENING, Phase.ADOPTING):
        return state, ()
    if state.phase is Phase.CLOSING and state.end is not None:
        return replace(state, busy=True), (WriteTombstone(end=state.end, reason=state.reason),)
    if state.phase is Phase.GRADING:  # its evidence is stored: a later grade starts from there
        return replace(state, phase=Phase.DROPPED), (Forget(),)
    return _close(state, RolloutState.EXPIRED, f"no call for {state.ttl_s:g} s")
