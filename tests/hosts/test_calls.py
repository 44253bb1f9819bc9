"""Calls: once, recorded, joined, in order, within the budget."""

import asyncio
import json
from typing import Any, ClassVar

import pytest

from orchestrator.backends.fake import DiesLater, Lies, LostReply, SlowExec
from orchestrator.errors import RolloutClosed, SandboxLost, StillRunning, TaskConflict
from orchestrator.interfaces import EXCLUSIVE, SHARED, CallContext, Order
from orchestrator.models import Arguments, CallRequest, RolloutState, ToolReply
from tests.hosts.world import World, a_call, a_task, key, raw_call

pytestmark = pytest.mark.anyio


async def test_a_call_opens_a_box_runs_and_is_recorded(world: World) -> None:
    task = world.task()
    async with world.host() as host:
        reply = await host.call(a_call("cat README.md"), task, timeout_s=10)
        assert reply == ToolReply(text="hello\n")
        [record] = await world.store.calls(key())
        assert (record.sequence, record.call_id, record.reply, record.charged) == (1, "c1", reply, True)
        assert len(world.machine.boxes) == 1


async def test_ten_simultaneous_first_calls_make_one_box(world: World) -> None:
    task = world.task()
    async with world.host() as host:
        calls = [host.call(a_call(f"echo {n}", f"c{n}"), task, timeout_s=10) for n in range(10)]
        replies = await asyncio.gather(*calls)
        assert [reply.text for reply in replies] == [f"{n}\n" for n in range(10)]
        assert len(world.machine.boxes) == 1
        assert sorted(record.sequence for record in await world.store.calls(key())) == list(range(1, 11))


async def test_the_same_call_twenty_times_at_once_runs_once(world: World) -> None:
    task = world.task()
    append = a_call("echo x >> log; cat log")
    async with world.host() as host:
        replies = await asyncio.gather(*(host.call(append, task, timeout_s=10) for _ in range(20)))
        assert {reply.text for reply in replies} == {"x\n"}
        later = await host.call(append, task, timeout_s=10)
        assert later.text == "x\n"
        other = await host.call(a_call("echo x >> log; cat log", "c2"), task, timeout_s=10)
        assert other.text == "x\nx\n"  # the control: another call_id is another call


async def test_an_old_reply_is_read_from_the_record_when_memory_has_let_it_go(world: World) -> None:
    task = world.task()
    async with world.host(kept_replies_bytes=10) as host:
        first = await host.call(a_call("echo once >> log; cat log"), task, timeout_s=10)
        await host.call(a_call("echo twelve chars", "c2"), task, timeout_s=10)
        await host.call(a_call("echo twelve chars", "c3"), task, timeout_s=10)
        assert await host.call(a_call("echo once >> log; cat log"), task, timeout_s=10) == first
        assert len(await world.store.calls(key())) == 3


@pytest.mark.parametrize(
    ("tool", "arguments", "said"),
    [
        ("nope", "{}", "no tool"),
        ("shell", "{not json", "JSON"),
        ("shell", '{"command": 3}', "string"),
        ("shell", "[]", "object"),
        ("shell", '{"command":"true","timeout_s":NaN}', "NaN"),
    ],
)
async def test_a_mistake_of_the_model_is_text_recorded_and_charged_without_a_box(
    world: World, tool: str, arguments: str, said: str
) -> None:
    task = world.task(a_task(max_calls=2))
    async with world.host() as host:
        reply = await host.call(raw_call(tool, arguments), task, timeout_s=10)
        assert reply.is_error
        assert said in reply.text
        assert not world.machine.boxes
        assert [record.charged for record in await world.store.calls(key())] == [True]
        last = await host.call(a_call("echo hi", "c2"), task, timeout_s=10)
        assert "last of 2" in last.text


async def test_the_last_allowed_call_says_so_and_none_runs_after_it(world: World) -> None:
    task = world.task(a_task(max_calls=2))
    async with world.host() as host:
        first = await host.call(a_call("echo 1 >> log"), task, timeout_s=10)
        assert "last" not in first.text
        second = await host.call(a_call("echo 2 >> log; cat log", "c2"), task, timeout_s=10)
        assert second.text.startswith("1\n2\n")
        assert "last of 2" in second.text
        third = await host.call(a_call("echo 3 >> log", "c3"), task, timeout_s=10)
        assert third.is_error
        assert "used up" in third.text
        assert await host.call(a_call("echo 3 >> log", "c3"), task, timeout_s=10) == third
        assert await host.call(a_call("echo 2 >> log; cat log", "c2"), task, timeout_s=10) == second
        assert [record.charged for record in await world.store.calls(key())] == [True, True, False]


async def test_a_deadline_ends_the_waiting_and_not_the_work(world: World) -> None:
    task = world.task()
    async with world.host(world.backend(SlowExec(seconds=0.2))) as host:
        slow = a_call("echo done >> log; cat log")
        with pytest.raises(StillRunning):
            await host.call(slow, task, timeout_s=0.05)
        assert (await host.call(slow, task, timeout_s=10)).text == "done\n"


async def test_a_client_that_goes_away_cancels_nothing(world: World) -> None:
    task = world.task()
    async with world.host(world.backend(SlowExec(seconds=0.1))) as host:
        request = a_call("echo done >> log; cat log")
        client = asyncio.create_task(host.call(request, task, timeout_s=10))
        await asyncio.sleep(0.02)
        client.cancel()
        with pytest.raises(asyncio.CancelledError):
            await client
        assert (await host.call(request, task, timeout_s=10)).text == "done\n"


class Spans:
    """A tool that tells when it began and ended."""

    description = "."
    schema: ClassVar[Any] = {"type": "object", "properties": {"n": {"type": "integer"}}, "additionalProperties": False}

    def __init__(self, name: str, *, exclusive: bool, log: list[str]) -> None:
        self.name = name
        self._order = EXCLUSIVE if exclusive else SHARED
        self._log = log

    def order(self, arguments: Arguments) -> Order:
        return self._order

    async def run(self, context: CallContext, arguments: Arguments) -> ToolReply:
        self._log.append(f"{self.name}{arguments['n']} begins")
        await asyncio.sleep(0.01)
        self._log.append(f"{self.name}{arguments['n']} ends")
        return ToolReply(text="ok")


async def test_shared_calls_overlap_and_exclusive_ones_wait_in_order_of_arrival(world: World) -> None:
    log: list[str] = []
    world.extra_tools = {
        "look": Spans("look", exclusive=False, log=log),
        "turn": Spans("turn", exclusive=True, log=log),
    }
    task = world.task(a_task(tools=("look", "turn")))
    names = ["look", "look", "turn", "look", "turn"]
    async with world.host() as host:
        calls = [host.call(raw_call(name, f'{{"n":{n}}}', f"c{n}"), task, timeout_s=10) for n, name in enumerate(names)]
        await asyncio.gather(*calls)
    assert log == [
        *("look0 begins", "look1 begins", "look0 ends", "look1 ends"),
        *("turn2 begins", "turn2 ends", "look3 begins", "look3 ends", "turn4 begins", "turn4 ends"),
    ]


async def test_calls_of_one_session_follow_each_other_and_hold_up_nobody_else(world: World) -> None:
    task = world.task()

    def session(command: str, call_id: str) -> CallRequest:
        return raw_call("shell", json.dumps({"command": command, "session": "main"}), call_id)

    async with world.host() as host:
        first = asyncio.create_task(host.call(session("N=1; sleep 0.3; echo first >> log", "s1"), task, timeout_s=10))
        second = asyncio.create_task(host.call(session("N=$N$N; echo second-$N >> log", "s2"), task, timeout_s=10))
        beside = await host.call(a_call("echo beside >> log", "plain"), task, timeout_s=10)
        assert not beside.is_error
        assert not first.done()
        await asyncio.gather(first, second)
        log = await host.call(a_call("cat log", "look"), task, timeout_s=10)
        assert log.text.split() == ["beside", "first", "second-11"]


async def test_any_number_of_calls_at_once_is_answered(world: World) -> None:
    """More than a box takes at once: they wait here, and none of it is an error."""
    task = world.task(a_task(max_calls=1000))
    async with world.host() as host:
        calls = [host.call(a_call(f"sleep 0.01; echo {n}", f"c{n}"), task, timeout_s=30) for n in range(300)]
        replies = await asyncio.gather(*calls)
    assert [reply.text for reply in replies] == [f"{n}\n" for n in range(300)]


async def test_a_box_that_the_model_brought_down_answers_text_at_once_and_for_ever(world: World) -> None:
    task = world.task()
    async with world.host(world.backend(DiesLater(after_operations=1, dead=True))) as host:
        assert (await host.call(a_call("echo 1"), task, timeout_s=10)).text == "1\n"
        died = await host.call(a_call("echo 2", "c2"), task, timeout_s=10)
        assert died.is_error
        assert "died" in died.text
        later = await host.call(a_call("echo 3", "c3"), task, timeout_s=10)
        assert later == died
        assert await host.call(a_call("echo 1"), task, timeout_s=10) == ToolReply(text="1\n")
        assert [record.charged for record in await world.store.calls(key())] == [True, True, False]
        binding = await world.store.binding(key())
        assert binding is not None
        assert binding.state is RolloutState.OPEN


async def test_a_lost_box_closes_the_rollout_for_ever(world: World) -> None:
    task = world.task()
    backend = world.backend()
    async with world.host(backend) as host:
        first = await host.call(a_call("echo 1"), task, timeout_s=10)
        [box] = world.machine.boxes
        world.machine.kill(box)
        with pytest.raises(SandboxLost):
            await host.call(a_call("echo 2", "c2"), task, timeout_s=10)
        with pytest.raises((RolloutClosed, SandboxLost)):
            await host.call(a_call("echo 2", "c2"), task, timeout_s=10)
        assert (
            await host.call(a_call("echo 1"), task, timeout_s=10) == first
        )  # recorded: the same bytes, whatever came since
        binding = await world.store.binding(key())
        assert binding is not None
        assert binding.state is RolloutState.LOST
    assert not world.machine.boxes
    async with world.host() as host:
        with pytest.raises(RolloutClosed):
            await host.call(a_call("echo 3", "c3"), task, timeout_s=10)
        assert not world.machine.boxes


async def test_a_reply_lost_on_the_way_is_replayed_from_a_new_connection(world: World) -> None:
    task = world.task()
    async with world.host(world.backend(LostReply(nth=(1,)))) as host:
        assert (await host.call(a_call("echo x >> log; cat log"), task, timeout_s=10)).text == "x\n"
        assert (await host.call(a_call("cat log", "c2"), task, timeout_s=10)).text == "x\n"


async def test_a_box_that_lies_is_lost(world: World) -> None:
    task = world.task()
    async with world.host(world.backend(Lies(nth=(1,)))) as host:
        with pytest.raises(SandboxLost):
            await host.call(a_call("echo x"), task, timeout_s=10)
        binding = await world.store.binding(key())
        assert binding is not None
        assert binding.state is RolloutState.LOST


async def test_another_task_for_a_bound_rollout_is_the_callers_conflict(world: World) -> None:
    task, other = world.task(), world.task(a_task("t2"))
    async with world.host() as host:
        await host.call(a_call("echo 1"), task, timeout_s=10)
        with pytest.raises(TaskConflict):
            await host.call(a_call("echo 2", "c2"), other, timeout_s=10)
        await host.release(key())
        with pytest.raises(TaskConflict):
            await host.call(a_call("echo 2", "c2"), other, timeout_s=10)


async def test_a_recorded_reply_is_acknowledged_to_the_box(world: World) -> None:
    task = world.task()
    async with world.host() as host:
        await host.call(a_call("echo 1"), task, timeout_s=10)
        [box] = world.machine.boxes.values()
        for _ in range(100):
            if not box.pending():
                break
            await asyncio.sleep(0.01)
        assert box.pending() == ()
