"""A backend of this test module's own, and boxes that are gone afterwards: whatever is left fails the module."""

import secrets
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from orchestrator.backends.docker.backend import DockerBackend
from orchestrator.backends.docker.engine import Engine
from orchestrator.backends.docker.settings import DEFAULT_SOCKET, DockerSettings
from orchestrator.interfaces import SandboxSpec
from orchestrator.models import Limits, SandboxId
from orchestrator.repos.workspace import make_workspaces
from tests.backends.docker.boxes import Box

IMAGE = "tiltyard/python:3.11"
START_S = 60.0
"""Far above a start's half second: a loaded machine must not turn a test red."""

Open = Callable[..., Awaitable[Box]]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """As in tests/conftest.py, once for a module, so that its tests may share a box."""
    return "asyncio"


@pytest.fixture(scope="module")
def state_dir() -> Iterator[Path]:
    """Short: the agent's socket lies below it, and a unix socket's path has 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="ty-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def settings(state_dir: Path) -> DockerSettings:
    deployment = f"test-{secrets.token_hex(4)}"
    return DockerSettings(
        deployment=deployment,
        host_id="test",
        state_dir=state_dir / deployment,
        memory_limit_mib=8192,
        accept_old_runc=True,
    )


@pytest.fixture(scope="module")
async def backend(settings: DockerSettings, state_dir: Path) -> AsyncIterator[DockerBackend]:
    async with DockerBackend(settings, make_workspaces(state_dir, settings.deployment)) as made:
        yield made
        left = await made.owned()
        for box in left:
            await made.destroy(box.id)
        assert not left, "a test left boxes behind"
        assert not await made.owned()


@pytest.fixture(scope="module")
async def engine() -> AsyncIterator[Engine]:
    """A look at the engine beside the backend's own."""
    made = Engine(DEFAULT_SOCKET, timeout_s=60)
    yield made
    await made.aclose()


async def open_box(backend: DockerBackend, *, image: str = IMAGE, **limits: float) -> Box:
    spec = SandboxSpec(image=image, template=None, limits=Limits(**limits))  # type: ignore[arg-type]
    sandbox = await backend.create(new_id(), spec, deadline=time.monotonic() + START_S)
    box = Box(sandbox)
    await box.lease()
    return box


def new_id() -> SandboxId:
    return SandboxId(f"b-{secrets.token_hex(6)}")


@pytest.fixture
async def opened(backend: DockerBackend) -> AsyncIterator[Open]:
    """Opens boxes that are destroyed when the test ends."""
    async with AsyncExitStack() as stack:

        async def open_one(**options: float) -> Box:
            box = await open_box(backend, **options)  # type: ignore[arg-type]
            stack.push_async_callback(backend.destroy, box.sandbox.id)
            stack.push_async_callback(box.sandbox.aclose)
            return box

        yield open_one


@pytest.fixture(scope="module")
async def shared(backend: DockerBackend) -> AsyncIterator[Box]:
    """One box for tests that only look."""
    box = await open_box(backend)
    yield box
    await box.sandbox.aclose()
    await backend.destroy(box.sandbox.id)
