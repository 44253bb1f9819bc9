"""A backend of this test module's own, and boxes that are gone afterwards: whatever is left fails the module."""

import secrets
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from orchestrator.backends.local.backend import LocalBackend
from orchestrator.backends.local.box import Line
from orchestrator.backends.local.settings import HOST_IMAGE, LocalSettings
from orchestrator.backends.local.spec import command
from orchestrator.interfaces import SandboxSpec
from orchestrator.models import Limits, SandboxId
from orchestrator.repos.workspace import make_workspaces
from tests.backends.docker.boxes import Box

START_S = 60.0
Open = Callable[..., Awaitable[Box]]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def state_dir() -> Iterator[Path]:
    """Short: the agent's socket lies below it, and a unix socket's path has 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="ty-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def settings(state_dir: Path) -> LocalSettings:
    deployment = f"test-{secrets.token_hex(4)}"
    return LocalSettings(deployment=deployment, state_dir=state_dir / deployment, memory_limit_mib=8192)


@asynccontextmanager
async def entered(settings: LocalSettings, line: Line = command) -> AsyncIterator[LocalBackend]:
    async with LocalBackend(
        settings, make_workspaces(settings.state_dir.parent, settings.deployment), line=line
    ) as made:
        yield made
        left = await made.owned()
        for box in left:
            await made.destroy(box.id)
        assert not left, "a test left boxes behind"
        assert not await made.owned()


@pytest.fixture(scope="module")
async def backend(settings: LocalSettings) -> AsyncIterator[LocalBackend]:
    async with entered(settings) as made:
        yield made


def new_id() -> SandboxId:
    return SandboxId(f"b-{secrets.token_hex(6)}")


async def open_box(backend: LocalBackend, *, grader: bool = False, **limits: float) -> Box:
    spec = SandboxSpec(image=HOST_IMAGE, template=None, limits=Limits(**limits), grader=grader)  # type: ignore[arg-type]
    sandbox = await backend.create(new_id(), spec, deadline=time.monotonic() + START_S)
    box = Box(sandbox)
    await box.lease()
    return box


@pytest.fixture
async def opened(backend: LocalBackend) -> AsyncIterator[Open]:
    """Opens boxes that are destroyed when the test ends."""
    async with AsyncExitStack() as stack:

        async def open_one(**options: float) -> Box:
            box = await open_box(backend, **options)  # type: ignore[arg-type]
            stack.push_async_callback(backend.destroy, box.sandbox.id)
            stack.push_async_callback(box.sandbox.aclose)
            return box

        yield open_one


@pytest.fixture(scope="module")
async def shared(backend: LocalBackend) -> AsyncIterator[Box]:
    """One box for tests that only look."""
    box = await open_box(backend)
    yield box
    await box.sandbox.aclose()
    await backend.destroy(box.sandbox.id)
