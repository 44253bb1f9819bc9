"""Live boxes for looks from outside: a backend of one's own under any runtime, its create request as it is or weakened."""

import json
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from docker import APIClient

from orchestrator.agent.config import RUN_DIR
from orchestrator.backends.docker.backend import DockerBackend
from orchestrator.backends.docker.settings import DEFAULT_SOCKET, DockerSettings
from orchestrator.backends.docker.spec import Body, BoxPlan, container_name, container_spec
from orchestrator.interfaces import SandboxSpec
from orchestrator.models import Limits, SandboxId
from orchestrator.repos.workspace import make_workspaces
from tests.backends.docker.boxes import Box

IMAGE = "tiltyard/python:3.11"
START_S = 60.0
LIMITS = Limits(memory_mib=512, cpus=1.0, pids=128, disk_mib=128, inodes=20_000, open_files=1024)

Weakening = Callable[[Any], None]
"""Changes the body of a create request in place."""


@dataclass(frozen=True, kw_only=True)
class Live:
    """A running box, and what the engine and the host's own files say of it."""

    box: Box
    spec: SandboxSpec
    runtime: str
    container: str
    pid: int
    agent_dir: Path
    inspected: Any
    """The engine's whole answer."""

    @property
    def uid_base(self) -> int:
        return int(json.loads((self.agent_dir / "config.json").read_text())["uid_base"])

    def pause(self) -> None:
        with engine() as api:
            api.pause(self.container)

    def unpause(self) -> None:
        with engine() as api:
            api.unpause(self.container)


def engine() -> APIClient:
    """A look at the engine beside the backend's own. Close it: `with`."""
    return APIClient(base_url=DEFAULT_SOCKET, version="auto", timeout=60)


def weakened(weaken: Weakening | None) -> Callable[[BoxPlan], Body]:
    def body(plan: BoxPlan) -> Body:
        made = container_spec(plan)
        if weaken:
            weaken(made)
        return made

    return body


@asynccontextmanager
async def backend(runtime: str = "runc", weaken: Weakening | None = None) -> AsyncIterator[DockerBackend]:
    """In a deployment and folder of its own, whose path is short: the agents' sockets lie below it."""
    folder = Path(tempfile.mkdtemp(prefix="ty-"))
    deployment = f"integrity-{secrets.token_hex(3)}"
    settings = DockerSettings(
        deployment=deployment,
        host_id="test",
        state_dir=folder / deployment,
        memory_limit_mib=8192,
        runtime=runtime,
        accept_old_runc=True,
    )
    workspaces = make_workspaces(folder, deployment)
    try:
        async with DockerBackend(settings, workspaces, body=weakened(weaken)) as made:
            try:
                yield made
            finally:  # also after a failure: nothing of ours may stay mounted
                for left in await made.owned():
                    await made.destroy(left.id)
    finally:
        shutil.rmtree(folder)


@asynccontextmanager
async def live(made: DockerBackend, *, runtime: str = "runc", image: str = IMAGE) -> AsyncIterator[Live]:
    spec = SandboxSpec(image=image, template=None, limits=LIMITS)
    sandbox_id = SandboxId(f"i-{secrets.token_hex(6)}")
    sandbox = await made.create(sandbox_id, spec, deadline=time.monotonic() + START_S)
    try:
        box = Box(sandbox)
        await box.lease()
        yield _look(box, spec, runtime)
    finally:
        await sandbox.aclose()
        await made.destroy(sandbox_id)


def _look(box: Box, spec: SandboxSpec, runtime: str) -> Live:
    with engine() as api:
        found = api.inspect_container(container_name(box.sandbox.id))
    run = next(mount for mount in found["Mounts"] if mount["Destination"] == RUN_DIR)
    return Live(
        box=box,
        spec=spec,
        runtime=runtime,
        container=found["Id"],
        pid=found["State"]["Pid"],
        agent_dir=Path(run["Source"]),
        inspected=found,
    )


def descendants(pid: int) -> Sequence[int]:
    """All processes below `pid`, by the parents that /proc names."""
    parents = {int(name): parent(int(name)) for name in os.listdir("/proc") if name.isdigit()}
    found = {pid}
    while more := {child for child, above in parents.items() if above in found} - found:
        found |= more
    return sorted(found - {pid})


def parent(pid: int) -> int:
    """-1 when it is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return -1
