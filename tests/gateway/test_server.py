"""The real server on a loopback socket: slow, greedy, vanishing and lying clients beside honest ones."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import uvicorn

from orchestrator.models import CallRequest, ToolReply
from tests.gateway.conftest import Gateway, bearer, make_gateway, text_of
from tool_gateway.app import create_app
from tool_gateway.bodies import MAX_BODY_BYTES
from tool_gateway.server import MAX_HEAD_BYTES, MAX_HEADERS, BoundedProtocol, uvicorn_config

pytestmark = pytest.mark.anyio
CALL = json.dumps({"name": "shell", "call_id": "c", "arguments": "{}", "trace_id": "t"}).encode()


class Hasty(BoundedProtocol):
    """The same protocol with deadlines that a test can wait for."""

    head_deadline_s = 0.3
    receive_deadline_s = 0.6


@dataclass
class Serving:
    gateway: Gateway
    port: int

    @asynccontextmanager
    async def connection(self) -> AsyncIterator["Wire"]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            yield Wire(reader, writer)
        finally:
            writer.close()

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", headers=bearer("one"))


@dataclass
class Wire:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def reply(self) -> tuple[int, bytes]:
        """Status and body of the next reply."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        return int(head.split()[1]), await self.reader.readexactly(length)

    async def closed(self) -> bool:
        """Whether the server closes without another byte."""
        try:
            return await asyncio.wait_for(self.reader.read(1), 5) == b""
        except ConnectionError:
            return True


def head(path: str = "/tools", length: int | None = len(CALL), extra: bytes = b"", token: str = "one") -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Authorization: Bearer {text_of(token)}"]
    lines += [] if length is None else [f"Content-Length: {length}"]
    return "\r\n".join(lines).encode() + b"\r\n" + extra + b"\r\n"


@asynccontextmanager
async def serve(gateway: Gateway, protocol: type[BoundedProtocol]) -> AsyncIterator[Serving]:
    config = uvicorn_config(create_app(gateway.deps), "127.0.0.1", 0, graceful_shutdown_s=1)
    config.http = protocol
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:  # connections wait in it until the server is up
        running = asyncio.create_task(server.serve(sockets=[listening]))
        try:
            yield Serving(gateway, listening.getsockname()[1])
        finally:
            server.should_exit = True
            await running


@pytest.fixture
async def serving(tmp_path: Path) -> AsyncIterator[Serving]:
    async with make_gateway(tmp_path) as gateway, serve(gateway, BoundedProtocol) as made:
        yield made


@pytest.fixture
async def hasty(tmp_path: Path) -> AsyncIterator[Serving]:
    async with make_gateway(tmp_path) as gateway, serve(gateway, Hasty) as made:
        yield made


async def test_an_honest_client_and_its_kept_connection(serving: Serving) -> None:
    async with serving.connection() as wire:
        for _ in range(3):
            await wire.send(head() + CALL)
            status, body = await wire.reply()
            assert (status, json.loads(body)["output"]) == (200, "shell {}")


async def test_security_headers_and_no_server_header(serving: Serving) -> None:
    async with serving.client() as client:
        for reply in (await client.get("/healthz"), await client.get("/none"), await client.post("/tools")):
            assert reply.headers["x-content-type-options"] == "nosniff"
            assert reply.headers["cache-control"] == "no-store"
            assert "frame-ancestors 'none'" in reply.headers["content-security-policy"]
            assert "server" not in reply.headers


async def test_a_client_that_vanishes_mid_call_ends_nothing(serving: Serving) -> None:
    go_on, done = asyncio.Event(), asyncio.Event()

    async def slow(request: CallRequest) -> ToolReply:
        await go_on.wait()
        done.set()
        return ToolReply(text="made it")

    serving.gateway.host.on_call = slow
    async with serving.connection() as wire:
        await wire.send(head() + CALL)
        await serving.gateway.host.arrivals.acquire()
    go_on.set()
    await asyncio.wait_for(done.wait(), 5)
    async with serving.connection() as retry:
        await retry.send(head() + CALL)
        status, body = await retry.reply()
    assert (status, json.loads(body)["output"]) == (200, "made it")
    assert serving.gateway.host.runs == 1


async def test_a_client_that_vanishes_mid_body_reaches_no_host(serving: Serving) -> None:
    async with serving.connection() as wire:
        await wire.send(head(length=len(CALL)) + CALL[:-5])
    async with serving.client() as client:
        assert (await client.get("/healthz")).status_code == 200
    assert serving.gateway.host.calls == []


async def test_too_large_a_body_is_told_to_an_ordinary_client(serving: Serving) -> None:
    async with serving.client() as client:
        reply = await client.post("/tools", content=b"x" * (MAX_BODY_BYTES + 1))
        assert (reply.status_code, reply.json()["error"]) == (413, "too_large")
        assert (await client.get("/healthz")).status_code == 200


async def test_chunked_bodies_are_counted(serving: Serving) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b"x" * 100_000

    async with serving.client() as client:
        assert (await client.post("/tools", content=chunks())).status_code == 413


async def test_a_smuggled_second_length_is_refused(serving: Serving) -> None:
    async with serving.connection() as wire:
        await wire.send(head(extra=b"Transfer-Encoding: chunked\r\n") + b"0\r\n\r\n")
        status, _ = await wire.reply()
        assert status == 400
        assert await wire.closed()


async def test_no_http_is_a_400_in_our_shape(serving: Serving) -> None:
    async with serving.connection() as wire:
        await wire.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n")
        status, body = await wire.reply()
        assert (status, json.loads(body)["error"]) == (400, "bad_request")
        assert await wire.closed()


@pytest.mark.parametrize(
    "extra",
    [
        b"X-Big: " + b"x" * MAX_HEAD_BYTES + b"\r\n",
        b"".join(b"X-%d: y\r\n" % index for index in range(MAX_HEADERS + 1)),
        b"X-Name-" + b"n" * MAX_HEAD_BYTES + b": y\r\n",
    ],
    ids=["one big", "many", "a long name"],
)
async def test_greedy_headers_are_refused(serving: Serving, extra: bytes) -> None:
    async with serving.connection() as wire:
        await wire.send(head(extra=extra) + CALL)
        status, body = await wire.reply()
        assert (status, json.loads(body)["error"]) == (431, "headers_too_large")
        assert await wire.closed()
    assert serving.gateway.host.calls == []


async def test_ordinary_headers_are_taken(serving: Serving) -> None:
    extra = b"".join(b"X-%d: %s\r\n" % (index, b"y" * 300) for index in range(MAX_HEADERS - 10))
    async with serving.connection() as wire:
        await wire.send(head(extra=extra) + CALL)
        assert (await wire.reply())[0] == 200


async def test_an_endless_header_is_cut_off_while_it_comes(serving: Serving) -> None:
    async with serving.connection() as wire:
        await wire.send(b"GET /healthz HTTP/1.1\r\nX-Endless: ")
        with pytest.raises(ConnectionError):
            await _pour(wire, b"x" * 65_536, times=400)  # 26 MB, far beyond any socket buffer


async def test_a_long_url_is_refused(serving: Serving) -> None:
    async with serving.connection() as wire:
        await wire.send(head(path="/tools/" + "x" * MAX_HEAD_BYTES) + CALL)
        assert (await wire.reply())[0] == 431


async def test_trickled_headers_meet_a_deadline(hasty: Serving) -> None:
    async with hasty.connection() as wire:
        await wire.send(head()[:-2])
        trickle = asyncio.create_task(_trickle(wire, b"X-More: y\r\n"))
        status, body = await asyncio.wait_for(wire.reply(), 5)
        assert (status, json.loads(body)["error"]) == (408, "too_slow")
        assert await wire.closed()
        trickle.cancel()


async def test_a_trickled_body_meets_a_deadline(hasty: Serving) -> None:
    async with hasty.connection() as wire:
        await wire.send(head(length=10_000))
        trickle = asyncio.create_task(_trickle(wire, b" "))
        assert await wire.closed()
        trickle.cancel()
    assert hasty.gateway.host.calls == []


async def test_a_trickled_body_behind_a_refusal_meets_a_deadline(hasty: Serving) -> None:
    async with hasty.connection() as wire:
        await wire.send(head(length=10_000, token="nobody"))
        assert (await wire.reply())[0] == 401
        trickle = asyncio.create_task(_trickle(wire, b" "))
        assert await wire.closed()
        trickle.cancel()


@pytest.mark.parametrize("after_a_request", [False, True])
async def test_a_connection_kept_busy_with_nothing_is_closed_in_silence(hasty: Serving, after_a_request: bool) -> None:
    async with hasty.connection() as wire:
        if after_a_request:
            await wire.send(head() + CALL)
            assert (await wire.reply())[0] == 200
        trickle = asyncio.create_task(_trickle(wire, b"\r\n"))
        assert await wire.closed()
        trickle.cancel()


async def _pour(wire: Wire, piece: bytes, *, times: int) -> None:
    for _ in range(times):
        await wire.send(piece)


async def _trickle(wire: Wire, piece: bytes) -> None:
    try:
        while True:
            await wire.send(piece)
            await asyncio.sleep(0.05)
    except ConnectionError:
        pass


async def test_a_call_may_take_longer_than_any_receive_deadline(hasty: Serving) -> None:
    """Only receiving is bounded here; and a second request sent ahead on the connection does not end the first."""

    async def slow(request: CallRequest) -> ToolReply:
        await asyncio.sleep(1.5)
        return ToolReply(text="slow")

    hasty.gateway.host.on_call = slow
    async with hasty.connection() as wire:
        await wire.send(head() + CALL)
        await wire.send(head() + CALL[:10])
        status, body = await wire.reply()
        assert (status, json.loads(body)["output"]) == (200, "slow")


async def test_forwarded_headers_do_not_change_the_peer(serving: Serving) -> None:
    config = uvicorn_config(create_app(serving.gateway.deps), "127.0.0.1", 0)
    assert config.proxy_headers is False
    assert config.log_config is None
