"""After a restart, or a crash at any named point: the same boxes, the same bytes, each effect once."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import pytest

from orchestrator import failpoints
from orchestrator.backends.fake import SlowExec
from orchestrator.errors import EngineUnavailable, RolloutClosed, StaleLease
from orchestrator.hosts.host import SandboxHost
from orchestrator.interfaces import (
    EXCLUSIVE,
    Bench,
    CallContext,
    Order,
    OwnedSandbox,
    Sandbox,
    SandboxBackend,
    SandboxSpec,
    Scope,
)
from orchestrator.models import Arguments, BoxEnd, Evidence, HostId, Outcome, RolloutState, SandboxId, ToolReply
from orchestrator.operations import Exec, ExecResult
from tests.hosts.world import HOST, World, a_call, a_grade, a_task, key, raw_call, until, until_true

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    failpoints.arm("")


async def crash(host: SandboxHost) -> None:
    """Stop everything the host does, at whatever it waits for, with nothing tidied up: as near to kill -9 as one process can come."""
    owned = [*host._tasks._tasks, *host._removals._tasks]
    host._draining = host._life.stopped = host._tasks._closed = host._removals._closed = True
    for task in owned:
        task.cancel()
    await asyncio.gather(*owned, return_exceptions=True)
    host._life.live.clear()


async def state(world: World) -> RolloutState:
    binding = await world.store.binding(key())
    assert binding is not None
    return binding.state


async def closed(world: World) -> RolloutState:
    """The final state, once it is written."""
    await until_true(lambda: _is_over(world))
    return await state(world)


async def _is_over(world: World) -> bool:
    return await state(world) is not RolloutState.OPEN


async def _is_rewarded(world: World) -> bool:
    return await world.store.reward(key()) is not None


async def test_an_orderly_restart_keeps_boxes_replies_numbers_and_budget(world: World) -> None:
    task = world.task(a_task(max_calls=3))
    async with world.host() as host:
        first = await host.call(a_call("echo 1 >> log; cat log"), task, timeout_s=10)
        [box] = world.machine.boxes
    async with world.host() as host:
        assert list(world.machine.boxes) == [box]
        assert await host.call(a_call("echo 1 >> log; cat log"), task, timeout_s=10) == first
        assert (await host.call(a_call("cat log", "c2"), task, timeout_s=10)).text == "1\n"
        assert "last of 3" in (await host.call(a_call("cat log", "c3"), task, timeout_s=10)).text
        assert [record.sequence for record in await world.store.calls(key())] == [1, 2, 3]
    binding = await world.store.binding(key())
    assert binding is not None
    assert binding.epoch == 2


POINTS = ["before_dispatch", "after_effect", "before_commit", "before_reply", "before_acknowledge"]


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("retried", [True, False])
async def test_a_crash_at_each_point_of_a_call_gives_one_effect_and_the_same_bytes(
    world: World, point: str, retried: bool
) -> None:
    task = world.task()
    request = a_call("echo x >> log; cat log")
    host = world.host()
    async with host:
        await host.call(a_call("echo warm", "c0"), task, timeout_s=10)
        await asyncio.sleep(0.02)
        failpoints.arm(f"{point}:raise")
        told: ToolReply | None = None
        try:
            told = await host.call(request, task, timeout_s=10)
        except failpoints.FailpointFired:
            assert point != "before_acknowledge"
        await asyncio.sleep(0.02)
        await crash(host)
    failpoints.arm("")
    async with world.host() as successor:
        effect = point != "before_dispatch" or retried
        if retried:
            again = await successor.call(request, task, timeout_s=10)
            assert again == ToolReply(text="x\n")
            assert told in (None, again)
        assert len(world.machine.boxes) == 1
        look = await successor.call(a_call("cat log || echo none", "c9"), task, timeout_s=10)
        assert look.text.startswith("x\n") if effect else look.text.endswith("none\n")
        assert look.text.count("x\n") == effect
        records = await world.store.calls(key())
        assert [record.reply.text for record in records if record.key == request.key] == ["x\n"] * effect
        [box] = world.machine.boxes.values()
        await until(lambda: not box.pending())


async def test_a_call_that_runs_when_the_host_dies_is_joined_by_the_successor(world: World) -> None:
    task = world.task()
    request = a_call("echo x >> log; cat log")
    backend = world.backend(SlowExec(seconds=0.3))
    host = world.host(backend)
    async with host:
        waiting = asyncio.ensure_future(host.call(request, task, timeout_s=10))
        await until(lambda: any(box.begun for box in world.machine.boxes.values()))
        await crash(host)
        waiting.cancel()
    async with world.host(backend) as successor:
        replies = await asyncio.gather(*(successor.call(request, task, timeout_s=10) for _ in range(5)))
        assert {reply.text for reply in replies} == {"x\n"}
        [record] = await world.store.calls(key())
        assert record.sequence == 1


class Twice:
    """Two operations, so that a crash may fall between them."""

    name = "twice"
    description = "."
    schema: ClassVar[Any] = {"type": "object", "properties": {"n": {"type": "string"}}, "additionalProperties": False}

    def order(self, arguments: Arguments) -> Order:
        return EXCLUSIVE

    async def run(self, context: CallContext, arguments: Arguments) -> ToolReply:
        mark = arguments["n"]
        stamp = await context.once(str(id(context)).encode())
        for part in ("first", "second"):
            done = await context.run(Exec(argv=("sh", "-c", f"echo {mark}-{part} >> log"), timeout_s=5))
            assert isinstance(done, ExecResult)
        return ToolReply(text=f"{mark} {stamp.decode()}")


async def test_exclusive_calls_are_taken_up_in_journal_order_before_new_ones(world: World) -> None:
    task = world.task(a_task(tools=("twice", "shell")))
    world.extra_tools = {"twice": Twice()}
    host = world.host()
    async with host:
        failpoints.arm("after_effect:raise:2")  # after the note and the first command of the first call
        for n in ("a", "b"):
            with pytest.raises(failpoints.FailpointFired):
                await host.call(raw_call("twice", f'{{"n":"{n}"}}', n), task, timeout_s=10)
            failpoints.arm("after_effect:raise:3")
        await crash(host)
    failpoints.arm("")
    async with world.host() as successor:
        seen = await successor.call(a_call("cat log", "look"), task, timeout_s=10)
        assert seen.text.split() == ["a-first", "b-first", "b-second", "a-second"]
        again = [await successor.call(raw_call("twice", f'{{"n":"{n}"}}', n), task, timeout_s=10) for n in ("a", "b")]
        recorded = {record.call_id or record.sequence: record.reply for record in await world.store.calls(key())}
        assert set(again) <= set(recorded.values())
        assert (await successor.call(a_call("cat log", "look2"), task, timeout_s=10)).text == seen.text


async def test_a_box_that_is_gone_closes_the_rollout(world: World) -> None:
    task = world.task()
    async with world.host() as host:
        first = await host.call(a_call("echo 1"), task, timeout_s=10)
    world.machine.kill(next(iter(world.machine.boxes)))
    async with world.host() as host:
        assert await closed(world) is RolloutState.LOST
        with pytest.raises(RolloutClosed):
            await host.call(a_call("echo 2", "c2"), task, timeout_s=10)
        with pytest.raises(RolloutClosed):
            await host.grade(a_grade(), task, timeout_s=10)
        assert await host.call(a_call("echo 1"), task, timeout_s=10) == first
        await until(lambda: not world.machine.boxes)


async def test_a_box_that_restarted_is_lost(world: World) -> None:
    task = world.task()
    async with world.host() as host:
        await host.call(a_call("echo 1"), task, timeout_s=10)
    [box] = world.machine.boxes.values()
    box.boot_id = "another"
    async with world.host():
        assert await closed(world) is RolloutState.LOST


async def test_a_box_that_died_of_the_model_still_answers_text_and_earns_the_floor(world: World) -> None:
    task = world.task()
    async with world.host() as host:
        await host.call(a_call("echo 1"), task, timeout_s=10)
    world.machine.kill(next(iter(world.machine.boxes)), dead=True)
    async with world.host() as host:
        assert (await host.call(a_call("echo 2", "c2"), task, timeout_s=10)).is_error
        assert (await host.grade(a_grade(), task, timeout_s=10)).outcome is Outcome.AGENT_FAULT
        assert [record.sequence for record in await world.store.calls(key())] == [1, 2]


async def test_a_box_that_was_never_handed_out_is_removed_and_the_retry_gets_another(world: World) -> None:
    """As a process leaves it that died between making the box and storing its boot id."""
    task = world.task()
    binding = await world.store.bind(key(), task.id, HOST)
    binding = await world.store.attach_sandbox(binding, SandboxId("r-half"), None)
    spec = SandboxSpec(image="image", template=world.templates.template_, limits=task.limits)
    await world.backend().create(SandboxId("r-half"), spec, deadline=time.monotonic() + 5)
    async with world.host() as successor:
        await until(lambda: not world.machine.boxes)
        assert (await successor.call(a_call("echo 1"), task, timeout_s=10)).text == "1\n"
        assert len(world.machine.boxes) == 1


@pytest.mark.parametrize("point", ["in the grader", "after_evidence", "between evidence and mark"])
async def test_a_grade_that_a_crash_cut_short_goes_on_from_the_stored_evidence(world: World, point: str) -> None:
    task = world.task()
    started = asyncio.Event()

    async def hangs(bench: Bench) -> None:
        started.set()
        await asyncio.Event().wait()

    world.grader.work = hangs
    host = world.host()
    async with host:
        await host.call(a_call("echo 1 > made"), task, timeout_s=10)
        if point == "between evidence and mark":
            await world.store.put_evidence(host._life.live[key()].binding, evidence_of_nothing(task.id))
        else:
            failpoints.arm(f"{point}:raise" if point == "after_evidence" else "")
            waiting = asyncio.ensure_future(host.grade(a_grade(final_answer="first"), task, timeout_s=10))
            await asyncio.wait({waiting, asyncio.ensure_future(started.wait())}, return_when="FIRST_COMPLETED")
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        await crash(host)
    failpoints.arm("")
    world.grader.work = None
    async with world.host() as successor:
        await until(lambda: not world.machine.boxes)
        await until_true(lambda: _is_rewarded(world))  # nobody asked again
        reward = await successor.grade(a_grade(final_answer="second"), task, timeout_s=10)
        assert reward == await world.store.reward(key())
        with pytest.raises(RolloutClosed):
            await successor.call(a_call("echo 2", "c2"), task, timeout_s=10)
    evidence = await world.store.evidence(key())
    assert evidence is not None
    assert evidence.final_answer == "first"
    assert await state(world) is RolloutState.GRADED


def evidence_of_nothing(task: Any) -> Evidence:
    return Evidence(
        rollout=key(),
        task=task,
        changes=(),
        truncated=False,
        final_answer="first",
        submitted=None,
        calls=1,
        box_end=BoxEnd.ALIVE,
        findings=(),
        gathered_at=1.0,
    )


async def test_evidence_of_a_rollout_without_a_box_keeps_it_from_opening_one(world: World) -> None:
    task = world.task()
    binding = await world.store.bind(key(), task.id, HOST)
    await world.store.put_evidence(binding, evidence_of_nothing(task.id))
    async with world.host() as host:
        with pytest.raises(RolloutClosed):
            await host.call(a_call("echo 1"), task, timeout_s=10)
        assert not world.machine.boxes
        assert (await host.grade(a_grade(final_answer="second"), task, timeout_s=10)).score == 1.0


async def test_a_box_frozen_by_a_grade_that_a_crash_cut_short_is_gathered_again(world: World) -> None:
    task = world.task()
    async with world.host() as host:
        await host.call(a_call("echo 1 > made"), task, timeout_s=10)
    [box] = world.machine.boxes.values()
    box._frozen = True
    async with world.host() as host:
        with pytest.raises(RolloutClosed):
            await host.call(a_call("echo 2", "c2"), task, timeout_s=10)
        assert (await host.grade(a_grade(), task, timeout_s=10)).score == 1.0
    evidence = await world.store.evidence(key())
    assert evidence is not None
    assert [change.path for change in evidence.changes] == ["made"]


async def test_a_rollout_that_another_host_took_over_is_dropped_and_its_box_left_alone(world: World) -> None:
    task = world.task()
    async with world.host(creation_grace_s=0) as host:
        await host.call(a_call("echo 1"), task, timeout_s=10)
        binding = await world.store.binding(key())
        assert binding is not None
        await world.store.adopt(binding, HostId("host-b"))
        with pytest.raises(StaleLease):
            await host.call(a_call("echo 2", "c2"), task, timeout_s=10)
        with pytest.raises(StaleLease):
            await host.call(a_call("echo 3", "c3"), task, timeout_s=10)
        with pytest.raises(StaleLease):
            await host.grade(a_grade(), task, timeout_s=10)
        await host.sweep()
        await asyncio.sleep(0.05)
        assert len(world.machine.boxes) == 1
        assert (await host.load()).live == 0


class Flaky:
    """A backend whose engine is away for the first attaches."""

    def __init__(self, real: SandboxBackend, failures: int) -> None:
        self._real = real
        self.failures = failures

    @property
    def name(self) -> str:
        return self._real.name

    @property
    def scope(self) -> Scope:
        return self._real.scope

    async def create(self, sandbox_id: SandboxId, spec: SandboxSpec, *, deadline: float) -> Sandbox:
        return await self._real.create(sandbox_id, spec, deadline=deadline)

    async def attach(self, sandbox_id: SandboxId) -> Sandbox:
        if self.failures:
            self.failures -= 1
            raise EngineUnavailable("the engine does not answer")
        return await self._real.attach(sandbox_id)

    async def destroy(self, sandbox_id: SandboxId) -> None:
        await self._real.destroy(sandbox_id)

    async def owned(self) -> Sequence[OwnedSandbox]:
        return await self._real.owned()

    async def capacity(self) -> Any:
        return await self._real.capacity()


async def test_an_engine_that_is_away_at_start_loses_no_rollout(world: World) -> None:
    task = world.task()
    async with world.host() as host:
        await host.call(a_call("echo 1 > made"), task, timeout_s=10)
    async with world.host(Flaky(world.backend(), 1), creation_grace_s=0) as host:
        await host.sweep()
        assert (await host.call(a_call("cat made", "c2"), task, timeout_s=10)).text == "1\n"


async def test_a_rollout_whose_task_is_no_longer_served_is_closed_and_its_box_removed(world: World) -> None:
    task = world.task()
    async with world.host() as host:
        await host.call(a_call("echo 1"), task, timeout_s=10)
    world.tasks.clear()
    async with world.host():
        await until(lambda: not world.machine.boxes)
    assert await state(world) is RolloutState.LOST
