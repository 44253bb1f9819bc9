"""Opening a box: admission, failed starts, places in the queue, and what is remembered of them."""

import asyncio

import pytest

from orchestrator import failpoints
from orchestrator.backends.fake import BadStart, CreateReplyLost, SlowStart
from orchestrator.errors import EngineUnavailable, HostFull, Misconfigured, RolloutClosed, StartFailed, StillRunning
from orchestrator.models import JobId, Limits, RolloutState
from tests.hosts.world import JOB, NO_TEMPLATE, World, a_call, a_task, key, until, until_true

pytestmark = pytest.mark.anyio


async def test_an_explicit_open_is_idempotent_and_names_the_box(world: World) -> None:
    task = world.task()
    async with world.host() as host:
        binding = await host.open(key(), task, timeout_s=10)
        again = await host.open(key(), task, timeout_s=10)
        assert binding.sandbox == again.sandbox
        assert [binding.sandbox] == list(world.machine.boxes)
        assert binding.boot_id == next(iter(world.machine.boxes.values())).boot_id


async def test_a_failed_start_leaves_nothing_but_the_binding_and_the_retry_succeeds(world: World) -> None:
    task = world.task()
    async with world.host(world.backend(BadStart(nth=(1,)))) as host:
        with pytest.raises(StartFailed):
            await host.call(a_call("echo 1"), task, timeout_s=10)
        assert (await host.load()).live == 0
        assert (await host.call(a_call("echo 1"), task, timeout_s=10)).text == "1\n"
        assert (await host.load()).live == 1
        assert len(world.machine.boxes) == 1


async def test_a_box_whose_start_was_answered_by_nobody_is_removed_and_another_made(world: World) -> None:
    task = world.task()
    async with world.host(world.backend(CreateReplyLost(nth=(1,)))) as host:
        with pytest.raises(EngineUnavailable):
            await host.call(a_call("echo 1"), task, timeout_s=10)
        assert (await host.call(a_call("echo 1"), task, timeout_s=10)).text == "1\n"
        await until(lambda: len(world.machine.boxes) == 1)


async def test_a_template_that_cannot_be_had_is_an_error_of_ours_and_not_remembered(world: World) -> None:
    task = world.task()
    async with world.host() as host:
        world.templates.fail = NO_TEMPLATE
        with pytest.raises(type(NO_TEMPLATE)):
            await host.call(a_call("echo 1"), task, timeout_s=10)
        world.templates.fail = None
        assert (await host.call(a_call("echo 1"), task, timeout_s=10)).text == "1\n"


async def test_a_start_that_the_trainer_gave_up_on_goes_on(world: World) -> None:
    task = world.task()
    async with world.host(world.backend(SlowStart(seconds=0.2))) as host:
        with pytest.raises(StillRunning):
            await host.call(a_call("echo 1 >> log; cat log"), task, timeout_s=0.05)
        assert (await host.call(a_call("echo 1 >> log; cat log"), task, timeout_s=10)).text == "1\n"
        assert len(world.machine.boxes) == 1


async def test_a_hundred_first_calls_queue_and_all_are_served(world: World) -> None:
    task = world.task(a_task(limits=Limits(memory_mib=100)))
    most = 0
    async with world.host(memory_limit_mib=500, start_slots=3) as host:

        async def rollout(name: str) -> str:
            nonlocal most
            reply = await host.call(a_call(f"echo {name}", rollout=key(name)), task, timeout_s=30)
            most = max(most, len(world.machine.boxes))
            await host.release(key(name))
            return reply.text

        replies = await asyncio.gather(*(rollout(f"r{n}") for n in range(100)))
        assert replies == [f"r{n}\n" for n in range(100)]
        assert 1 <= most <= 5
        await until(lambda: not world.machine.boxes)
        load = await host.load()
        assert (load.live, load.queued, load.free_memory_mib) == (0, 0, 500)


async def test_a_caller_whose_wait_ends_keeps_its_place(world: World) -> None:
    task = world.task()
    async with world.host(memory_limit_mib=100, open_wait_s=0.05) as host:
        await host.call(a_call("echo 1", rollout=key("first")), task, timeout_s=10)
        with pytest.raises(HostFull):
            await host.call(a_call("echo 2", rollout=key("second")), task, timeout_s=10)
        with pytest.raises(HostFull):
            await host.call(a_call("echo 3", rollout=key("third")), task, timeout_s=10)
        retry = asyncio.create_task(host.call(a_call("echo 3", rollout=key("third")), task, timeout_s=10))
        await asyncio.sleep(0)
        await host.release(key("first"))
        await until(lambda: len(world.machine.boxes) == 1)
        assert (await host.call(a_call("echo 2", rollout=key("second")), task, timeout_s=10)).text == "2\n"
        with pytest.raises(HostFull):
            await retry


async def test_a_kept_place_is_forgotten_when_nobody_comes_back(world: World) -> None:
    task = world.task()
    async with world.host(memory_limit_mib=100, open_wait_s=0.02, place_ttl_s=60) as host:
        await host.call(a_call("echo 1", rollout=key("first")), task, timeout_s=10)
        with pytest.raises(HostFull):
            await host.call(a_call("echo 2", rollout=key("second")), task, timeout_s=10)
        world.clock.now += 59
        await host.sweep()
        assert (await host.load()).queued == 1
        world.clock.now += 2
        await host.sweep()
        assert (await host.load()).queued == 0
        binding = await world.store.binding(key("second"))
        assert binding is not None
        assert binding.state is RolloutState.OPEN  # a retry may still come


async def test_a_full_queue_refuses_at_once(world: World) -> None:
    task = world.task()
    async with world.host(memory_limit_mib=100, max_queued=1, open_wait_s=5) as host:
        await host.call(a_call("echo 1", rollout=key("first")), task, timeout_s=10)
        waiting = asyncio.create_task(host.open(key("second"), task, timeout_s=10))
        await until(lambda: host._gate.admission.queued == 1)
        with pytest.raises(HostFull):
            await host.open(key("third"), task, timeout_s=10)
        await host.release(key("first"))
        assert (await waiting).sandbox is not None


async def test_a_task_that_can_never_fit_is_a_configuration_mistake(world: World) -> None:
    task = world.task(a_task(limits=Limits(memory_mib=200)))
    async with world.host(memory_limit_mib=100) as host:
        with pytest.raises(Misconfigured, match="200 MiB"):
            await host.open(key(), task, timeout_s=10)


async def test_jobs_share_by_weight(world: World) -> None:
    task = world.task()
    big, small = JobId("big"), JobId("small")
    world.shares = {big: 3.0, small: 1.0}
    async with world.host(memory_limit_mib=400, start_slots=8) as host:
        await host.open(key("blocker-0", JOB), world.task(a_task("t0", limits=Limits(memory_mib=400))), timeout_s=10)
        for n in range(10):
            for job in (small, big):
                asyncio.ensure_future(host.open(key(f"r{n}", job), task, timeout_s=10)).add_done_callback(
                    lambda done: done.cancelled() or done.exception()
                )
        await until(lambda: host._gate.admission.queued == 20)
        await host.release(key("blocker-0"))
        await until(lambda: host._gate.admission.queued == 16)

        async def holding() -> list[JobId]:
            return [binding.rollout.job for binding in await world.store.open_bindings(host.id) if binding.boot_id]

        async def four() -> bool:
            return len(await holding()) == 4

        await until_true(four)
        jobs = await holding()
        assert sorted(jobs) == [big, big, big, small]


async def test_release_while_the_box_starts_leaves_nothing(world: World) -> None:
    task = world.task()
    async with world.host(world.backend(SlowStart(seconds=0.1))) as host:
        opening = asyncio.create_task(host.call(a_call("echo 1"), task, timeout_s=10))
        await until(lambda: host._life.live and next(iter(host._life.live.values())).state.sandbox)
        await host.release(key())
        with pytest.raises(RolloutClosed):
            await opening
        await asyncio.sleep(0.15)
        assert not world.machine.boxes
        with pytest.raises(RolloutClosed):
            await host.call(a_call("echo 1"), task, timeout_s=10)


async def test_a_crash_between_making_a_box_and_handing_it_out_leaves_one_box_in_the_end(world: World) -> None:
    task = world.task()
    failpoints.arm("after_create:raise")
    try:
        async with world.host() as host:
            with pytest.raises(failpoints.FailpointFired):
                await host.call(a_call("echo 1"), task, timeout_s=10)
            assert (await host.call(a_call("echo 1"), task, timeout_s=10)).text == "1\n"
            await until(lambda: len(world.machine.boxes) == 1)
    finally:
        failpoints.arm("")
