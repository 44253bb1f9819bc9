"""A proxy in front of a Docker engine's socket that injects faults: it loses replies after the engine acted, or answers in its place."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

ENGINE = Path("/var/run/docker.sock")


@dataclass
class Faults:
    """Ordered by a test. Keys are "METHOD part-of-the-path"; each number counts down with every request that matches."""

    lose_reply: dict[str, int] = field(default_factory=dict)
    """The engine does it; the caller sees a closed connection."""
    answer: dict[str, tuple[int, int]] = field(default_factory=dict)
    """(status, how often): the engine is not asked."""
    replies: dict[str, bytes] = field(default_factory=dict)
    """A body that is answered with 200, each time."""
    hold: dict[str, asyncio.Event] = field(default_factory=dict)
    """The engine does it, the reply waits for the event."""
    holding: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once a reply is being held."""
    seen: list[str] = field(default_factory=list)

    def matching(self, rules: dict[str, object], line: str) -> str | None:
        method, path = line.split()[:2]
        for rule in rules:
            wanted_method, part = rule.split()
            if method == wanted_method and part in path:
                return rule
        return None


async def _message(reader: asyncio.StreamReader) -> bytes:
    """One HTTP message, head and body."""
    head = await reader.readuntil(b"\r\n\r\n")
    headers = {
        name.strip().lower(): value.strip()
        for name, _, value in (line.partition(b":") for line in head.split(b"\r\n")[1:])
    }
    body = b""
    if headers.get(b"transfer-encoding") == b"chunked":
        while True:
            size = await reader.readline()
            chunk = await reader.readexactly(int(size, 16) + 2)
            body += size + chunk
            if int(size, 16) == 0:
                break
    elif b"content-length" in headers:
        body = await reader.readexactly(int(headers[b"content-length"]))
    return head + body


async def _forward(request: bytes) -> bytes:
    reader, writer = await asyncio.open_unix_connection(str(ENGINE))
    try:
        writer.write(request)
        await writer.drain()
        return await _message(reader)
    finally:
        writer.close()
        await writer.wait_closed()


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, faults: Faults) -> None:
    try:
        while True:
            request = await _message(reader)
            line = request.split(b"\r\n", 1)[0].decode()
            faults.seen.append(line)
            reply = await _reply(request, line, faults)
            if reply is None:
                return
            writer.write(reply)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        return
    finally:
        writer.close()


def _http(status: int, body: bytes) -> bytes:
    head = f"HTTP/1.1 {status} Ordered\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def _reply(request: bytes, line: str, faults: Faults) -> bytes | None:
    rule = faults.matching({**faults.replies}, line)
    if rule:
        return _http(200, faults.replies[rule])
    rule = faults.matching({**faults.answer}, line)
    if rule:
        status, left = faults.answer[rule]
        faults.answer[rule] = (status, left - 1)
        if left == 1:
            del faults.answer[rule]
        return _http(status, b'{"message":"ordered by a test"}')
    reply = await _forward(request)
    rule = faults.matching({**faults.lose_reply}, line)
    if rule:
        faults.lose_reply[rule] -= 1
        if not faults.lose_reply[rule]:
            del faults.lose_reply[rule]
        return None
    rule = faults.matching({**faults.hold}, line)
    if rule:
        faults.holding.set()
        await faults.hold[rule].wait()
    return reply


@asynccontextmanager
async def engine_proxy(socket: Path) -> AsyncIterator[Faults]:
    """Serve the engine at `socket`; faults are ordered through the value that comes back."""
    faults = Faults()
    server = await asyncio.start_unix_server(lambda r, w: _serve(r, w, faults), path=str(socket), limit=1 << 20)
    try:
        yield faults
    finally:
        server.close()
        await server.wait_closed()
