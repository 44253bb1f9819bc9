"""The engine's client: what it makes of absent engines, lost replies, others' removals, and cancels."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from orchestrator.backends.docker.engine import Engine
from orchestrator.backends.docker.facts import memory_share, tidy, timestamp
from orchestrator.backends.docker.settings import DEFAULT_SOCKET, DockerSettings, engine_socket
from orchestrator.errors import EngineUnavailable, Misconfigured, StartFailed
from orchestrator.models import JsonValue
from tests.backends.docker.proxy import engine_proxy
from tests.needs import needs

pytestmark = pytest.mark.anyio

SLEEPER: dict[str, JsonValue] = {
    "Image": "tiltyard/python:3.11",
    "Cmd": ["sleep", "60"],
    "Labels": {"tiltyard.test": "engine"},
    "HostConfig": {"NetworkMode": "none"},
}


@pytest.fixture
async def name(engine: Engine) -> AsyncIterator[str]:
    made = f"tiltyard-test-{secrets.token_hex(6)}"
    yield made
    await engine.remove(made)


def test_paths_of_this_machine_do_not_travel() -> None:
    words = tidy("error while mounting volume\n '/var/lib/docker/volumes/x/_data': no such file")
    assert words == "error while mounting volume '<path>': no such file"
    assert len(tidy("x" * 10_000)) <= 400


def test_the_engines_times_are_read_with_their_fractions() -> None:
    assert timestamp("2026-11-22T17:57:10.729863046Z") == pytest.approx(1795370230.729863)
    assert timestamp("0001-01-01T00:00:00Z") == 0.0


@pytest.mark.parametrize(
    ("memory", "share"),
    [
        ({"limit": 1000, "usage": 999, "stats": {"anon": 400, "file": 599}}, 0.4),  # cgroup v2
        ({"limit": 1000, "usage": 999, "stats": {"total_rss": 300, "total_cache": 699}}, 0.3),  # v1
        ({}, 0.0),  # a container that just ended
    ],
)
def test_held_memory_is_read_from_both_forms(memory: dict[str, object], share: float) -> None:
    assert memory_share({"memory_stats": memory}) == share


def test_a_remote_engine_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = DockerSettings(deployment="d", host_id="h", state_dir=tmp_path)
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    assert engine_socket(settings) == DEFAULT_SOCKET
    monkeypatch.setenv("DOCKER_HOST", "tcp://10.0.0.1:2375")
    with pytest.raises(Misconfigured, match="on this machine"):
        engine_socket(settings)


async def test_no_engine_is_said_with_its_fix(tmp_path: Path) -> None:
    engine = Engine(f"unix://{tmp_path}/nothing.sock", timeout_s=5)
    try:
        with pytest.raises(EngineUnavailable, match="systemctl start docker"):
            await engine.facts()
        with pytest.raises(EngineUnavailable):
            await engine.remove("x")
    finally:
        await engine.aclose()


async def test_an_engine_that_accepts_and_is_silent_is_unavailable(tmp_path: Path) -> None:
    met = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        met.set()
        await reader.read()
        writer.close()

    server = await asyncio.start_unix_server(silent, path=str(tmp_path / "s.sock"))
    engine = Engine(f"unix://{tmp_path}/s.sock", timeout_s=0.3)
    try:
        with pytest.raises(EngineUnavailable):
            await engine.facts()
        assert met.is_set()
    finally:
        await engine.aclose()
        server.close()
        await server.wait_closed()


@needs("docker")
async def test_facts_name_what_doctor_decides_by(engine: Engine) -> None:
    facts = await engine.facts()
    assert "runc" in facts.runtimes
    assert facts.version
    assert facts.root_dir.is_absolute()


@needs("docker")
async def test_a_missing_image_is_a_setting(engine: Engine, name: str) -> None:
    with pytest.raises(Misconfigured, match="no such"):
        await engine.create(name, {**SLEEPER, "Image": "tiltyard/missing:0"})
    assert await engine.inspect(name) is None


@needs("docker")
async def test_C26_a_missing_runtime_is_refused_never_replaced(engine: Engine, name: str) -> None:
    with pytest.raises(Misconfigured, match="runtime"):
        await engine.create(name, {**SLEEPER, "HostConfig": {"Runtime": "no-such-runtime"}})
    assert await engine.inspect(name) is None


@needs("docker")
async def test_a_start_that_fails_says_why(engine: Engine, name: str) -> None:
    await engine.create(name, {**SLEEPER, "Cmd": ["/no/such/program"]})
    with pytest.raises(StartFailed, match="no such file"):
        await engine.start(name)


@needs("docker")
async def test_removing_is_idempotent_and_shared(engine: Engine, name: str) -> None:
    await engine.create(name, SLEEPER)
    await engine.start(name)
    assert await engine.inspect(name) is not None
    await asyncio.gather(*(engine.remove(name) for _ in range(6)))
    assert await engine.inspect(name) is None
    await engine.remove(name)


@needs("docker")
@pytest.mark.parametrize("status", [409, 500])
async def test_F24_a_removal_that_does_not_end_at_once_is_waited_for(
    engine: Engine, name: str, tmp_path: Path, status: int
) -> None:
    await engine.create(name, SLEEPER)
    async with engine_proxy(tmp_path / "p.sock") as faults:
        faults.answer["DELETE /containers/"] = (status, 3)
        slow = Engine(f"unix://{tmp_path}/p.sock", timeout_s=10)
        await slow.remove(name)
        await slow.aclose()
        assert sum(line.startswith("DELETE") for line in faults.seen) == 4
    assert await engine.inspect(name) is None


@needs("docker")
async def test_F24_a_removal_that_never_ends_is_said(engine: Engine, name: str, tmp_path: Path) -> None:
    await engine.create(name, SLEEPER)
    async with engine_proxy(tmp_path / "p.sock") as faults:
        faults.answer["DELETE /containers/"] = (500, 1000)
        slow = Engine(f"unix://{tmp_path}/p.sock", timeout_s=0.3)
        with pytest.raises(EngineUnavailable, match="did not remove"):
            await slow.remove(name)
        await slow.aclose()


@needs("docker")
async def test_a_kill_from_outside_is_remembered(engine: Engine, name: str) -> None:
    container = await engine.create(name, SLEEPER)
    await engine.start(container)
    state = await engine.inspect(container)
    assert state is not None
    assert not await engine.killed_from_outside(container, state.started_at)
    done = await asyncio.create_subprocess_exec("docker", "kill", container, stdout=asyncio.subprocess.DEVNULL)
    assert await done.wait() == 0
    assert await engine.killed_from_outside(container, state.started_at)


@needs("docker")
async def test_a_cancelled_request_is_seen_to_its_end(engine: Engine, name: str, tmp_path: Path) -> None:
    """Otherwise the engine could make the container after its owner looked for what to remove."""
    async with engine_proxy(tmp_path / "p.sock") as faults:
        held = faults.hold["POST /containers/create"] = asyncio.Event()
        slow = Engine(f"unix://{tmp_path}/p.sock", timeout_s=10)
        task = asyncio.create_task(slow.create(name, SLEEPER))
        await faults.holding.wait()
        task.cancel()
        await asyncio.sleep(0.05)
        assert not task.done()
        held.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await slow.inspect(name) is not None
        await slow.aclose()


@needs("docker")
async def test_waiting_ends_at_its_deadline_and_can_be_left(engine: Engine, name: str) -> None:
    container = await engine.create(name, SLEEPER)
    await engine.start(container)
    with pytest.raises(TimeoutError):
        await engine.wait_exit(container, deadline=time.monotonic() + 0.1)
    task = asyncio.create_task(engine.wait_exit(container, deadline=time.monotonic() + 60))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
