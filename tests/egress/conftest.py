"""One internet for the session; a backend and a box of the tests' own, and nothing left of them."""

import secrets
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.backends.docker.backend import DockerBackend
from orchestrator.backends.docker.engine import Engine
from orchestrator.backends.docker.settings import DEFAULT_SOCKET, DockerSettings
from orchestrator.egress.names import network
from orchestrator.interfaces import SandboxSpec
from orchestrator.models import Limits, Network, SandboxId
from orchestrator.repos.workspace import make_workspaces
from tests.backends.docker.boxes import Box
from tests.egress.internet import PYTHON, Internet, open_internet

HERE = Path(__file__).parent
START_S = 90.0
LISTED = network(["good.example", "*.wild.example", "*.bad.example"], (80, 443))


class Prober:
    """A box that can be told to try something."""

    def __init__(self, box: Box) -> None:
        self.box = box
        self.id = box.sandbox.id

    async def tries(self, kind: str, *arguments: str) -> str:
        quoted = " ".join("'" + argument.replace("'", "'\\''") + "'" for argument in arguments)
        return await self.box.text(f"python3 /tmp/probe.py {kind} {quoted}", timeout_s=25)


Open = Callable[..., Awaitable[Prober]]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def internet() -> Iterator[Internet]:
    made = open_internet()
    yield made
    made.end()


@pytest.fixture(scope="module")
def state_dir() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="ty-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module", params=["runc"])
def settings(request: pytest.FixtureRequest, state_dir: Path, internet: Internet) -> DockerSettings:
    deployment = f"test-{secrets.token_hex(4)}"
    return DockerSettings(
        deployment=deployment,
        host_id="test",
        state_dir=state_dir / deployment,
        runtime=request.param,
        memory_limit_mib=8192,
        accept_old_runc=True,
        egress_network=internet.name,
        egress_dns=(internet.dns,),
    )


@pytest.fixture(scope="module")
async def backend(settings: DockerSettings, state_dir: Path, engine: Engine) -> AsyncIterator[DockerBackend]:
    async with DockerBackend(settings, make_workspaces(state_dir, settings.deployment)) as made:
        yield made
        left = await made.owned()
        for box in left:
            await made.destroy(box.id)
        assert not left, "a test left boxes behind"
        mine = {"tiltyard.deployment": settings.deployment}
        assert [entry.name for entry in await engine.containers(mine)] == []
        assert list((settings.state_dir / "egress").glob("*")) == []


@pytest.fixture(scope="module")
async def engine() -> AsyncIterator[Engine]:
    made = Engine(DEFAULT_SOCKET, timeout_s=60)
    yield made
    await made.aclose()


async def open_box(backend: DockerBackend, listed: Network = LISTED) -> Prober:
    spec = SandboxSpec(image=PYTHON, template=None, limits=replace(Limits(), memory_mib=256), network=listed)
    sandbox = await backend.create(SandboxId(f"b-{secrets.token_hex(6)}"), spec, deadline=time.monotonic() + START_S)
    box = Box(sandbox)
    await box.lease()
    probe = (HERE / "probe.py").read_text()
    await box.text(f"cat >/tmp/probe.py <<'EOF'\n{probe}\nEOF")
    return Prober(box)


@pytest.fixture
async def opened(backend: DockerBackend) -> AsyncIterator[Open]:
    async with AsyncExitStack() as stack:

        async def open_one(listed: Network = LISTED) -> Prober:
            prober = await open_box(backend, listed)
            stack.push_async_callback(backend.destroy, prober.id)
            stack.push_async_callback(prober.box.sandbox.aclose)
            return prober

        yield open_one


@pytest.fixture(scope="module")
async def prober(backend: DockerBackend) -> AsyncIterator[Prober]:
    """One box for tests that leave it as it is."""
    made = await open_box(backend)
    yield made
    await made.box.sandbox.aclose()
    await backend.destroy(made.id)
