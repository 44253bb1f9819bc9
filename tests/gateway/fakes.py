"""A host and a cluster in memory, whose answers a test orders; they keep the Host contract (bind first, join by key, task conflicts)."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from orchestrator.errors import TaskConflict, UnknownRollout
from orchestrator.interfaces import Host, HostLoad, Store
from orchestrator.models import (
    Binding,
    CallKey,
    CallRequest,
    Finding,
    GradeRequest,
    HostId,
    Job,
    JobId,
    JsonValue,
    Outcome,
    Reward,
    RolloutKey,
    RolloutState,
    Task,
    TaskId,
    ToolReply,
)


async def echo(request: CallRequest) -> ToolReply:
    return ToolReply(text=f"{request.tool} {request.arguments_text}")


async def full_marks(request: GradeRequest) -> Reward:
    return reward(request.rollout, 1.0)


def reward(rollout: RolloutKey, score: float | None, outcome: Outcome = Outcome.SCORED) -> Reward:
    return Reward(
        rollout=rollout,
        outcome=outcome,
        score=score,
        reason="as ordered",
        sub_scores={"f1": 0.5},
        findings=(Finding(code="seen", detail="a thing"),),
        graded_at=2.0,
    )


@dataclass
class FakeHost:
    """Every request that reached it is kept in `calls` and `grades`; `runs` counts what ran, duplicates joined."""

    store: Store
    id: HostId = field(default_factory=lambda: HostId("host-1"))
    on_call: Callable[[CallRequest], Awaitable[ToolReply]] = echo
    on_grade: Callable[[GradeRequest], Awaitable[Reward]] = full_marks
    on_load: Callable[[], Awaitable[HostLoad]] | None = None
    calls: list[tuple[CallRequest, Task]] = field(default_factory=list)
    grades: list[tuple[GradeRequest, Task]] = field(default_factory=list)
    timeouts: list[float] = field(default_factory=list)
    runs: int = 0
    arrivals: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    """One release per call that reached the host, joined ones too."""
    _flights: dict[CallKey, asyncio.Task[ToolReply]] = field(default_factory=dict)

    async def open(self, rollout: RolloutKey, task: Task, *, timeout_s: float) -> Binding:
        self.timeouts.append(timeout_s)
        binding = await self.store.bind(rollout, task.id, self.id)
        if binding.task != task.id:
            raise TaskConflict("this rollout is bound to another task")
        return binding

    async def call(self, request: CallRequest, task: Task, *, timeout_s: float) -> ToolReply:
        await self.open(request.rollout, task, timeout_s=timeout_s)
        self.calls.append((request, task))
        self.arrivals.release()
        flight = self._flights.get(request.key)
        if flight is None:
            self.runs += 1
            flight = self._flights[request.key] = asyncio.create_task(self._run(request))
        return await asyncio.shield(flight)

    async def _run(self, request: CallRequest) -> ToolReply:
        return await self.on_call(request)

    async def grade(self, request: GradeRequest, task: Task, *, timeout_s: float) -> Reward:
        binding = await self.open(request.rollout, task, timeout_s=timeout_s)
        self.grades.append((request, task))
        return await self.store.put_reward(binding, await self.on_grade(request))

    async def release(self, rollout: RolloutKey) -> None:
        binding = await self.store.binding(rollout)
        if binding is None:
            raise UnknownRollout("no such rollout")
        if binding.state is RolloutState.OPEN:
            await self.store.close(binding, RolloutState.RELEASED, "released")

    async def load(self) -> HostLoad:
        if self.on_load is not None:
            return await self.on_load()
        return HostLoad(live=3, queued=2, grading=1, draining=False, free_memory_mib=100)

    async def drain(self) -> None:
        raise AssertionError("the gateway drains no hosts")


@dataclass
class FakeCluster:
    members: Sequence[Host]

    async def host_for(self, rollout: RolloutKey) -> Host:
        return self.members[0]

    async def hosts(self) -> Sequence[Host]:
        return self.members

    async def aclose(self) -> None:
        raise AssertionError("the gateway does not own the cluster")


def task(name: str) -> Task:
    return Task(id=TaskId(name), repo="https://example.test/r", commit="c" * 40, image="i", prompt="p", grader="tests")


def job(name: str, *tasks: str) -> Job:
    return Job(id=JobId(name), tasks={TaskId(task_name): task(task_name) for task_name in tasks})


def jobs(*all_jobs: Job) -> Mapping[JobId, Job]:
    return {one.id: one for one in all_jobs}


def schemas(_: Task) -> Sequence[Mapping[str, JsonValue]]:
    parameters: JsonValue = {"type": "object", "properties": {"command": {"type": "string"}}, "required": ["command"]}
    return [{"name": "shell", "description": "Run a command.", "parameters": parameters}]
