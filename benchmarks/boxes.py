"""Boxes: a cold one beside `docker run` of the same image, an idle one's memory, and what kill -9 leaves."""

import asyncio
import os
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path

from benchmarks.measure import Budget, Sample, interleaved
from orchestrator.cli.wiring import Engine, engine
from orchestrator.interfaces import SandboxSpec, Template
from orchestrator.models import Limits, SandboxId, Task, TaskId
from orchestrator.settings import Settings
from tests.e2e.harness import Server, Trainer

IMAGE = "tiltyard/python:3.11"
RUNS = 12
IDLE_BOXES = 8
LIMITS = Limits(memory_mib=256, disk_mib=64, pids=128)


async def docker_run() -> None:
    """What the engine itself takes for a container whose first command has run, under the same limits."""
    command = (
        "docker", "run", "--rm", "--network", "none", "--memory", "256m", "--memory-swap", "256m",
        "--pids-limit", "128", "--cpus", "1", "--read-only", "--log-driver", "none", IMAGE, "true",
    )  # fmt: skip
    process = await asyncio.create_subprocess_exec(*command)
    assert await process.wait() == 0


def cold_box(made: Engine, template: Template) -> Callable[[], Awaitable[None]]:
    """Made until its agent answers, then taken away, as `docker run --rm` does."""

    async def once() -> None:
        sandbox_id = SandboxId(f"bench-{uuid.uuid4().hex[:10]}")
        spec = SandboxSpec(image=template.image, template=template, limits=LIMITS)
        box = await made.backend.create(sandbox_id, spec, deadline=time.monotonic() + 60)
        await box.aclose()
        await made.backend.destroy(sandbox_id)

    return once


def agent_rss_mib() -> list[float]:
    """Resident memory of every in-box agent on this machine."""
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            text = status.read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if text.startswith("Name:\ttiltyard-agent"):
            found += [int(line.split()[1]) / 1024 for line in text.splitlines() if line.startswith("VmRSS:")]
    return found


async def idle_memory(made: Engine, template: Template) -> float:
    """Mean RSS of idle agents: what a box costs beyond the engine's own shim. The whole of it is ours."""
    ids = [SandboxId(f"idle-{uuid.uuid4().hex[:10]}") for _ in range(IDLE_BOXES)]
    spec = SandboxSpec(image=template.image, template=template, limits=LIMITS)
    before = len(agent_rss_mib())
    try:
        for sandbox_id in ids:
            box = await made.backend.create(sandbox_id, spec, deadline=time.monotonic() + 60)
            await box.aclose()
        await asyncio.sleep(1.0)
        rss = await asyncio.to_thread(agent_rss_mib)
        assert len(rss) - before == IDLE_BOXES, rss
        return max(rss)
    finally:
        for sandbox_id in ids:
            await made.backend.destroy(sandbox_id)


async def run(settings: Settings, repo: Path, commit: str) -> tuple[list[Budget], list[Sample]]:
    task = Task(id=TaskId("bench"), repo=str(repo), commit=commit, image=IMAGE, prompt="", grader="file_f1")
    async with engine(settings) as made:
        template = await made.templates.template(task, deadline=time.monotonic() + 120)
        samples = await interleaved(
            [("docker run --rm", docker_run), ("cold box", cold_box(made, template))], runs=RUNS
        )
        idle = await idle_memory(made, template)
    ratio = samples["cold box"].p50 / samples["docker run --rm"].p50
    return [
        Budget(
            name="cold docker box, made and removed, p50", value=ratio, limit=1.15, unit="x", baseline="docker run --rm"
        ),
        Budget(
            name="idle box beyond the engine's cost, RSS", value=idle, limit=8.0, unit="MiB", baseline="none (absolute)"
        ),
    ], list(samples.values())


async def leaks(server: Server, players: list[Trainer], kills: int) -> Budget:
    """Open, kill -9, start again, grade: what is left of containers, mounts, loops and sockets."""
    for turn in range(kills):
        batch = players[turn::kills]
        playing = [asyncio.create_task(player.call("1", "shell", command="echo hi > file")) for player in batch]
        await asyncio.sleep(0.3)
        await server.kill()
        await server.start()
        await asyncio.gather(*playing)
        await asyncio.gather(*(player.grade() for player in batch))
    await server.stop()
    left = await server.settled(60)
    folders = [str(path) for path in (server.state / server.deployment / "boxes").glob("*")]
    return Budget(
        name=f"left after kill -9 x{kills}, {len(players)} rollouts",
        value=float(len(left) + len(folders)),
        limit=0.0,
        unit="things",
        baseline="none (absolute)",
        note=os.linesep.join(left[:3]),
    )
