"""Ends that must be ends: a tainted grade, a call refused while stopping, a model that goes on calling, a lease that fails."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest

from orchestrator.errors import Draining, RolloutClosed, SandboxLost, StartFailed
from orchestrator.hosts import lifecycle
from orchestrator.interfaces import Bench, Sandbox, SandboxBackend, SandboxSpec
from orchestrator.models import RolloutState, SandboxId
from tests.hosts.world import World, a_call, a_grade, a_task, key, until_true

pytestmark = pytest.mark.anyio


async def state(world: World, name: str = "trace_1") -> RolloutState | None:
    binding = await world.store.binding(key(name))
    return binding.state if binding else None


async def is_released(world: World) -> bool:
    return await state(world) is RolloutState.RELEASED


async def test_a_rollout_tainted_while_it_is_graded_is_over_for_good(world: World) -> None:
    """Otherwise each start would run its graders again, for nothing."""
    task = world.task()

    async def late(bench: Bench) -> None:
        await world.store.taint(key(), "unknown_task")

    world.grader.work = late
    async with world.host() as host:
        await host.call(a_call("true"), task, timeout_s=10)
        with pytest.raises(RolloutClosed, match="never scored"):
            await host.grade(a_grade(), task, timeout_s=10)
        await until_true(lambda: is_released(world))
        assert (await host.load()).live == 0
        with pytest.raises(RolloutClosed):
            await host.grade(a_grade(), task, timeout_s=10)
    asked = world.grader.asked
    async with world.host():
        pass
    assert world.grader.asked == asked == 1
    assert await world.store.reward(key()) is None


async def test_a_grade_left_by_a_crash_of_a_rollout_tainted_since_runs_no_grader(world: World) -> None:
    task = world.task()
    binding = await world.store.bind(key(), task.id, world.host().id)
    async with world.host() as host:
        await host.call(a_call("true", rollout=key("control")), task, timeout_s=10)
        await host.grade(a_grade(key("control")), task, timeout_s=10)
        evidence = await world.store.evidence(key("control"))
    assert evidence is not None
    await world.store.put_evidence(binding, evidence)
    await world.store.close(binding, RolloutState.GRADING, "")
    await world.store.taint(key(), "unknown_task")
    asked = world.grader.asked
    async with world.host():
        await until_true(lambda: is_released(world))
    assert world.grader.asked == asked


async def test_a_first_call_refused_while_stopping_is_no_rollout_that_did_nothing(world: World) -> None:
    task = world.task()
    async with world.host() as host:
        await host.drain()
        with pytest.raises(Draining):
            await host.call(a_call("echo 1"), task, timeout_s=10)
        with pytest.raises(Draining):
            await host.call(a_call("echo 1", rollout=key("retried")), task, timeout_s=10)
    async with world.host() as host:
        with pytest.raises(StartFailed, match="not scored"):
            await host.grade(a_grade(), task, timeout_s=10)
        assert (await host.call(a_call("echo 1", rollout=key("retried")), task, timeout_s=10)).text == "1\n"
        assert (await host.grade(a_grade(key("retried")), task, timeout_s=10)).score == 1.0
        assert (await host.grade(a_grade(key("control")), task, timeout_s=10)).score == 1.0
    assert await world.store.reward(key()) is None


async def test_calls_beyond_the_budget_are_answered_for_ever_and_recorded_for_a_while(world: World) -> None:
    task = world.task(a_task(max_calls=2))
    limit = 2 + lifecycle.MAX_UNCHARGED
    async with world.host() as host:
        replies = [
            (await host.call(a_call("true", f"c{number}"), task, timeout_s=10)).text for number in range(limit + 20)
        ]
        assert len(set(replies[2:])) == 1
        assert "used up" in replies[-1]
        assert len(await world.store.calls(key())) == limit
        assert len(host._life.live[key()].finished) == limit
        assert (await host.call(a_call("true", f"c{limit + 5}"), task, timeout_s=10)).text == replies[-1]
    async with world.host() as host:
        assert (await host.call(a_call("true", "after"), task, timeout_s=10)).text == replies[-1]
        assert (await host.grade(a_grade(), task, timeout_s=10)).score == 1.0
    assert len(await world.store.calls(key())) == limit


@dataclass
class Leaky:
    """A box whose lease fails; counts connections that are open."""

    inner: Sandbox
    open: set[object] = field(default_factory=set)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def lease(self, *_: object) -> None:
        raise SandboxLost("it went away")

    async def aclose(self) -> None:
        self.open.discard(self.inner)
        await self.inner.aclose()


class Leaking:
    """A backend whose boxes do not take their lease."""

    def __init__(self, inner: SandboxBackend) -> None:
        self.inner = inner
        self.open: set[object] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def create(self, sandbox_id: SandboxId, spec: SandboxSpec, *, deadline: float) -> Leaky:
        sandbox = await self.inner.create(sandbox_id, spec, deadline=deadline)
        self.open.add(sandbox)
        return Leaky(sandbox, self.open)


async def test_a_box_that_does_not_take_its_lease_leaves_no_connection(world: World) -> None:
    task = world.task()
    backend: Any = Leaking(world.backend())
    async with world.host(backend) as host:
        with pytest.raises(StartFailed, match="did not take its lease"):
            await host.call(a_call("true"), task, timeout_s=10)
        assert not backend.open
        await asyncio.sleep(0)
