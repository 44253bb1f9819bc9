"""Admission: limits always hold, nobody starves, order is as stated."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from orchestrator.errors import HostFull, Misconfigured
from orchestrator.hosts.admission import FRESH_DISK_MIB, Admission, Kind, Limits, Ticket, TicketId
from orchestrator.models import JobId

ROOMY = Limits(memory_mib=1000, boxes=100, start_slots=100, max_queued=1000)


def ticket(
    name: str, *, job: str = "j", kind: Kind = Kind.OPEN, mib: int = 100, disk: int = 0, inherits: str | None = None
) -> Ticket:
    return Ticket(
        id=TicketId(name),
        job=JobId(job),
        kind=kind,
        memory_mib=mib,
        disk_mib=disk,
        inherits=None if inherits is None else TicketId(inherits),
    )


def admission(limits: Limits = ROOMY, **shares: float) -> Admission:
    return Admission(limits, lambda job: shares.get(job, 1.0))


def granted(admission: Admission, *tickets: Ticket) -> list[str]:
    for each in tickets:
        admission.ask(each)
    return [str(each.id) for each in admission.grants()]


def test_memory_count_and_start_slots_each_bound() -> None:
    names = [ticket(f"t{n}") for n in range(6)]
    assert granted(admission(Limits(memory_mib=350, boxes=9, start_slots=9, max_queued=9)), *names) == [
        "t0",
        "t1",
        "t2",
    ]
    assert granted(admission(Limits(memory_mib=999, boxes=2, start_slots=9, max_queued=9)), *names) == ["t0", "t1"]
    starts = admission(Limits(memory_mib=999, boxes=9, start_slots=1, max_queued=9))
    assert granted(starts, *names) == ["t0"]
    starts.started(TicketId("t0"))
    assert granted(starts) == ["t1"]


def test_order_within_a_job_is_that_of_asking_and_asking_again_keeps_the_place() -> None:
    one = admission(Limits(memory_mib=100, boxes=9, start_slots=9, max_queued=9))
    assert granted(one, ticket("a"), ticket("b"), ticket("c"), ticket("b"), ticket("a")) == ["a"]
    one.release(TicketId("a"))
    assert granted(one) == ["b"]


def test_jobs_hold_memory_by_their_shares() -> None:
    two = admission(Limits(memory_mib=800, boxes=99, start_slots=99, max_queued=99), big=3.0)
    asked = [ticket(f"{job}{n}", job=job) for n in range(8) for job in ("small", "big")]
    names = granted(two, *asked)
    assert sum(name.startswith("big") for name in names) == 6
    assert sum(name.startswith("small") for name in names) == 2


def test_a_large_box_is_not_passed_over_for_ever() -> None:
    one = admission(Limits(memory_mib=300, boxes=9, start_slots=9, max_queued=9))
    assert granted(one, ticket("a"), ticket("large", mib=300), ticket("small")) == ["a"]
    one.release(TicketId("a"))
    assert granted(one) == ["large"]


def test_grades_go_before_opens_and_the_reserve_last() -> None:
    one = admission(Limits(memory_mib=100, boxes=9, start_slots=9, max_queued=9))
    asked = [ticket("spare", kind=Kind.RESERVE), ticket("open"), ticket("grade", kind=Kind.GRADE)]
    assert granted(one, *asked) == ["grade"]
    one.release(TicketId("grade"))
    assert granted(one) == ["open"]
    one.release(TicketId("open"))
    assert granted(one) == ["spare"]


def test_an_inherited_slot_needs_a_start_and_no_memory() -> None:
    full = admission(Limits(memory_mib=100, boxes=1, start_slots=1, max_queued=9))
    assert granted(full, ticket("agent")) == ["agent"]
    full.started(TicketId("agent"))
    assert granted(full, ticket("next"), ticket("grade", kind=Kind.GRADE, inherits="agent")) == ["grade"]
    assert full.used_memory_mib == 100
    full.release(TicketId("grade"))
    assert full.used_memory_mib == 100
    full.release(TicketId("agent"))
    assert granted(full) == ["next"]


def test_what_can_never_fit_and_a_full_queue_are_refused_before_anything_is_kept() -> None:
    small = admission(Limits(memory_mib=100, boxes=1, start_slots=1, max_queued=1))
    with pytest.raises(Misconfigured):
        small.ask(ticket("huge", mib=101))
    assert granted(small, ticket("a"), ticket("b", kind=Kind.GRADE)) == ["b"]
    with pytest.raises(HostFull):
        small.ask(ticket("c"))
    assert small.queued == 1


def test_room_is_short_only_when_memory_or_count_is_what_lacks() -> None:
    one = admission(Limits(memory_mib=200, boxes=9, start_slots=1, max_queued=9))
    assert granted(one, ticket("a"), ticket("b")) == ["a"]
    assert not one.short_of_room()
    one.started(TicketId("a"))
    assert granted(one, ticket("c"), ticket("spare", kind=Kind.RESERVE)) == ["b"]
    assert one.short_of_room()
    one.withdraw(TicketId("c"))
    assert not one.short_of_room()


DISKED = Limits(memory_mib=1000, boxes=9, start_slots=9, max_queued=9, disk_mib=300, disk_reserve_mib=50)


def test_promises_of_disk_are_bounded_and_given_back() -> None:
    one = admission(DISKED)
    assert granted(one, ticket("a", disk=200), ticket("b", disk=200), ticket("c", disk=50)) == ["a"]
    assert one.short_of_room()
    assert one.shortage() == "100 MiB of disk are not promised to others"
    one.release(TicketId("a"))
    assert granted(one) == ["b", "c"]
    with pytest.raises(Misconfigured, match="lower the task's disk_mib"):
        one.ask(ticket("huge", disk=301))


def test_below_the_reserve_nothing_starts_but_what_takes_an_ended_boxs_place() -> None:
    one = admission(DISKED)
    one.disk_is(50 + FRESH_DISK_MIB)
    assert granted(one, ticket("a", disk=10), ticket("b", disk=10), ticket("c", disk=10)) == ["a", "b"]
    assert "the host's disk has 34 MiB free, and 50 MiB are kept free" in one.shortage()
    assert one.is_waiting(TicketId("c"))
    assert granted(one, ticket("grade", kind=Kind.GRADE, disk=10, inherits="a")) == ["grade"]
    one.disk_is(49)
    assert granted(one) == []
    one.disk_is(50)
    assert granted(one) == ["c"]


class AdmissionMachine(RuleBasedStateMachine):
    LIMITS = Limits(memory_mib=500, boxes=4, start_slots=2, max_queued=6, disk_mib=800)

    def __init__(self) -> None:
        super().__init__()
        self.admission = admission(self.LIMITS, a=2.0)
        self.count = 0
        self.waiting: dict[TicketId, Ticket] = {}
        self.held: dict[TicketId, Ticket] = {}
        self.starting: set[TicketId] = set()

    def grant(self) -> None:
        for each in self.admission.grants():
            earlier = [
                other
                for other in self.waiting.values()
                if other.kind is each.kind and (other.job == each.job or each.kind is not Kind.OPEN)
            ]
            assert earlier[0] == each, "not the first of its queue"
            del self.waiting[each.id]
            self.held[each.id] = each
            self.starting.add(each.id)

    @rule(
        job=st.sampled_from("abc"),
        kind=st.sampled_from(list(Kind)),
        mib=st.sampled_from([50, 200, 500]),
        disk=st.sampled_from([0, 300]),
    )
    def ask(self, job: str, kind: Kind, mib: int, disk: int) -> None:
        self.count += 1
        wish = ticket(f"t{self.count}", job=job, kind=kind, mib=mib, disk=disk)
        try:
            self.admission.ask(wish)
        except HostFull:
            opens = sum(each.kind is Kind.OPEN for each in self.waiting.values())
            assert opens >= self.LIMITS.max_queued
        else:
            self.waiting[wish.id] = wish
        self.grant()

    @rule(which=st.integers(0, 20))
    def started(self, which: int) -> None:
        if self.starting:
            chosen = sorted(self.starting)[which % len(self.starting)]
            self.starting.discard(chosen)
            self.admission.started(chosen)
            self.grant()

    @rule(which=st.integers(0, 20))
    def release(self, which: int) -> None:
        if self.held:
            chosen = sorted(self.held)[which % len(self.held)]
            del self.held[chosen]
            self.starting.discard(chosen)
            self.admission.release(chosen)
            self.admission.release(chosen)  # idempotent
            self.grant()

    @rule(which=st.integers(0, 20))
    def withdraw(self, which: int) -> None:
        if self.waiting:
            chosen = sorted(self.waiting)[which % len(self.waiting)]
            del self.waiting[chosen]
            self.admission.withdraw(chosen)
            self.grant()

    @invariant()
    def limits_hold(self) -> None:
        used = sum(each.memory_mib for each in self.held.values())
        assert self.admission.used_memory_mib == used <= self.LIMITS.memory_mib
        disk = sum(each.disk_mib for each in self.held.values())
        assert self.admission.used_disk_mib == disk <= (self.LIMITS.disk_mib or 0)
        assert self.admission.used_boxes == len(self.held) <= self.LIMITS.boxes
        assert len(self.starting) <= self.LIMITS.start_slots

    @invariant()
    def nobody_waits_beside_an_idle_machine(self) -> None:
        if not self.held:
            assert not self.waiting

    @invariant()
    def the_count_of_waiting_opens_is_right(self) -> None:
        assert self.admission.queued == sum(each.kind is Kind.OPEN for each in self.waiting.values())


TestAdmissionMachine = AdmissionMachine.TestCase
TestAdmissionMachine.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
