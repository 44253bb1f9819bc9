"""A gateway over a fake host and the real store, and a client with every scope."""

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest

from orchestrator.models import JobId, RolloutKey, TraceId
from orchestrator.store.sql import SqlStore
from tests.gateway import fakes
from tool_gateway.app import GatewayDeps, create_app
from tool_gateway.auth import Auth, Principal, Scope, Token

SECRET = b"a secret of at least thirty-two bytes"
ONE = "demo"
MANY = "many"


def token(name: str, scopes: Sequence[Scope], jobs: Sequence[str] | None, *, expires_at: float | None = None) -> Token:
    """A known token whose text is "token-of-NAME-0123456789"."""
    held = Principal(
        name=name,
        scopes=frozenset(scopes),
        jobs=None if jobs is None else frozenset(map(JobId, jobs)),
    )
    return Token(digest=hashlib.sha256(text_of(name).encode()).digest(), principal=held, expires_at=expires_at)


def text_of(name: str) -> str:
    return f"token-of-{name}-0123456789"


def bearer(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text_of(name)}"}


TOKENS = (
    token("one", list(Scope), [ONE]),
    token("many", list(Scope), [MANY]),
    token("all", list(Scope), None),
    token("old", list(Scope), None, expires_at=1.0),
    token("nowhere", list(Scope), ["not-served"]),
    *(token(scope.value, [scope], [ONE]) for scope in Scope),
)


@dataclass
class Gateway:
    deps: GatewayDeps
    host: fakes.FakeHost
    store: SqlStore

    def client(self, name: str | None = "one", peer: str = "127.0.0.1") -> httpx.AsyncClient:
        """As the holder of a token, through the application itself."""
        transport = httpx.ASGITransport(create_app(self.deps), client=(peer, 1234))
        headers = {} if name is None else bearer(name)
        return httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers)

    def but(self, **changes: object) -> "Gateway":
        return Gateway(replace(self.deps, **changes), self.host, self.store)  # type: ignore[arg-type]

    async def tainted(self, trace_id: str, job: str = ONE) -> str:
        return await self.store.tainted(RolloutKey(job=JobId(job), trace_id=TraceId(trace_id)))


async def ready() -> None:
    pass


@asynccontextmanager
async def make_gateway(folder: Path) -> AsyncIterator[Gateway]:
    async with SqlStore.open(f"sqlite:///{folder}/store.db") as store:
        host = fakes.FakeHost(store)
        deps = GatewayDeps(
            cluster=fakes.FakeCluster([host]),
            store=store,
            jobs=fakes.jobs(fakes.job(ONE, "t1"), fakes.job(MANY, "t1", "t2")),
            auth=Auth(TOKENS),
            handle_secret=SECRET,
            schemas=fakes.schemas,
            ready=ready,
        )
        yield Gateway(deps, host, store)


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with make_gateway(tmp_path) as made:
        yield made


@pytest.fixture
async def client(gateway: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    """Job "demo", which has one task."""
    async with gateway.client() as made:
        yield made


@pytest.fixture
async def many(gateway: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    """Job "many", which has two tasks."""
    async with gateway.client("many") as made:
        yield made


Opener = Callable[[Gateway], Awaitable[httpx.AsyncClient]]


@pytest.fixture
async def open_client() -> AsyncIterator[Opener]:
    """Clients of changed gateways, closed at the end."""
    async with AsyncExitStack() as stack:

        async def open_one(gateway: Gateway) -> httpx.AsyncClient:
            return await stack.enter_async_context(gateway.client())

        yield open_one
