"""The grade: evidence first, then the box ends, then graders, then one stored reward."""

import asyncio
from typing import Any

import pytest

from orchestrator import failpoints
from orchestrator.backends.fake import BadStart, DiesLater, SlowExec
from orchestrator.errors import GraderError, RolloutClosed, SandboxError, StartFailed, StillRunning
from orchestrator.interfaces import Bench
from orchestrator.models import BoxEnd, Evidence, Grade, Limits, Outcome, RewardRange, RolloutState
from orchestrator.operations import Exec, ExecResult, Put, PutResult, Read, ReadResult
from tests.hosts.world import TESTED, World, a_call, a_grade, a_task, key, raw_call, until

pytestmark = pytest.mark.anyio


async def stored(world: World) -> Evidence:
    evidence = await world.store.evidence(key())
    assert evidence is not None
    return evidence


async def state(world: World) -> RolloutState:
    binding = await world.store.binding(key())
    assert binding is not None
    return binding.state


async def test_a_grade_gathers_what_the_agent_changed_ends_the_box_and_stores_the_reward(world: World) -> None:
    task = world.task(a_task(reward=RewardRange(low=-1.0, high=3.0)))
    world.grader.grade_ = Grade(score=0.5, passed=False, reason="half", sub_scores={"a": 0.5})
    async with world.host() as host:
        await host.call(a_call("echo new > added.txt; echo changed > README.md; rm pkg/core.py"), task, timeout_s=10)
        await host.call(raw_call("submit", '{"files":["a.py","b.py"]}', "c2"), task, timeout_s=10)
        reward = await host.grade(a_grade(final_answer="I did it."), task, timeout_s=10)
        assert (reward.outcome, reward.score, reward.reason) == (Outcome.SCORED, 1.0, "half")
        assert reward.sub_scores == {"a": 0.5}
        await until(lambda: not world.machine.boxes)
        assert (await host.load()).free_memory_mib == 10_000
    evidence = await stored(world)
    assert [(change.path, change.kind) for change in evidence.changes] == [
        ("README.md", "modified"),
        ("added.txt", "added"),
        ("pkg/core.py", "deleted"),
    ]
    assert [change.blob is not None for change in evidence.changes] == [True, True, False]
    assert (evidence.final_answer, evidence.submitted, evidence.calls) == ("I did it.", ("a.py", "b.py"), 2)
    assert evidence.box_end is BoxEnd.ALIVE
    assert not evidence.truncated
    assert await state(world) is RolloutState.GRADED


async def test_a_grader_reads_the_content_of_changes(world: World) -> None:
    task = world.task()
    seen: dict[str, bytes] = {}

    async def work(bench: Bench) -> None:
        for change in bench.evidence.changes:
            seen[change.path] = await bench.blob(change)

    world.grader.work = work
    async with world.host() as host:
        await host.call(a_call("echo new > added.txt"), task, timeout_s=10)
        await host.grade(a_grade(), task, timeout_s=10)
    assert seen == {"added.txt": b"new\n"}


async def test_grading_twice_and_ten_times_at_once_grades_once(world: World) -> None:
    task = world.task()
    async with world.host() as host:
        await host.call(a_call("true"), task, timeout_s=10)
        rewards = await asyncio.gather(*(host.grade(a_grade(), task, timeout_s=10) for _ in range(10)))
        again = await host.grade(a_grade(final_answer="another"), task, timeout_s=10)
        assert {reward.graded_at for reward in [*rewards, again]} == {again.graded_at}
        assert world.grader.asked == 1
        with pytest.raises(RolloutClosed):
            await host.call(a_call("true", "c2"), task, timeout_s=10)
        assert (await host.call(a_call("true"), task, timeout_s=10)).text == "[no output, exit code 0]"
    assert (await stored(world)).final_answer == "done"


async def test_a_grade_without_calls_opens_no_agents_box(world: World) -> None:
    task = world.task()
    async with world.host() as host:
        reward = await host.grade(a_grade(), task, timeout_s=10)
        assert reward.outcome is Outcome.SCORED
        assert not world.machine.boxes
        with pytest.raises(RolloutClosed):
            await host.call(a_call("true"), task, timeout_s=10)
    evidence = await stored(world)
    assert (evidence.box_end, evidence.calls, evidence.changes) == (BoxEnd.NEVER_OPENED, 0, ())


async def test_a_box_that_died_of_the_model_earns_the_floor_without_a_grader(world: World) -> None:
    task = world.task(a_task(reward=RewardRange(low=-0.5)))
    async with world.host(world.backend(DiesLater(after_operations=1, dead=True))) as host:
        await host.call(a_call("echo 1"), task, timeout_s=10)
        await host.call(a_call("echo 2", "c2"), task, timeout_s=10)
        reward = await host.grade(a_grade(), task, timeout_s=10)
        assert (reward.outcome, reward.score) == (Outcome.AGENT_FAULT, -0.5)
        assert world.grader.asked == 0
        assert (await stored(world)).box_end is BoxEnd.AGENT_KILLED
        await until(lambda: not world.machine.boxes)


async def test_a_lost_box_is_never_a_reward(world: World) -> None:
    task = world.task()
    async with world.host() as host:
        await host.call(a_call("true"), task, timeout_s=10)
        world.machine.kill(next(iter(world.machine.boxes)))
        with pytest.raises(SandboxError):
            await host.grade(a_grade(), task, timeout_s=10)
        with pytest.raises(RolloutClosed):
            await host.grade(a_grade(), task, timeout_s=10)
    assert await world.store.reward(key()) is None
    assert await state(world) is RolloutState.LOST


async def test_a_grader_that_fails_is_asked_again_over_the_same_evidence(world: World) -> None:
    task = world.task()

    async def broken(bench: Bench) -> None:
        raise ZeroDivisionError

    world.grader.work = broken
    async with world.host() as host:
        await host.call(a_call("echo 1 > made"), task, timeout_s=10)
        with pytest.raises(GraderError):
            await host.grade(a_grade(), task, timeout_s=10)
        first = await stored(world)
        assert await state(world) is RolloutState.GRADING
        assert (await host.load()).live == 0
        await until(lambda: not world.machine.boxes)
        world.grader.work = None
        reward = await host.grade(a_grade(final_answer="other"), task, timeout_s=10)
        assert reward.score == 1.0
        assert await stored(world) == first


async def test_a_tainted_rollout_is_never_scored_and_its_box_ends(world: World) -> None:
    task = world.task()
    async with world.host() as host:
        await host.call(a_call("true"), task, timeout_s=10)
        await world.store.taint(key(), "task_conflict")
        for _ in range(2):
            with pytest.raises(RolloutClosed):
                await host.grade(a_grade(), task, timeout_s=10)
        await until(lambda: not world.machine.boxes)
    assert world.grader.asked == 0
    assert await world.store.reward(key()) is None


async def test_a_taint_that_comes_while_grading_holds(world: World) -> None:
    task = world.task()

    async def late(bench: Bench) -> None:
        await world.store.taint(key(), "unknown_task")

    world.grader.work = late
    async with world.host() as host:
        await host.call(a_call("true"), task, timeout_s=10)
        with pytest.raises(RolloutClosed):
            await host.grade(a_grade(), task, timeout_s=10)
    assert await world.store.reward(key()) is None


async def test_a_grade_waits_for_the_running_call_and_refuses_later_ones(world: World) -> None:
    task = world.task()
    async with world.host(world.backend(SlowExec(seconds=0.1, nth=(1,))), settle_s=5) as host:
        running = asyncio.create_task(host.call(a_call("echo 1 > made; echo made"), task, timeout_s=10))
        await until(lambda: any(box.begun for box in world.machine.boxes.values()))
        grading = asyncio.create_task(host.grade(a_grade(), task, timeout_s=10))
        await until(lambda: host._life.live[key()].state.phase == "gathering")
        with pytest.raises(RolloutClosed):
            await host.call(a_call("echo 2", "c2"), task, timeout_s=10)
        assert (await running).text == "made\n"
        await grading
    assert [change.path for change in (await stored(world)).changes] == ["made"]


async def test_a_call_that_outlasts_the_patience_of_a_grade_is_killed_by_the_freeze(world: World) -> None:
    task = world.task()
    async with world.host(settle_s=0.05) as host:
        running = asyncio.create_task(host.call(a_call("sleep 60"), task, timeout_s=30))
        await until(lambda: any(box.begun for box in world.machine.boxes.values()))
        reward = await asyncio.wait_for(host.grade(a_grade(), task, timeout_s=10), 5)
        assert reward.outcome is Outcome.SCORED
        assert (await running).is_error


async def test_a_deadline_ends_the_waiting_for_a_grade_and_not_the_grade(world: World) -> None:
    task = world.task()
    go = asyncio.Event()

    async def slow(bench: Bench) -> None:
        await go.wait()

    world.grader.work = slow
    async with world.host() as host:
        await host.call(a_call("true"), task, timeout_s=10)
        with pytest.raises(StillRunning):
            await host.grade(a_grade(), task, timeout_s=0.05)
        go.set()
        assert (await host.grade(a_grade(), task, timeout_s=10)).score == 1.0
        assert world.grader.asked == 1


async def in_fresh_box(bench: Bench) -> Grade:
    async with bench.fresh_box() as box:
        read = await box.run(Read(path="/workspace/README.md"))
        assert isinstance(read, ReadResult)
        put = await box.run(Put(path="/workspace", tar=b"\0" * 10240))
        assert isinstance(put, PutResult)
        done = await box.run(Exec(argv=("cat", "README.md"), timeout_s=5))
        assert isinstance(done, ExecResult)
    return Grade(score=float(read.data == done.stdout.head == b"hello\n"), passed=True, reason="clean")


@pytest.mark.parametrize("reserve", [0, 1])
async def test_a_fresh_box_is_pristine_takes_the_ended_boxs_slot_and_goes(world: World, reserve: int) -> None:
    """Memory for one box only, while another rollout waits: the grade goes first, in the slot that its own box leaves."""
    task = world.task(a_task(tests=TESTED))
    world.grader.work = in_fresh_box
    async with world.host(memory_limit_mib=100 * (1 + reserve), grader_reserve=reserve) as host:
        await host.call(a_call("echo spoiled > README.md"), task, timeout_s=10)
        if reserve:
            await until(lambda: len(world.machine.boxes) == 2)
        other = asyncio.create_task(host.call(a_call("echo 1", rollout=key("other")), task, timeout_s=10))
        reward = await host.grade(a_grade(), task, timeout_s=10)
        assert reward.score == 1.0
        assert (await other).text == "1\n"
        await host.release(key("other"))
    assert not world.machine.boxes


async def test_a_grade_without_calls_queues_for_a_box_before_opens(world: World) -> None:
    task = world.task()
    world.grader.work = in_fresh_box
    async with world.host(memory_limit_mib=100) as host:
        await host.open(key("first"), task, timeout_s=10)
        later = asyncio.create_task(host.open(key("later"), task, timeout_s=10))
        await until(lambda: host._gate.admission.queued == 1)
        grading = asyncio.create_task(host.grade(a_grade(), task, timeout_s=10))
        await asyncio.sleep(0.05)
        assert not grading.done()
        await host.release(key("first"))
        assert (await grading).score == 1.0
        assert (await later).sandbox is not None


async def test_no_more_test_runs_at_once_than_allowed(world: World) -> None:
    task = world.task(a_task(limits=Limits(memory_mib=10)))
    running = most = 0

    async def work(bench: Bench) -> None:
        nonlocal running, most
        async with bench.fresh_box():
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.01)
            running -= 1

    world.grader.work = work
    async with world.host(test_runs=2) as host:
        keys = [key(f"r{n}") for n in range(8)]
        await asyncio.gather(*(host.call(a_call("true", rollout=k), task, timeout_s=10) for k in keys))
        await asyncio.gather(*(host.grade(a_grade(k), task, timeout_s=10) for k in keys))
    assert most == 2
    assert not world.machine.boxes


async def test_a_grading_box_that_the_agents_code_brings_down_is_the_agents_fault(world: World) -> None:
    task = world.task()

    async def work(bench: Bench) -> None:
        async with bench.fresh_box() as box:
            for _ in range(3):
                await box.run(Exec(argv=("true",), timeout_s=5))

    world.grader.work = work
    async with world.host(world.backend(DiesLater(after_operations=1, dead=True, nth=(2,)))) as host:
        await host.call(a_call("true"), task, timeout_s=10)
        reward = await host.grade(a_grade(), task, timeout_s=10)
        assert (reward.outcome, reward.score) == (Outcome.AGENT_FAULT, 0.0)


async def test_a_grading_box_that_is_lost_or_never_starts_is_an_error_of_ours_and_graded_again(world: World) -> None:
    task = world.task()
    world.grader.work = in_fresh_box
    orders: list[Any] = [DiesLater(after_operations=0, nth=(2,)), BadStart(nth=(3,))]
    async with world.host(world.backend(*orders)) as host:
        await host.call(a_call("true"), task, timeout_s=10)
        with pytest.raises((GraderError, SandboxError)):
            await host.grade(a_grade(), task, timeout_s=10)
        with pytest.raises(StartFailed):
            await host.grade(a_grade(), task, timeout_s=10)
        assert (await host.grade(a_grade(), task, timeout_s=10)).score == 1.0
        await until(lambda: not world.machine.boxes)
        assert (await host.load()).free_memory_mib == 10_000


async def test_a_rollout_whose_box_never_started_is_not_graded_as_if_it_had_done_nothing(world: World) -> None:
    task = world.task()
    async with world.host(world.backend(BadStart())) as host:
        with pytest.raises(StartFailed):
            await host.call(a_call("true"), task, timeout_s=10)
        with pytest.raises(StartFailed):
            await host.grade(a_grade(), task, timeout_s=10)
    assert await world.store.reward(key()) is None


async def test_findings_of_the_record_end_up_in_evidence_and_reward(world: World) -> None:
    task = world.task()
    async with world.host() as host:
        await host.call(a_call("true"), task, timeout_s=10)
        await world.store.add_finding(key(), "forged_handle", "…")
        reward = await host.grade(a_grade(), task, timeout_s=10)
    assert [finding.code for finding in reward.findings] == ["forged_handle"]


async def test_content_beyond_the_cap_is_named_and_the_evidence_says_so(world: World) -> None:
    task = world.task()
    async with world.host(max_evidence_bytes=4, evidence_chunk_bytes=2) as host:
        await host.call(a_call("echo > a; echo 22222 > b; echo 3 > c"), task, timeout_s=10)
        await host.grade(a_grade(), task, timeout_s=10)
    evidence = await stored(world)
    assert [(change.path, change.blob is not None) for change in evidence.changes] == [
        ("a", True),
        ("b", False),
        ("c", True),
    ]
    assert evidence.truncated
    assert [finding.detail for finding in evidence.findings] == ["b"]


async def test_a_failure_after_the_evidence_is_stored_grades_from_it(world: World) -> None:
    task = world.task()
    failpoints.arm("after_evidence:raise")
    try:
        async with world.host() as host:
            await host.call(a_call("echo 1 > made"), task, timeout_s=10)
            with pytest.raises(failpoints.FailpointFired):
                await host.grade(a_grade(), task, timeout_s=10)
            assert world.grader.asked == 0
            assert (await host.grade(a_grade(final_answer="later"), task, timeout_s=10)).score == 1.0
    finally:
        failpoints.arm("")
    assert (await stored(world)).final_answer == "done"
