"""No failure of ours becomes a score, and nothing that was answered a caller's mistake gets one."""

import pytest

from orchestrator.errors import RepositoryError, StartFailed, TiltyardError
from orchestrator.models import Outcome
from tests.hosts.world import NO_TEMPLATE, World, a_call, a_grade, key

pytestmark = pytest.mark.anyio


async def test_a_rollout_whose_repository_could_not_be_had_is_not_scored_as_one_that_did_nothing(world: World) -> None:
    task = world.task()
    world.templates.fail = NO_TEMPLATE
    async with world.host() as host:
        with pytest.raises(RepositoryError):
            await host.call(a_call("true"), task, timeout_s=5)
        world.templates.fail = None
        with pytest.raises(StartFailed):
            await host.grade(a_grade(), task, timeout_s=5)
        assert not world.grader.asked


async def test_after_such_a_failure_a_retried_call_runs_and_the_rollout_is_scored(world: World) -> None:
    task = world.task()
    world.templates.fail = NO_TEMPLATE
    async with world.host() as host:
        with pytest.raises(RepositoryError):
            await host.call(a_call("true"), task, timeout_s=5)
        world.templates.fail = None
        assert not (await host.call(a_call("true"), task, timeout_s=5)).is_error
        assert (await host.grade(a_grade(), task, timeout_s=5)).outcome is Outcome.SCORED


async def test_a_caller_s_mistake_that_lands_while_the_grader_is_done_is_before_the_reward(world: World) -> None:
    task = world.task()
    async with world.host() as host:
        await host.call(a_call("true"), task, timeout_s=5)
        binding = await world.store.binding(key())
        assert binding is not None
        reward = await host.grade(a_grade(), task, timeout_s=5)
        await world.store.bind(key("other"), task.id, host.id)
        other = await world.store.binding(key("other"))
        assert other is not None
        await world.store.taint(key("other"), "task_conflict: two tasks")
        with pytest.raises(TiltyardError, match="never scored"):
            await world.store.put_reward(other, reward)
        assert await world.store.reward(key("other")) is None
        assert await world.store.put_reward(binding, reward) == reward
