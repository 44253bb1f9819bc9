"""Values for the store's tests, and the script of a writing process."""

import asyncio
import sys

from orchestrator.models import (
    BoxEnd,
    CallKey,
    CallRecord,
    Evidence,
    FileChange,
    Finding,
    HostId,
    JobId,
    Outcome,
    Reward,
    RolloutKey,
    TaskId,
    ToolReply,
    TraceId,
)
from orchestrator.store.sql import SqlStore

TASK = TaskId("task")
HOST = HostId("host-a")
OTHER = HostId("host-b")


def rollout(number: int = 0, job: str = "job") -> RolloutKey:
    return RolloutKey(job=JobId(job), trace_id=TraceId(f"trace_{number}"))


def call(of: RolloutKey, sequence: int, text: str = "done") -> CallRecord:
    return CallRecord(
        rollout=of,
        sequence=sequence,
        key=CallKey(f"{sequence:032x}"),
        call_id=f"call_{sequence}",
        tool="shell",
        arguments_text='{"command":"true"}',
        reply=ToolReply(text=text, is_error=sequence % 2 == 0),
        started_at=1.5,
        finished_at=2.25,
        charged=sequence % 3 != 0,
    )


def evidence(of: RolloutKey, final_answer: str = "a.py") -> Evidence:
    return Evidence(
        rollout=of,
        task=TASK,
        changes=(FileChange(path="a.py", kind="modified", type="file", mode=0o644, size_bytes=3, blob="0" * 64),),
        truncated=False,
        final_answer=final_answer,
        submitted=None,
        calls=2,
        box_end=BoxEnd.ALIVE,
        findings=(Finding(code="limit", detail="x"),),
        gathered_at=3.5,
    )


def reward(of: RolloutKey, score: float | None = 0.5) -> Reward:
    return Reward(
        rollout=of,
        outcome=Outcome.SCORED if score is not None else Outcome.INFRA_ERROR,
        score=score,
        reason="half",
        sub_scores={"f1": 0.5},
        findings=(),
        graded_at=4.0,
    )


async def write_calls(url: str, lanes: int) -> None:
    """Record calls of `lanes` rollouts until killed; print each as `lane sequence` once it is acknowledged."""
    async with SqlStore.open(url) as store:
        await asyncio.gather(*(_lane(store, lane) for lane in range(lanes)))


async def _lane(store: SqlStore, lane: int) -> None:
    binding = await store.bind(rollout(lane), TASK, HOST)
    sequence = 0
    while True:
        sequence += 1
        await store.record(binding, call(binding.rollout, sequence, text="x" * 500))
        print(lane, sequence, flush=True)


async def bind_many(url: str, host: str, count: int) -> None:
    """Bind `count` rollouts at once; print who owns each."""
    async with SqlStore.open(url) as store:
        print("ready", flush=True)
        sys.stdin.readline()
        bound = await asyncio.gather(*(store.bind(rollout(number), TASK, HostId(host)) for number in range(count)))
        for binding in bound:
            print(binding.rollout.trace_id, binding.host, binding.epoch)
