"""HTTP to one agent over its unix socket: bounded replies, one kept session, silence told apart from refusals."""

import asyncio
import io
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
        self._closed = False

    def _open(self) -> aiohttp.ClientSession:
        if self._closed:
            raise Unreachable
        if self._session is None:
            connector = aiohttp.UnixConnector(path=str(self._socket), limit=0, keepalive_timeout=KEEPALIVE_S)
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
        session = self._open()
        try:
            async with asyncio.timeout(timeout_s):
                for _ in range(TRIES):
                    try:
                        return await self._once(session, method, path, headers, body, limit_bytes)
                    except (aiohttp.ClientConnectorError, FileNotFoundError) as error:
                        raise Unreachable from error
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
        session, self._session = self._session, None
        if session is not None:
            await session.close()


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
