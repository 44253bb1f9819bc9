"""The lease's state machine: what may never happen, whatever comes in whatever order."""

from dataclasses import replace
from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from orchestrator.hosts.events import (
    OVER,
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
from orchestrator.hosts.leases import BESIDE, due, startable, step
from orchestrator.interfaces import EXCLUSIVE, SHARED, Order
from orchestrator.models import BoxEnd, CallKey, RolloutState, SandboxId

TTL_S = 100.0
BUDGET = 4


def fresh(**changes: Any) -> LeaseState:
    return replace(LeaseState(phase=Phase.UNOPENED, budget=BUDGET, ttl_s=TTL_S, active_at=0.0), **changes)


def after(state: LeaseState, *events: Event, now: float = 0.0) -> tuple[LeaseState, list[Any]]:
    actions: list[Any] = []
    for event in events:
        state, more = step(state, event, now)
        actions += more
    return state, actions


def arrived(name: str, *, order: Order = SHARED, boxless: bool = False) -> CallArrived:
    return CallArrived(key=CallKey(name), order=order, boxless=boxless)


def ended(name: str, *, recorded: bool = True) -> CallEnded:
    return CallEnded(key=CallKey(name), recorded=recorded)


BOX = SandboxId("box")
LIVE = (BoxWanted(), BoxChosen(sandbox=BOX), BoxReady())


def test_the_plain_life_of_a_rollout() -> None:
    state, actions = after(fresh(), arrived("a"))
    assert actions == [OpenBox()]
    state, actions = after(state, BoxChosen(sandbox=BOX), BoxReady())
    [start] = actions
    assert (start.call.key, start.call.sequence, start.call.verdict) == ("a", 1, Verdict.RUN)
    state, actions = after(state, ended("a"), GradeAsked())
    assert actions == [Gather()]
    state, actions = after(state, EvidenceStored())
    assert actions == [EndBox(sandbox=BOX), RunGraders()]
    state, actions = after(state, Graded())
    assert actions == [Forget()]
    assert (state.phase, state.end) == (Phase.CLOSED, RolloutState.GRADED)


def test_a_failed_start_leaves_no_memory_but_removes_what_may_exist() -> None:
    state, actions = after(fresh(), arrived("a"), BoxChosen(sandbox=BOX), StartFailed())
    assert state.phase is Phase.DROPPED
    assert actions == [OpenBox(), FailCalls(keys=(CallKey("a"),)), Forget(remove=BOX)]


def test_a_stale_epoch_ends_the_rollout_here_without_touching_the_box() -> None:
    for events in (LIVE, (*LIVE, arrived("a")), (*LIVE, GradeAsked()), (*LIVE, ReleaseAsked(reason=""))):
        state, _ = after(fresh(), *events)
        state, actions = after(state, Stale())
        assert state.phase is Phase.DROPPED
        assert actions[-1] == Forget(fence=BOX)


def test_the_budgets_last_call_says_so_and_the_next_does_not_run() -> None:
    state, _ = after(fresh(budget=2), *LIVE)
    state, actions = after(state, arrived("a"), arrived("b"), arrived("c"))
    assert [(start.call.last, start.call.verdict) for start in actions] == [
        (False, Verdict.RUN),
        (True, Verdict.RUN),
        (False, Verdict.EXHAUSTED),
    ]
    assert state.charged == 2


def test_a_failed_call_keeps_its_number_and_is_charged_once() -> None:
    state, _ = after(fresh(), *LIVE, arrived("a"), ended("a", recorded=False), arrived("b"))
    state, [start] = after(state, arrived("a"))
    assert (start.call.sequence, state.charged, state.next_sequence) == (1, 2, 3)


def test_a_boxless_call_asks_for_no_box() -> None:
    state, actions = after(fresh(), arrived("a", boxless=True))
    assert state.phase is Phase.UNOPENED
    assert [type(action) for action in actions] == [StartCall]


def test_calls_of_a_dead_box_are_answered_and_not_charged() -> None:
    state, _ = after(fresh(), *LIVE, arrived("a", order=EXCLUSIVE), arrived("b"))
    state, [start] = after(state, BoxDied(end=BoxEnd.DIED_OF_MEMORY))
    assert (start.call.key, start.call.verdict) == ("b", Verdict.DEAD)
    charged = state.charged
    state, [late] = after(state, arrived("c"))
    assert late.call.verdict is Verdict.DEAD
    assert state.charged == charged


def test_expiry_comes_after_the_idle_time_and_not_during_a_call() -> None:
    state, _ = after(fresh(), *LIVE, arrived("a"))
    state, actions = after(state, Tick(), now=TTL_S * 10)
    assert actions == []
    state, _ = after(state, ended("a"), now=TTL_S * 10)
    state, actions = after(state, Tick(), now=TTL_S * 11 - 1)
    assert actions == []
    state, actions = after(state, Tick(), now=TTL_S * 11)
    assert [type(action) for action in actions] == [WriteTombstone]
    assert actions[0].end is RolloutState.EXPIRED


def test_a_tombstone_that_could_not_be_written_is_written_at_the_next_tick() -> None:
    state, _ = after(fresh(), *LIVE, BoxLost(reason="gone"), TombstoneFailed())
    state, [again] = after(state, Tick())
    assert again == WriteTombstone(end=RolloutState.LOST, reason="gone")
    state, actions = after(state, TombstoneWritten())
    assert actions == [Forget(remove=BOX)]


def test_adopted_calls_are_charged_numbered_and_run_before_others() -> None:
    state = fresh(phase=Phase.ADOPTING, sandbox=BOX)
    pending = (Call(key=CallKey("p"), sequence=7, order=EXCLUSIVE), Call(key=CallKey("q"), sequence=5))
    state, [first] = after(state, RecordRead(next_sequence=5, charged=1), BoxAdopted(pending=pending))
    assert first.call.key == "p"
    assert (state.next_sequence, state.charged) == (8, 3)
    state, actions = after(state, arrived("new"))
    assert actions == []
    state, actions = after(state, ended("p"))
    assert [(start.call.key, start.call.last) for start in actions] == [("q", False), ("new", True)]


def test_a_box_adopted_frozen_takes_no_calls_and_waits_for_its_grade() -> None:
    state, _ = after(fresh(phase=Phase.ADOPTING, sandbox=BOX), BoxAdopted(frozen=True))
    state, actions = after(state, arrived("a"))
    assert actions == [FailCalls(keys=(CallKey("a"),))]
    assert after(state, GradeAsked())[1] == [Gather()]


def test_a_grade_that_comes_while_the_box_starts_refuses_calls_from_then_on() -> None:
    state, _ = after(fresh(), arrived("a"), BoxChosen(sandbox=BOX))
    state, actions = after(state, GradeAsked(), arrived("b"))
    assert actions == [FailCalls(keys=(CallKey("b"),))]
    state, actions = after(state, BoxReady())
    assert actions == [FailCalls(keys=(CallKey("a"),)), Gather()]


def test_readers_and_writers_in_order_of_arrival() -> None:
    def names(*calls: Call) -> list[str]:
        return [str(call.key) for call in startable(calls)]

    def call(name: str, *, order: Order = SHARED, running: bool = False) -> Call:
        return Call(key=CallKey(name), sequence=1, order=order, running=running)

    assert names(call("a"), call("b"), call("W", order=EXCLUSIVE), call("c")) == ["a", "b"]
    assert names(call("a", running=True), call("W", order=EXCLUSIVE), call("c")) == []
    assert names(call("W", order=EXCLUSIVE), call("c")) == ["W"]
    assert names(call("W", order=EXCLUSIVE, running=True), call("c")) == []
    assert names(call("a", running=True), call("b")) == ["b"]


def test_calls_of_a_lane_run_one_after_another_and_others_beside_them() -> None:
    def names(*calls: Call) -> list[str]:
        return [str(call.key) for call in startable(calls)]

    def call(name: str, *, order: Order = SHARED, running: bool = False) -> Call:
        return Call(key=CallKey(name), sequence=1, order=order, running=running)

    one, two = Order(lane="one"), Order(lane="two")
    assert names(call("1a", order=one), call("1b", order=one), call("2a", order=two), call("s")) == ["1a", "2a", "s"]
    assert names(call("1a", order=one, running=True), call("1b", order=one), call("s")) == ["s"]
    assert names(call("s", running=True), call("1b", order=one)) == ["1b"]
    assert names(call("1a", order=one), call("W", order=EXCLUSIVE), call("1b", order=one)) == ["1a"]
    assert names(call("W", order=EXCLUSIVE, running=True), call("1a", order=one)) == []


def test_a_rollout_runs_so_many_calls_at_once_and_no_more() -> None:
    queue = tuple(Call(key=CallKey(f"c{number}"), sequence=1) for number in range(BESIDE + 40))
    assert [call.key for call in startable(queue)] == [f"c{number}" for number in range(BESIDE)]
    queue = tuple(replace(call, running=number >= 40) for number, call in enumerate(queue))
    assert list(startable(queue)) == []
    freed = queue[:-1]
    assert [call.key for call in startable(freed)] == ["c0"]


@given(st.lists(st.sampled_from(["s", "1", "2", "W"]), max_size=12), st.randoms(use_true_random=False))
def test_every_interleaving_keeps_the_order_that_was_promised(kinds: list[str], chance: Random) -> None:
    """Whatever ends first: an exclusive call is alone, a lane's calls follow each other as they came, and all come to run."""
    orders = {"s": SHARED, "1": Order(lane="1"), "2": Order(lane="2"), "W": EXCLUSIVE}
    queue = [Call(key=CallKey(f"{number}"), sequence=number, order=orders[kind]) for number, kind in enumerate(kinds)]
    ended: list[int] = []
    while queue:
        ready = {call.key for call in startable(tuple(queue))}
        queue = [replace(call, running=call.running or call.key in ready) for call in queue]
        running = [call for call in queue if call.running]
        assert running, "somebody can always run"
        assert len(running) == 1 or not any(call.order.exclusive for call in running)
        lanes = [call.order.lane for call in running if call.order.lane]
        assert len(lanes) == len(set(lanes))
        assert all(
            number not in ended
            for call in running
            for number in range(call.sequence + 1, len(kinds))
            if kinds[number] == "W"
        )
        over = chance.choice(running)
        ended.append(over.sequence)
        queue.remove(over)
    for lane in ("1", "2", "W"):
        numbers = [number for number in ended if kinds[number] == lane]
        assert numbers == sorted(numbers)


ORDERS = st.sampled_from([SHARED, EXCLUSIVE, Order(lane="one"), Order(lane="two")])
KEYS = st.sampled_from([CallKey(name) for name in "abcdef"])


class LeaseMachine(RuleBasedStateMachine):
    """Events in any order, late and repeated ones too; only what a real host cannot report is left out (a box before it was asked for)."""

    def __init__(self) -> None:
        super().__init__()
        self.state = fresh()
        self.now = 0.0
        self.opens = 0
        self.boxes = 0
        self.started: dict[CallKey, int] = {}
        self.recorded: set[CallKey] = set()
        self.evidence = False
        self.tombstones: list[RolloutState] = []
        self.forgotten: list[Forget] = []
        self.sequences: dict[CallKey, int] = {}

    def tell(self, event: Event) -> None:
        before = self.state
        self.state, actions = step(before, event, self.now)
        if before.phase in OVER:
            assert self.state == before
            assert all(isinstance(action, FailCalls) for action in actions)
        for action in actions:
            self.did(action, before)

    def did(self, action: Any, before: LeaseState) -> None:
        match action:
            case OpenBox():
                self.opens += 1
                assert before.phase is Phase.UNOPENED
            case StartCall(call=call):
                assert call.key not in self.started or call.key not in self.running_before
                assert self.sequences.setdefault(call.key, call.sequence) == call.sequence
                assert list(self.sequences.values()).count(call.sequence) == 1
                assert not self.evidence
                if call.verdict is Verdict.RUN and not call.boxless:
                    assert self.state.phase is Phase.LIVE
            case RunGraders():
                assert self.evidence
                assert not self.state.queue
            case EndBox():
                assert self.evidence
            case WriteTombstone(end=end):
                assert not self.evidence or end is RolloutState.GRADED
                assert set(self.tombstones) <= {end}
                self.tombstones.append(end)
            case Forget():
                self.forgotten.append(action)

    @property
    def running_before(self) -> set[CallKey]:
        return {call.key for call in self.state.running}

    @rule(key=KEYS, order=ORDERS, boxless=st.booleans())
    def call(self, key: CallKey, order: Order, boxless: bool) -> None:
        if key not in self.recorded:  # the host answers those from the record
            self.tell(CallArrived(key=key, order=order, boxless=boxless))

    @precondition(lambda self: self.state.running)
    @rule(which=st.integers(0, 10), recorded=st.booleans())
    def call_ends(self, which: int, recorded: bool) -> None:
        running = self.state.running
        key = running[which % len(running)].key
        if recorded:
            self.recorded.add(key)
        self.tell(CallEnded(key=key, recorded=recorded))

    @rule()
    def open(self) -> None:
        self.tell(BoxWanted())

    @precondition(lambda self: self.opens)
    @rule()
    def chosen(self) -> None:
        if self.boxes < self.opens:
            self.boxes += 1
            self.tell(BoxChosen(sandbox=SandboxId(f"box-{self.boxes}")))

    @precondition(lambda self: self.boxes)
    @rule(event=st.sampled_from([BoxReady(), StartFailed()]))
    def start_ends(self, event: Event) -> None:
        self.tell(event)

    @rule(event=st.sampled_from([BoxDied(end=BoxEnd.AGENT_KILLED), BoxLost(reason="x"), Stale()]))
    def trouble(self, event: Event) -> None:
        if isinstance(event, BoxDied) and self.state.phase is Phase.UNOPENED:
            return
        self.tell(event)

    @rule()
    def grade(self) -> None:
        self.tell(GradeAsked())

    @precondition(lambda self: self.state.phase is Phase.GATHERING and self.state.busy)
    @rule(well=st.booleans())
    def gathered(self, well: bool) -> None:
        self.evidence = self.evidence or well
        self.tell(EvidenceStored() if well else GradeFailed())

    @precondition(lambda self: self.state.phase is Phase.GRADING and self.state.busy)
    @rule(well=st.booleans())
    def graders_end(self, well: bool) -> None:
        self.tell(Graded() if well else GradeFailed())

    @rule()
    def release(self) -> None:
        self.tell(ReleaseAsked(reason="released"))

    @precondition(lambda self: self.state.phase is Phase.CLOSING and self.state.busy)
    @rule(well=st.booleans())
    def tombstone(self, well: bool) -> None:
        self.tell(TombstoneWritten() if well else TombstoneFailed())

    @rule(seconds=st.sampled_from([1.0, TTL_S / 2, TTL_S * 2]))
    def time_passes(self, seconds: float) -> None:
        before = self.state
        self.now += seconds
        nothing_due = not due(before, self.now)
        self.tell(Tick())
        assert not nothing_due or self.state == before
        if before.queue or before.busy:
            assert self.state.end is before.end, "expired during a call or a grade"

    @invariant()
    def one_box_ever(self) -> None:
        assert self.opens <= 1

    @invariant()
    def forgotten_once_and_only_when_over(self) -> None:
        assert len(self.forgotten) == (self.state.phase in OVER)

    @invariant()
    def over_means_nothing_waits(self) -> None:
        if self.state.phase in OVER or self.state.phase in (Phase.CLOSING, Phase.GRADING):
            assert not self.state.queue

    @invariant()
    def an_exclusive_call_runs_alone(self) -> None:
        boxed = [call for call in self.state.running if not call.boxless and call.verdict is Verdict.RUN]
        if any(call.order.exclusive for call in boxed) and self.state.phase is Phase.LIVE:
            assert len(boxed) == 1

    @invariant()
    def a_lane_runs_one_call(self) -> None:
        lanes = [call.order.lane for call in self.state.running if call.order.lane and not call.boxless]
        if self.state.phase is Phase.LIVE:
            assert len(lanes) == len(set(lanes))

    @invariant()
    def never_more_charged_than_allowed(self) -> None:
        assert self.state.charged <= BUDGET

    @invariant()
    def graded_only_after_evidence(self) -> None:
        if self.state.phase is Phase.GRADING or self.state.end is RolloutState.GRADED:
            assert self.evidence

    @invariant()
    def a_box_that_may_exist_is_never_forgotten_about(self) -> None:
        for forget in self.forgotten:
            if self.boxes and not self.evidence and self.state.sandbox is not None:
                assert self.state.sandbox in (forget.remove, forget.fence)


TestLeaseMachine = LeaseMachine.TestCase
TestLeaseMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
