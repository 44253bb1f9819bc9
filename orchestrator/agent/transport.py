"""HTTP to one agent over its unix socket or its port: bounded replies, one kept session, silence told apart from refusals."""

import asyncio
import io
import os
import stat
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import aiohttp

from orchestrator.errors import AgentProtocolError

PROTOCOLS = frozenset({"1", "2"})
"""Versions that this host speaks: a box may outlive a host's upgrade. 2 is 1 and the operation `session`."""
CHUNK_BYTES = 256 * 1024
KEEPALIVE_S = 20
"""Less than the agent's 30 s, so that it is we who let go of a connection that is not used."""
CONNECT_S = 5.0
"""A box's machine that does not answer within this is taken for gone; on a machine's own socket it is never reached."""
TRIES = 3
"""A kept connection may just have been closed by the other side; every request of ours may be sent again."""


class Unreachable(Exception):
    """Nobody answers at the socket."""


class Stalled(Exception):
    """A reply did not come within its time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    status: int
    boot_id: str
    body: bytes
    protocol: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpEndpoint:
    """An agent that listens on a network. `token` signs for an epoch."""

    host: str
    port: int
    token: Callable[[int], str]
    connect: Callable[[], "aiohttp.BaseConnector"] | None = None
    """Another way to the agent than its address; None: straight."""


Streamed = bytes | BinaryIO | AsyncIterator[bytes]
"""A large body, read once."""


class Transport:
    """One aiohttp session, made at the first request; `aclose` ends it, and with it what waits. A closed transport answers Unreachable."""

    def __init__(self, endpoint: Path | TcpEndpoint) -> None:
        """A unix socket's path, or a place on a network."""
        self._endpoint = endpoint
        self._base = f"http://{endpoint.host}:{endpoint.port}" if isinstance(endpoint, TcpEndpoint) else "http://agent"
        self._session: aiohttp.ClientSession | None = None
        self._pinned: int | None = None
        self._running: set[asyncio.Timeout] = set()
        self.closed = False

    def _open(self) -> aiohttp.ClientSession:
        if self.closed:
            raise Unreachable
        if self._session is None:
            connector = self._connector()
            self._session = aiohttp.ClientSession(
                connector=connector,
                timeout=aiohttp.ClientTimeout(sock_connect=CONNECT_S),  # each request brings its own beside it
                trust_env=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
                read_bufsize=CHUNK_BYTES,
            )
        return self._session

    def _connector(self) -> aiohttp.BaseConnector:
        if isinstance(self._endpoint, TcpEndpoint):
            if self._endpoint.connect is not None:
                return self._endpoint.connect()
            return aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_S)
        self._pinned = _pin(self._endpoint)
        return aiohttp.UnixConnector(path=f"/proc/self/fd/{self._pinned}", limit=0, keepalive_timeout=KEEPALIVE_S)

    def _signed(self, headers: Mapping[str, str], epoch: int | None) -> Mapping[str, str]:
        if not isinstance(self._endpoint, TcpEndpoint):
            return headers
        named = int(headers.get("Tiltyard-Epoch", 0)) if epoch is None else epoch
        return {**headers, "Tiltyard-Token": self._endpoint.token(named)}

    @contextmanager
    def _bounded(self, timeout_s: float) -> Iterator[asyncio.Timeout]:
        """A time limit that `aclose` brings forward: a connection that is being made is not the session's to close."""
        limit = asyncio.timeout(timeout_s)
        self._running.add(limit)
        try:
            yield limit
        except TimeoutError as error:
            raise (Unreachable if self.closed else Stalled) from error
        finally:
            self._running.discard(limit)

    async def stream(self, path: str, body: Streamed, *, timeout_s: float, limit_bytes: int) -> Reply:
        """A large body, sent once. Raises as `send`."""
        with self._bounded(timeout_s) as limit:
            try:
                async with limit:
                    return await self._once(self._open(), "PUT", path, self._signed({}, None), body, limit_bytes)
            except aiohttp.ClientError as error:  # one that is a TimeoutError, too, is of the connection
                raise Unreachable from error

    async def send(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str],
        body: bytes | None,
        timeout_s: float,
        limit_bytes: int,
        epoch: int | None = None,
    ) -> Reply:
        """`epoch`: of the token, where the headers name none. Raises Unreachable, Stalled after `timeout_s`, AgentProtocolError (too long, not
        HTTP, another protocol)."""
        with self._bounded(timeout_s) as limit:
            try:
                async with limit:
                    return await self._tried(method, path, headers, body, limit_bytes, epoch)
            except (aiohttp.ClientError, ValueError, RuntimeError) as error:
                if self.closed:
                    raise Unreachable from error
                raise AgentProtocolError("the box's agent does not speak HTTP as it must") from error

    async def _tried(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes | None,
        limit_bytes: int,
        epoch: int | None,
    ) -> Reply:
        for _ in range(TRIES):
            session = self._open()
            try:
                return await self._once(session, method, path, self._signed(headers, epoch), body, limit_bytes)
            except aiohttp.ConnectionTimeoutError as error:
                raise Unreachable from error
            except aiohttp.ClientConnectorError as error:
                if isinstance(self._endpoint, TcpEndpoint) or not isinstance(error.os_error, ConnectionRefusedError):
                    raise Unreachable from error
                await self._forget(session)
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, aiohttp.ClientPayloadError):
                continue
        raise Unreachable

    async def _once(
        self,
        session: aiohttp.ClientSession,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: Streamed | None,
        limit_bytes: int,
    ) -> Reply:
        large = isinstance(body, bytes) and len(body) > CHUNK_BYTES
        data = (
            io.BytesIO(body) if isinstance(body, bytes) and large else body
        )  # a long write in parts lets the loop breathe
        async with session.request(
            method, f"{self._base}{path}", headers=headers, data=data, allow_redirects=False
        ) as response:
            protocol = response.headers.get("Tiltyard-Protocol", "")
            if protocol not in PROTOCOLS:
                raise AgentProtocolError("the box's agent speaks another version of the protocol")
            boot_id = response.headers.get("Tiltyard-Boot", "")
            return Reply(
                status=response.status, boot_id=boot_id, body=await _read(response, limit_bytes), protocol=protocol
            )

    async def aclose(self) -> None:
        self.closed = True
        for limit in self._running:
            if not limit.expired():
                limit.reschedule(0)  # long ago
        if self._session is not None:
            await self._forget(self._session)

    async def _forget(self, session: aiohttp.ClientSession) -> None:
        """Look the socket up anew at the next request: nobody listens at the one that we have."""
        if self._session is not session:
            return
        pinned, self._session, self._pinned = self._pinned, None, None
        try:
            await session.close()
        finally:
            if pinned is not None:
                os.close(pinned)


def _pin(path: Path) -> int:
    """A descriptor of the socket itself, by which it is connected to from then on: where agent and commands share a uid, a command can put
    another in its place, or a link to somebody else's. Raises Unreachable."""
    try:
        found = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise Unreachable from error
    if not stat.S_ISSOCK(os.fstat(found).st_mode):
        os.close(found)
        raise Unreachable
    return found


async def _read(response: aiohttp.ClientResponse, limit_bytes: int) -> bytes:
    if (response.content_length or 0) > limit_bytes:
        raise AgentProtocolError("the box's agent sent more than it may")
    parts: list[bytes] = []
    left = limit_bytes
    async for part in response.content.iter_chunked(CHUNK_BYTES):
        left -= len(part)
        if left < 0:
            raise AgentProtocolError("the box's agent sent more than it may")
        parts.append(part)
    return b"".join(parts)
