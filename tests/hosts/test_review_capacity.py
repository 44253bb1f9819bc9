"""Room that must come free: nobody who waits for it may stand in the way of those who will give it."""

import asyncio

import pytest

from orchestrator.errors import RolloutClosed
from orchestrator.hosts.admission import Admission, Kind, Limits, Ticket, TicketId
from orchestrator.interfaces import Bench
from orchestrator.models import JobId
from tests.hosts.world import TESTED, World, a_call, a_grade, a_task, key

pytestmark = pytest.mark.anyio


def a_ticket(name: str, kind: Kind = Kind.GRADE, inherits: str | None = None) -> Ticket:
    inherited = None if inherits is None else TicketId(inherits)
    return Ticket(id=TicketId(name), job=JobId("j"), kind=kind, memory_mib=100, inherits=inherited)


def test_a_grade_that_needs_memory_does_not_hold_up_one_that_brings_its_own() -> None:
    admission = Admission(Limits(memory_mib=100, boxes=5, start_slots=2, max_queued=5), lambda job: 1.0)
    admission.hold(a_ticket("box", Kind.OPEN))
    admission.ask(a_ticket("without calls"))
    admission.ask(a_ticket("in its slot", inherits="box"))
    assert [ticket.id for ticket in admission.grants()] == ["in its slot"]
    assert admission.short_of_room()
    admission.release(TicketId("in its slot"))
    admission.release(TicketId("box"))
    assert [ticket.id for ticket in admission.grants()] == ["without calls"]


async def test_on_a_full_host_a_grade_without_calls_and_one_with_them_both_come_to_an_end(world: World) -> None:
    task = world.task(a_task(tests=TESTED))

    async def work(bench: Bench) -> None:
        async with bench.fresh_box():
            pass

    world.grader.work = work
    async with world.host(memory_limit_mib=100) as host, asyncio.timeout(10):
        await host.call(a_call("true", rollout=key("busy")), task, timeout_s=5)
        lazy = asyncio.create_task(host.grade(a_grade(key("lazy")), task, timeout_s=8))
        while (await world.store.binding(key("lazy"))) is None or not world.grader.asked:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.05)
        busy = await host.grade(a_grade(key("busy")), task, timeout_s=5)
        assert (busy.score, (await lazy).score) == (1.0, 1.0)


async def test_an_end_that_comes_while_the_rollout_is_being_bound_ends_it(world: World) -> None:
    """A box in a rollout that was released would be a leak, and its grade a reward that must not be."""
    task = world.task()
    async with world.host() as host:
        await world.store.bind(key(), task.id, host.id)
        first = asyncio.create_task(host.call(a_call("true"), task, timeout_s=5))
        await asyncio.sleep(0)
        await host.release(key())
        await asyncio.wait({first})
        with pytest.raises(RolloutClosed):
            await host.grade(a_grade(), task, timeout_s=5)
