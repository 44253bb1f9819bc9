"""Fixtures of the end-to-end tests: one small repository, a server per test module."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiohttp
import pytest

from tests.e2e.harness import Server, Trainer, make_repository, serving, task_rows


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    repo = tmp_path_factory.mktemp("upstream") / "calc"
    return task_rows(repo, make_repository(repo), max_calls=100_000)


@pytest.fixture(scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, object]]) -> AsyncIterator[Server]:
    async with serving(tmp_path_factory.mktemp("serve"), rows) as running:
        yield running
        await running.stop()
        running.sweep()  # ungraded rollouts' boxes are left for the next start
        assert await running.settled() == []


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=120)) as made:
        yield made


@pytest.fixture
def trainer(session: aiohttp.ClientSession, request: pytest.FixtureRequest) -> Callable[..., Trainer]:
    count = 0

    def make(server: Server, task_id: str = "calc-tests") -> Trainer:
        nonlocal count
        count += 1
        name = f"trace_{Path(request.node.name).name}-{count}".replace("[", "-").replace("]", "")
        return Trainer(server=server, trace_id=name[:100], task_id=task_id, session=session)

    return make
