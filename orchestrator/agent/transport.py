"""HTTP to one agent over its unix socket: bounded replies, one kept session, silence told apart from refusals."""

import asyncio
import io
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from orchestrator.errors import AgentProtocolError

PROTOCOLS = frozenset({"1", "2"})
"""Versions that this host speaks: a box may outlive a host's upgrade. 2 is 1 and the operation `session`."""
CHUNK_BYTES = 256 * 1024
KEEPALIVE_S = 20
"""Less than the agent's 30 s, so that it is we who let go of a connection that is not used."""
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


class Transport:
    """One aiohttp session, made at the first request; `aclose` ends it. A closed transport answers Unreachable."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._session: aiohttp.ClientSession | None = None
        self._pinned: int | None = None
        self._closed = False

    def _open(self) -> aiohttp.ClientSession:
        if self._closed:
            raise Unreachable
        if self._session is None:
            self._pinned = _pin(self._socket)
            connector = aiohttp.UnixConnector(
                path=f"/proc/self/fd/{self._pinned}", limit=0, keepalive_timeout=KEEPALIVE_S
            )
            self._session = aiohttp.ClientSession(
                connector=connector,
                timeout=aiohttp.ClientTimeout(),  # each request brings its own
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
                read_bufsize=CHUNK_BYTES,
            )
        return self._session

    async def send(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str],
        body: bytes | None,
        timeout_s: float,
        limit_bytes: int,
    ) -> Reply:
        """Raises Unreachable, Stalled after `timeout_s`, AgentProtocolError (too long, not HTTP, another protocol)."""
        try:
            async with asyncio.timeout(timeout_s):
                for _ in range(TRIES):
                    session = self._open()
                    try:
                        return await self._once(session, method, path, headers, body, limit_bytes)
                    except aiohttp.ClientConnectorError as error:
                        if not isinstance(error.os_error, ConnectionRefusedError):
                            raise Unreachable from error
                        await self._forget(session)
                    except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, aiohttp.ClientPayloadError):
                        continue
        except TimeoutError as error:
            raise Stalled from error
        except (aiohttp.ClientError, ValueError, RuntimeError) as error:
            if self._closed:
                raise Unreachable from error
            raise AgentProtocolError("the box's agent does not speak HTTP as it must") from error
        raise Unreachable

    async def _once(
        self,
        session: aiohttp.ClientSession,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes | None,
        limit_bytes: int,
    ) -> Reply:
        large = body is not None and len(body) > CHUNK_BYTES
        data = io.BytesIO(body) if body is not None and large else body  # a long write in parts lets the loop breathe
        async with session.request(
            method, f"http://agent{path}", headers=headers, data=data, allow_redirects=False
        ) as response:
            protocol = response.headers.get("Tiltyard-Protocol", "")
            if protocol not in PROTOCOLS:
                raise AgentProtocolError("the box's agent speaks another version of the protocol")
            boot_id = response.headers.get("Tiltyard-Boot", "")
            return Reply(
                status=response.status, boot_id=boot_id, body=await _read(response, limit_bytes), protocol=protocol
            )

    async def aclose(self) -> None:
        self._closed = True
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
