"""What ends by itself: idle rollouts, boxes that nobody knows; what must not: everything else."""

import asyncio
import time

import pytest

from orchestrator.backends.fake import DestroyFails, SlowExec
from orchestrator.errors import Draining, RolloutClosed, UnknownRollout
from orchestrator.hosts.sweeper import FOREIGN_S, abandoned, orphans
from orchestrator.interfaces import Bench, OwnedSandbox, SandboxSpec
from orchestrator.models import Binding, Epoch, HostId, RolloutState, SandboxId, TaskId
from tests.hosts.world import TESTED, World, a_call, a_grade, a_task, key, until

pytestmark = pytest.mark.anyio


def box(name: str, created_at: float) -> OwnedSandbox:
    return OwnedSandbox(id=SandboxId(name), created_at=created_at, running=True)


def test_orphans_are_what_nobody_covers_and_nobody_can_be_making() -> None:
    owned = [box("covered", 0.0), box("before", 99.0), box("young", 110.0), box("old", 101.0), box("future", 1e9)]
    found = orphans(owned, {SandboxId("covered")}, own=HostId("me"), now=140.0, started_at=100.0, grace_s=35.0)
    assert found == ["before", "old"]


def test_another_hosts_boxes_are_left_alone_for_an_hour() -> None:
    def foreign(name: str, age_s: float) -> OwnedSandbox:
        return OwnedSandbox(id=SandboxId(name), created_at=10_000.0 - age_s, running=True, host=HostId("other"))

    owned = [foreign("graded now", 300.0), foreign("of a dead host", FOREIGN_S + 1), foreign("leased", FOREIGN_S + 1)]
    covered = {SandboxId("leased")}
    found = orphans(owned, covered, own=HostId("me"), now=10_000.0, started_at=9_999.0, grace_s=35.0)
    assert found == ["of a dead host"]


def test_what_a_live_host_would_have_ended_is_taken_over() -> None:
    def binding(host: str, idle_s: float, state: RolloutState = RolloutState.OPEN, *, boxed: bool = True) -> Binding:
        return Binding(
            rollout=key(f"{host}-{idle_s:g}-{state}"),
            task=TaskId("t"),
            host=HostId(host),
            epoch=Epoch(1),
            state=state,
            sandbox=SandboxId("b") if boxed else None,
            boot_id="x",
            reason="",
            tainted="",
            created_at=0.0,
            touched_at=10_000.0 - idle_s,
        )

    idle = binding("dead", 1000.0)
    bindings = [
        idle,
        binding("me", 1000.0),
        binding("alive", 100.0),
        binding("dead", 1000.0, boxed=False),
        binding("dead", 1000.0, RolloutState.GRADING),
    ]
    assert abandoned(bindings, own=HostId("me"), now=10_000.0, ttl_s=600.0) == [idle]


async def test_an_idle_rollout_expires_and_never_starts_again(world: World) -> None:
    task = world.task()
    async with world.host(idle_ttl_s=100) as host:
        first = await host.call(a_call("echo 1"), task, timeout_s=10)
        world.clock.now += 99
        await host.sweep()
        assert len(world.machine.boxes) == 1
        world.clock.now += 2
        await host.sweep()
        await until(lambda: not world.machine.boxes)
        for _ in range(2):
            with pytest.raises(RolloutClosed, match="expired"):
                await host.call(a_call("echo 2", "c2"), task, timeout_s=10)
            with pytest.raises(RolloutClosed):
                await host.grade(a_grade(), task, timeout_s=10)
        assert await host.call(a_call("echo 1"), task, timeout_s=10) == first
        assert (await host.load()).live == 0
        assert not world.machine.boxes
    binding = await world.store.binding(key())
    assert binding is not None
    assert binding.state is RolloutState.EXPIRED


async def test_nothing_expires_during_a_call_or_a_grade(world: World) -> None:
    task = world.task()
    go = asyncio.Event()

    async def slow(bench: Bench) -> None:
        async with bench.fresh_box():
            await go.wait()

    world.grader.work = slow
    async with world.host(world.backend(SlowExec(seconds=0.2)), idle_ttl_s=100, creation_grace_s=0) as host:
        calling = asyncio.create_task(host.call(a_call("echo 1"), task, timeout_s=10))
        await until(lambda: any(each.begun for each in world.machine.boxes.values()))
        world.clock.now += 1000
        await host.sweep()
        assert (await calling).text == "1\n"
        grading = asyncio.create_task(host.grade(a_grade(), task, timeout_s=10))
        await until(lambda: [name for name in world.machine.boxes if name.startswith("g-")])
        world.clock.now += 1000
        await host.sweep()
        go.set()
        assert (await grading).score == 1.0


async def test_boxes_that_nobody_knows_go_and_young_ones_stay(world: World) -> None:
    old, young = box("stray-old", time.time() - 1000), box("stray-young", time.time() + 5)
    backend = world.backend(strays=(old, young))
    async with world.host(backend) as host:
        await host.sweep()
        await until(lambda: not host._parts.remover.pending)
        assert [each.id for each in await backend.owned()] == ["stray-young"]


async def test_a_removal_that_fails_is_tried_until_the_box_is_gone(world: World) -> None:
    task = world.task()
    async with world.host(world.backend(DestroyFails(nth=(1,)))) as host:
        await host.open(key(), task, timeout_s=10)
        await host.release(key())
        assert (await host.load()).free_memory_mib == 9_900  # what still stands still counts
        await until(lambda: not world.machine.boxes)
        await until(lambda: host._gate.admission.free_memory_mib == 10_000)


async def test_release_ends_a_rollout_and_is_idempotent(world: World) -> None:
    task = world.task()
    async with world.host() as host:
        with pytest.raises(UnknownRollout):
            await host.release(key())
        await host.open(key(), task, timeout_s=10)
        await host.release(key())
        await host.release(key())
        with pytest.raises(RolloutClosed, match="released"):
            await host.open(key(), task, timeout_s=10)
    assert not world.machine.boxes


async def test_a_draining_host_takes_nothing_new_and_finishes_what_runs(world: World) -> None:
    task = world.task()
    async with world.host(world.backend(SlowExec(seconds=0.1)), drain_s=5) as host:
        running = asyncio.create_task(host.call(a_call("echo 1"), task, timeout_s=10))
        await until(lambda: any(each.begun for each in world.machine.boxes.values()))
        draining = asyncio.create_task(host.drain())
        await asyncio.sleep(0)
        for refused in (
            host.call(a_call("echo 2", "c2"), task, timeout_s=10),
            host.open(key("other"), task, timeout_s=10),
            host.grade(a_grade(), task, timeout_s=10),
        ):
            with pytest.raises(Draining):
                await refused
        assert (await running).text == "1\n"
        await draining
        assert (await host.load()).draining
    assert len(world.machine.boxes) == 1  # left for the successor


async def test_warm_grading_boxes_are_made_counted_used_and_gone_in_the_end(world: World) -> None:
    task = world.task(a_task(tests=TESTED))
    used: list[str] = []

    async def work(bench: Bench) -> None:
        before = set(world.machine.boxes)
        async with bench.fresh_box():
            used.extend(set(world.machine.boxes) & before)

    world.grader.work = work
    async with world.host(grader_reserve=1) as host:
        await host.open(key(), task, timeout_s=10)
        await until(lambda: host._gate.admission.free_memory_mib == 9_800)
        await until(lambda: len(world.machine.boxes) == 2)
        [warm] = [name for name in world.machine.boxes if name.startswith("g-")]
        await host.grade(a_grade(), task, timeout_s=10)
        assert warm in used
        await host.sweep()  # no live rollout of the task: no reserve
        await until(lambda: not world.machine.boxes)
        await until(lambda: host._gate.admission.free_memory_mib == 10_000)


async def test_a_host_that_ends_leaves_no_task_and_only_the_boxes_of_rollouts(world: World) -> None:
    task = world.task(a_task(tests=TESTED))
    before = asyncio.all_tasks()
    async with world.host(grader_reserve=1) as host:
        await asyncio.gather(*(host.call(a_call("echo 1", rollout=key(f"r{n}")), task, timeout_s=10) for n in range(5)))
        await host.grade(a_grade(key("r0")), task, timeout_s=10)
        hanging = asyncio.create_task(host.call(a_call("sleep 60", "c2", rollout=key("r1")), task, timeout_s=60))
        await asyncio.sleep(0.05)
    with pytest.raises(Draining):
        await hanging
    commands = {process.task for each in world.machine.boxes.values() for process in each.machine().processes.values()}
    assert {t for t in asyncio.all_tasks() - before - commands if not t.done()} == set()
    assert sorted(each.split("-")[0] for each in world.machine.boxes) == ["r"] * 4


async def test_an_unknown_box_of_a_running_creation_is_not_taken_for_an_orphan(world: World) -> None:
    """The sweep runs while boxes are being made: they are covered from before they exist."""
    task = world.task()
    async with world.host(creation_grace_s=0, sweep_period_s=0.001, start_slots=4) as host:
        replies = await asyncio.gather(
            *(host.call(a_call("echo 1", rollout=key(f"r{n}")), task, timeout_s=10) for n in range(30))
        )
        assert {reply.text for reply in replies} == {"1\n"}
        assert len(world.machine.boxes) == 30


async def test_the_wall_clock_decides_no_expiry_at_adoption(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    task = world.task()
    async with world.host(idle_ttl_s=100) as host:
        await host.call(a_call("echo 1"), task, timeout_s=10)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 86_400)
    async with world.host(idle_ttl_s=100, adoption_grace_s=50) as host:
        await host.sweep()
        world.clock.now += 49
        await host.sweep()
        assert len(world.machine.boxes) == 1
        world.clock.now += 2
        await host.sweep()
        await until(lambda: not world.machine.boxes)


async def test_a_sweep_removes_the_box_that_nobody_knows_and_keeps_the_leased_one_beside_it(world: World) -> None:
    task = world.task()
    backend = world.backend()
    async with world.host(backend, creation_grace_s=0) as host:
        await host.open(key(), task, timeout_s=10)
        spec = SandboxSpec(image="image", template=None, limits=task.limits)
        await backend.create(SandboxId("nobodys"), spec, deadline=time.monotonic() + 5)
        await asyncio.sleep(0.01)
        await host.sweep()
        await until(lambda: len(world.machine.boxes) == 1)
        assert next(iter(world.machine.boxes)).startswith("r-")
