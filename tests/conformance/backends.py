"""The backends that the suite runs over in tests: name -> what it needs, and how one is made."""

import asyncio
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from orchestrator.backends.docker.backend import DockerBackend
from orchestrator.backends.docker.base_images import BUSYBOX
from orchestrator.backends.docker.settings import DockerSettings
from orchestrator.backends.fake import FakeBackend
from orchestrator.backends.local.backend import LocalBackend
from orchestrator.backends.local.settings import HOST_IMAGE, LocalSettings
from orchestrator.conformance import DEFAULT_IMAGE
from orchestrator.interfaces import SandboxBackend
from orchestrator.repos.workspace import make_workspaces


@asynccontextmanager
async def fake() -> AsyncIterator[SandboxBackend]:
    backend = FakeBackend()
    try:
        yield backend
    finally:
        await backend.world.aclose()


@asynccontextmanager
async def docker(runtime: str = "runc") -> AsyncIterator[SandboxBackend]:
    """In a deployment and folder of its own. The folder's path is short: the agents' sockets lie below it."""
    deployment = f"conformance-{secrets.token_hex(3)}"
    folder = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="ty-"))
    settings = DockerSettings(
        deployment=deployment,
        host_id="test",
        state_dir=folder / deployment,
        memory_limit_mib=8192,
        runtime=runtime,
        accept_old_runc=True,
    )
    async with DockerBackend(settings, make_workspaces(folder, deployment)) as backend:
        try:
            yield backend
        finally:  # also after a failure: nothing of ours may stay mounted
            for box in await backend.owned():
                await backend.destroy(box.id)
    await asyncio.to_thread(shutil.rmtree, folder)


@asynccontextmanager
async def local() -> AsyncIterator[SandboxBackend]:
    """As `docker`, without an engine."""
    deployment = f"conformance-{secrets.token_hex(3)}"
    folder = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="ty-"))
    settings = LocalSettings(deployment=deployment, state_dir=folder / deployment, memory_limit_mib=8192)
    async with LocalBackend(settings, make_workspaces(folder, deployment)) as backend:
        try:
            yield backend
        finally:
            for box in await backend.owned():
                await backend.destroy(box.id)
    await asyncio.to_thread(shutil.rmtree, folder)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """`name` is the subject: its gaps are `GAPS[name]`."""

    name: str
    needs: tuple[str, ...]
    make: Callable[[], AbstractAsyncContextManager[SandboxBackend]]
    image: str = DEFAULT_IMAGE


ROWS = (
    Row(name="fake", needs=(), make=fake),
    Row(name="docker", needs=("docker", "root"), make=docker),
    Row(name="docker-busybox", needs=("docker", "root"), make=docker, image=BUSYBOX),
    Row(name="docker-runsc", needs=("docker", "root", "runsc"), make=partial(docker, "runsc")),
    Row(name="local", needs=("bwrap", "libseccomp", "root"), make=local, image=HOST_IMAGE),
)
