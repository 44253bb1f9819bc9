"""Boxes: an idle one's memory, and what kill -9 leaves."""

import asyncio
import os
import time
import uuid
from pathlib import Path

from benchmarks.measure import Budget, Sample
from orchestrator.cli.wiring import Engine, engine
from orchestrator.interfaces import SandboxSpec, Template
from orchestrator.models import Limits, SandboxId, Task, TaskId
from orchestrator.settings import Settings
from tests.e2e.harness import Server, Trainer

IMAGE = "tiltyard/python:3.11"
IDLE_BOXES = 8
IDLE_S = 4.0
"""An agent makes itself small after two idle seconds."""
LIMITS = Limits(memory_mib=256, disk_mib=64, pids=128)


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
        await asyncio.sleep(IDLE_S)
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
        idle = await idle_memory(made, template)
    name = "idle box beyond the engine's cost, RSS"
    return [Budget(name=name, value=idle, limit=8.0, unit="MiB", baseline="none (absolute)")], []


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
