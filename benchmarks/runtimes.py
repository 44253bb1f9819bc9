"""Start and call cost of every backend and runtime that this machine has, each beside what it is built on, in one run."""

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.calls import bare_subprocess
from benchmarks.measure import Budget, Sample, interleaved
from orchestrator.cli.wiring import Engine, engine
from orchestrator.errors import EngineUnavailable, Misconfigured
from orchestrator.interfaces import Sandbox, SandboxSpec, Template
from orchestrator.models import (
    CallKey,
    Epoch,
    JobId,
    Limits,
    OpId,
    PendingCall,
    RolloutKey,
    SandboxId,
    Task,
    TaskId,
    TraceId,
)
from orchestrator.operations import Exec, ExecResult
from orchestrator.settings import load_settings

IMAGE = "tiltyard/python:3.11"
STARTS, CALLS = 12, 100
LIMITS = Limits(memory_mib=256, disk_mib=64, pids=128)
LOCAL_START_S = 0.060
"""What a cold local box may take (docs/performance.md)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """`runtime` is empty where the backend has none to choose."""

    name: str
    backend: str
    runtime: str = ""
    image: str = IMAGE


SUBJECTS = (
    Subject(name="docker, runc", backend="docker", runtime="runc"),
    Subject(name="docker, gVisor", backend="docker", runtime="runsc"),
    Subject(name="local, bubblewrap", backend="local", image="host"),
)


def docker_run(runtime: str) -> Callable[[], Awaitable[None]]:
    """What the engine itself takes for a container of that runtime whose first command has run."""
    command = (
        "docker", "run", "--rm", "--runtime", runtime, "--network", "none", "--memory", "256m", "--memory-swap", "256m",
        "--cpus", "1", "--read-only", "--log-driver", "none", IMAGE, "true",
    )  # fmt: skip

    async def once() -> None:
        process = await asyncio.create_subprocess_exec(*command)
        assert await process.wait() == 0

    return once


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    made: Engine
    template: Template

    async def box(self) -> tuple[SandboxId, Sandbox]:
        sandbox_id = SandboxId(f"bench-{uuid.uuid4().hex[:10]}")
        spec = SandboxSpec(image=self.template.image, template=self.template, limits=LIMITS)
        return sandbox_id, await self.made.backend.create(sandbox_id, spec, deadline=time.monotonic() + 60)

    async def start(self) -> None:
        """Made until its agent answers, then taken away."""
        sandbox_id, box = await self.box()
        await box.aclose()
        await self.made.backend.destroy(sandbox_id)


def call(box: Sandbox) -> Callable[[], Awaitable[None]]:
    """`sh -c true` in a warm box, through its agent, journaled and acknowledged."""

    async def once() -> None:
        key = CallKey(uuid.uuid4().hex)
        header = PendingCall(key=key, sequence=1, tool="shell", arguments={}, operations=0)
        deadline = time.monotonic() + 30
        op = Exec(argv=("/bin/sh", "-c", "true"), timeout_s=20)
        result = await box.run(op, op_id=OpId(call=key, number=0), deadline=deadline, call=header)
        assert isinstance(result, ExecResult), result
        assert result.exit_code == 0, result
        await box.acknowledge([key])

    return once


async def one(subject: Subject, folder: Path, task: Task) -> tuple[list[Budget], list[Sample]]:
    """Raises Misconfigured, EngineUnavailable where this machine lacks the subject."""
    chosen = {"runtime": subject.runtime} if subject.runtime else {}
    settings = load_settings(
        deployment="bench", state_dir=folder, backend=subject.backend, accept_old_runc=True, **chosen
    )
    async with engine(settings) as made:
        bench = Bench(made=made, template=await made.templates.template(task, deadline=time.monotonic() + 120))
        starts: list[tuple[str, Callable[[], Awaitable[None]]]] = [(f"cold box, {subject.name}", bench.start)]
        if subject.runtime:
            starts.insert(0, (f"docker run --rm, {subject.runtime}", docker_run(subject.runtime)))
        samples = await interleaved(starts, runs=STARTS)
        async with AsyncExitStack() as stack:
            sandbox_id, box = await bench.box()
            stack.push_async_callback(made.backend.destroy, sandbox_id)
            stack.push_async_callback(box.aclose)
            rollout = RolloutKey(job=JobId("bench"), trace_id=TraceId(uuid.uuid4().hex))
            await box.lease(rollout, Epoch(1))
            samples |= await interleaved(
                [
                    (f"bare subprocess beside {subject.name}", bare_subprocess),
                    (f"agent call, {subject.name}", call(box)),
                ],
                runs=CALLS,
            )
    return budgets(subject, samples), list(samples.values())


def budgets(subject: Subject, samples: dict[str, Sample]) -> list[Budget]:
    cold = samples[f"cold box, {subject.name}"].p50
    bare, warm = samples[f"bare subprocess beside {subject.name}"].p50, samples[f"agent call, {subject.name}"].p50
    found = []
    if subject.runtime == "runc":
        base = samples["docker run --rm, runc"].p50
        found.append(
            Budget(
                name="cold docker box, made and removed, p50",
                value=cold / base,
                limit=1.15,
                unit="x",
                baseline="docker run --rm",
            )
        )
    elif subject.backend == "local":
        found.append(
            Budget(
                name="cold local box, made and removed, p50",
                value=cold * 1000,
                limit=LOCAL_START_S * 1000,
                unit="ms",
                baseline="none (absolute)",
            )
        )
    print(
        f"  {subject.name}: start {cold * 1000:.0f} ms, call {warm * 1000:.2f} ms = {warm / bare:.2f}x a bare subprocess",
        flush=True,
    )
    return found


async def run(folder: Path, repo: Path, commit: str) -> tuple[list[Budget], list[Sample]]:
    """Every subject; one that this machine lacks is named, not left out in silence."""
    all_budgets: list[Budget] = []
    all_samples: list[Sample] = []
    for number, subject in enumerate(SUBJECTS):
        task = Task(id=TaskId("bench"), repo=str(repo), commit=commit, image=subject.image, prompt="", grader="file_f1")
        try:
            found, samples = await one(subject, folder / str(number), task)
        except (Misconfigured, EngineUnavailable) as error:
            print(f"  {subject.name}: not measured: {error.message}", flush=True)
            continue
        all_budgets += found
        all_samples += samples
    return all_budgets, all_samples
