"""A host over fake boxes and a real store, with everything a test may want to turn."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from orchestrator.backends.fake import FakeBackend, FakeWorld, Faults
from orchestrator.errors import Misconfigured, RepositoryError
from orchestrator.hosts.host import SandboxHost
from orchestrator.hosts.settings import HostSettings
from orchestrator.interfaces import Bench, Grader, SandboxBackend, Store, Template, Tool
from orchestrator.models import (
    CallKey,
    CallRequest,
    Grade,
    GradeRequest,
    HostId,
    JobId,
    Limits,
    RolloutKey,
    Task,
    TaskId,
    TestsSpec,
    TraceId,
    call_key,
)
from orchestrator.operations import Manifest, ManifestFile
from orchestrator.store.blobs import DiskBlobs
from orchestrator.store.sql import SqlStore
from orchestrator.tools.registry import tool

HOST = HostId("host-a")
JOB = JobId("default")
FILES: Mapping[str, bytes] = {"README.md": b"hello\n", "pkg/core.py": b"VALUE = 1\n"}


def key(name: str = "trace_1", job: JobId = JOB) -> RolloutKey:
    return RolloutKey(job=job, trace_id=TraceId(name))


def a_task(name: str = "t1", **changes: Any) -> Task:
    task = Task(
        id=TaskId(name),
        repo="file:///repo",
        commit="0" * 40,
        image="image",
        prompt="Fix it.",
        grader="count",
        limits=Limits(memory_mib=100),
        max_calls=20,
    )
    return replace(task, **changes)


TESTED = TestsSpec(hidden=(), fail_to_pass=())


def a_call(
    command: str, call_id: str = "c1", *, rollout: RolloutKey | None = None, tool: str = "shell", arguments: str = ""
) -> CallRequest:
    rollout = rollout or key()
    text = arguments or '{"command":"' + command.replace('"', '\\"') + '"}'
    return CallRequest(
        rollout=rollout, key=call_key(rollout, call_id, tool, text), call_id=call_id, tool=tool, arguments_text=text
    )


def raw_call(tool: str, arguments: str, call_id: str = "c1", *, rollout: RolloutKey | None = None) -> CallRequest:
    return a_call("", call_id, rollout=rollout, tool=tool, arguments=arguments)


def a_grade(rollout: RolloutKey | None = None, final_answer: str = "done") -> GradeRequest:
    return GradeRequest(rollout=rollout or key(), final_answer=final_answer)


def some_key(name: str) -> CallKey:
    return CallKey(hashlib.sha256(name.encode()).hexdigest()[:32])


@dataclass(slots=True)
class FolderTemplates:
    """`Templates` over one folder on disk. `fail` is raised instead, while it is set."""

    template_: Template
    fail: Exception | None = None
    asked: int = 0

    async def template(self, task: Task, *, deadline: float) -> Template:
        self.asked += 1
        if self.fail is not None:
            raise self.fail
        return self.template_


def a_template(folder: Path) -> Template:
    manifest: dict[str, ManifestFile] = {}
    for name, data in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        path.chmod(0o644)
        manifest[name] = ManifestFile(mode=0o644, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    return _over(folder, manifest)


def _over(folder: Path, manifest: Manifest) -> Template:
    return Template(key="k1", lowers=(str(folder),), manifest=manifest, owner_uid=1_000_000, image="image")


WELL_DONE = Grade(score=1.0, passed=True, reason="well done")


@dataclass(slots=True)
class ScriptedGrader:
    """A grader that does as told: `work` may use the bench; it counts how often it was asked."""

    work: Callable[[Bench], Any] | None = None
    grade_: Grade = WELL_DONE
    asked: int = 0
    name: str = "count"

    def check(self, task: Task) -> None:
        if task.grader != self.name:
            raise Misconfigured("not mine")

    async def grade(self, bench: Bench) -> Grade:
        self.asked += 1
        if self.work is not None:
            told = await self.work(bench)
            if isinstance(told, Grade):
                return told
        return self.grade_


class Clock:
    """Monotonic seconds that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass(slots=True)
class World:
    """What outlives a host: the machine with its boxes, the store, the tasks."""

    folder: Path
    store: Store
    templates: FolderTemplates
    machine: FakeWorld = field(default_factory=FakeWorld)
    grader: ScriptedGrader = field(default_factory=ScriptedGrader)
    clock: Clock = field(default_factory=Clock)
    tasks: dict[TaskId, Task] = field(default_factory=dict)
    shares: dict[JobId, float] = field(default_factory=dict)
    free_disk_mib: int | None = None
    """What a gauge of the boxes' disk says; None: no gauge."""
    extra_tools: dict[str, Tool] = field(default_factory=dict)

    def task(self, task: Task | None = None) -> Task:
        task = task or a_task()
        self.tasks[task.id] = task
        return task

    def backend(self, *orders: Any, **changes: Any) -> FakeBackend:
        return FakeBackend(faults=Faults(orders=orders, **changes), world=self.machine)

    def host(self, backend: SandboxBackend | None = None, **settings: Any) -> SandboxHost:
        values: dict[str, Any] = {
            "memory_limit_mib": 10_000,
            "start_slots": 8,
            "acknowledge_delay_s": 0.0,
            "drain_s": 0.5,
            "settle_s": 0.5,
            "grader_reserve": 0,
        }
        return SandboxHost(
            host_id=HOST,
            settings=HostSettings(**{**values, **settings}),
            backend=backend or self.backend(),
            store=self.store,
            blobs=DiskBlobs(self.folder / "blobs"),
            templates=self.templates,
            task_of=lambda job, task: self.tasks.get(task),
            share_of=lambda job: self.shares.get(job, 1.0),
            tools=lambda name: self.extra_tools.get(name) or tool(name),
            graders=self._grader,
            free_disk=None if self.free_disk_mib is None else lambda: self.free_disk_mib or 0,
            clock=self.clock,
        )

    def _grader(self, name: str) -> Grader:
        return self.grader


@asynccontextmanager
async def a_world(folder: Path) -> AsyncIterator[World]:
    template = a_template(folder / "template")
    async with SqlStore.open(f"sqlite:///{folder}/record.db") as store:
        world = World(folder=folder, store=store, templates=FolderTemplates(template))
        try:
            yield world
        finally:
            await world.machine.aclose()


async def until(true: Callable[[], object], timeout_s: float = 10.0) -> None:
    """Wait for what no event tells: something that another task of the product does by and by."""

    async def told() -> object:
        return true()

    await until_true(told, timeout_s)


async def until_true(true: Callable[[], Awaitable[object]], timeout_s: float = 10.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not await true():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


NO_TEMPLATE = RepositoryError("the mirror cannot be reached; check the URL")
