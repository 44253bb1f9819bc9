"""The life of one rollout as a pure state machine: events and `now` in, new state and actions out. No I/O, clock or loop.

    UNOPENED -> OPENING -> LIVE -> GATHERING -> GRADING -> CLOSED (graded)
        |          |        |`-> DEAD -^  |        |
        |          |        `-----|-------+--------+--> CLOSING -> CLOSED (expired, released, lost)
        |          `-> DROPPED (failed start, stale epoch, failed grade: the store alone remembers)
        `-> GATHERING (a grade without calls)
    ADOPTING -> LIVE | DEAD | GATHERING | GRADING | CLOSING

Events tell facts that have happened; those that speak of the store (`EvidenceStored`, `Graded`, `TombstoneWritten`) come after its commit.
Late events are no error: a phase ignores what it has no use for.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import assert_never

from orchestrator.models import BoxEnd, CallKey, RolloutState, SandboxId


class Phase(StrEnum):
    UNOPENED = "unopened"  # bound in the store; no box was asked for
    OPENING = "opening"  # waiting for a slot, or its box is being made
    ADOPTING = "adopting"  # the box of an earlier process is being taken back
    LIVE = "live"
    DEAD = "dead"  # the box died by the model's doing: calls answer text
    GATHERING = "gathering"  # a grade came: no new calls, evidence is being gathered
    GRADING = "grading"  # evidence is stored, the agent's box is ended
    CLOSING = "closing"  # the tombstone is being written
    CLOSED = "closed"
    DROPPED = "dropped"  # forgotten without a tombstone


TAKES_CALLS = frozenset({Phase.UNOPENED, Phase.OPENING, Phase.LIVE, Phase.DEAD})
OVER = frozenset({Phase.CLOSED, Phase.DROPPED})


class Verdict(StrEnum):
    """What becomes of a call."""

    RUN = "run"
    DEAD = "dead"  # answer that the box died
    EXHAUSTED = "exhausted"  # answer that the budget is spent


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A call between arrival and end. `boxless` ones need no box and no order (the arguments were bad, the budget is spent)."""

    key: CallKey
    sequence: int
    exclusive: bool = False
    boxless: bool = False
    last: bool = False
    running: bool = False
    verdict: Verdict = Verdict.RUN


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseState:
    """`queue` is in order of arrival; `failed` are calls that ended without a recorded reply and keep their number for the retry."""

    phase: Phase
    budget: int
    ttl_s: float
    active_at: float
    sandbox: SandboxId | None = None
    queue: tuple[Call, ...] = ()
    failed: tuple[Call, ...] = ()
    next_sequence: int = 1
    charged: int = 0
    grade_asked: bool = False
    busy: bool = False
    """Evidence is being gathered, graders run, or a tombstone is being written, right now."""
    died: BoxEnd | None = None
    end: RolloutState | None = None
    reason: str = ""

    @property
    def running(self) -> tuple[Call, ...]:
        return tuple(call for call in self.queue if call.running)


# ---- events


@dataclass(frozen=True, slots=True, kw_only=True)
class CallArrived:
    key: CallKey
    exclusive: bool
    boxless: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CallEnded:
    """`recorded`: its reply is in the record. Otherwise a retry of the same key takes the same number."""

    key: CallKey
    recorded: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxWanted:
    """An explicit open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxChosen:
    """The store names this box for the rollout; it may exist from now on."""

    sandbox: SandboxId


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxReady:
    """Leased to the rollout, and the store says so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StartFailed:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordRead:
    """What the record says of calls that an earlier process ran."""

    next_sequence: int
    charged: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxAdopted:
    """`pending` are calls the box knows and the record does not, in journal order: each began, so each is charged."""

    pending: tuple[Call, ...] = ()
    frozen: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxDied:
    """By the model's doing."""

    end: BoxEnd


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxLost:
    """Not by the model's doing."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GradeAsked:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceStored:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class GradeFailed:
    """By our fault; a retry starts from what is stored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Graded:
    """The reward is stored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseAsked:
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TombstoneWritten:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class TombstoneFailed:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Stale:
    """Another host owns the rollout."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    pass


Event = (
    CallArrived
    | CallEnded
    | BoxWanted
    | BoxChosen
    | BoxReady
    | StartFailed
    | RecordRead
    | BoxAdopted
    | BoxDied
    | BoxLost
    | GradeAsked
    | EvidenceStored
    | GradeFailed
    | Graded
    | ReleaseAsked
    | TombstoneWritten
    | TombstoneFailed
    | Stale
    | Tick
)


# ---- actions


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenBox:
    """Get a slot, choose an id, make the box."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StartCall:
    call: Call


@dataclass(frozen=True, slots=True, kw_only=True)
class FailCalls:
    """Stop what runs of these and answer with the reason at hand; none of them gets a recorded reply here."""

    keys: tuple[CallKey, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gather:
    """Let running calls end, freeze, take the evidence, store it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndBox:
    """Remove the agent's box; its slot stays with the rollout."""

    sandbox: SandboxId


@dataclass(frozen=True, slots=True, kw_only=True)
class RunGraders:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteTombstone:
    end: RolloutState
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Forget:
    """Drop the rollout from memory and give its slot back, after `remove` is gone. `fence` is a box that is never to be touched."""

    remove: SandboxId | None = None
    fence: SandboxId | None = None


Action = OpenBox | StartCall | FailCalls | Gather | EndBox | RunGraders | WriteTombstone | Forget
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
        case GradeAsked() | EvidenceStored() | GradeFailed() | Graded():
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
        exclusive=event.exclusive,
        boxless=event.boxless or verdict is not Verdict.RUN,
        last=verdict is Verdict.RUN and charged == state.budget,
        verdict=verdict,
    )
    return call, replace(state, next_sequence=state.next_sequence + 1, charged=charged)


def startable(queue: tuple[Call, ...]) -> Iterator[Call]:
    """Readers and writers in order of arrival: an exclusive call starts when all earlier ones ended, a shared one when no
    exclusive one is before it."""
    first = True
    for call in queue:
        if call.boxless:
            continue
        if call.exclusive:
            if first and not call.running:
                yield call
            return
        if not call.running:
            yield call
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
        case StartFailed() if state.phase is Phase.OPENING:
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


def _grade(state: LeaseState, event: GradeAsked | EvidenceStored | GradeFailed | Graded, now: float) -> Step:
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


def _tick(state: LeaseState, now: float) -> Step:
    if state.phase is Phase.CLOSING and not state.busy and state.end is not None:
        return replace(state, busy=True), (WriteTombstone(end=state.end, reason=state.reason),)
    idle = state.phase in (Phase.UNOPENED, Phase.LIVE, Phase.DEAD, Phase.GATHERING, Phase.GRADING)
    if not idle or state.queue or state.busy or now - state.active_at < state.ttl_s:
        return state, ()
    if state.phase is Phase.GRADING:  # its evidence is stored: a later grade starts from there
        return replace(state, phase=Phase.DROPPED), (Forget(),)
    return _close(state, RolloutState.EXPIRED, f"no call for {state.ttl_s:g} s")
