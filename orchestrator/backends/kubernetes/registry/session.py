"""The one HTTP session to all registries: it logs in where it is asked to, and tries again what may yet succeed."""

import asyncio
import ipaddress
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import aiohttp
from yarl import URL

from orchestrator.backends.kubernetes.registry.auth import authorize
from orchestrator.backends.kubernetes.registry.references import HUB, HUB_API, Reference
from orchestrator.backends.kubernetes.registry.requests import (
    CHUNK_BYTES,
    CONNECT_S,
    Again,
    Request,
    forbidden,
    refuse_bad,
)
from orchestrator.errors import Misconfigured, RepositoryError
from orchestrator.repos.threads import finish

T = TypeVar("T")

TRIES = 4
_FIRST_PAUSE_S = 0.2


class RegistrySession:
    """Opened by its first request; keeps the tokens that registries gave."""

    def __init__(self, *, insecure: frozenset[str], docker_config: Path | None) -> None:
        self._insecure = insecure
        self._docker_config = docker_config
        self._session: aiohttp.ClientSession | None = None
        self._authorizations: dict[tuple[str, tuple[str, ...]], str] = {}

    async def aclose(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def address(self, host: str) -> str:
        """Where the API of a registry is."""
        plain = host in self._insecure or _loopback(host)
        return f"{'http' if plain else 'https'}://{HUB_API if host == HUB else host}"

    async def tried(self, place: Reference, attempt: Callable[[], Awaitable[T]]) -> T:
        """`attempt`, again while that may help. Raises Misconfigured, RepositoryError, about the registry of `place`, with the fix."""
        for number in range(TRIES):
            try:
                return await attempt()
            except Again as error:
                again = error
            except aiohttp.ClientSSLError as error:
                raise Misconfigured(
                    f"the registry {place.host} has no certificate that we trust: name its authority in SSL_CERT_FILE, "
                    "or list the host as insecure if it speaks plain HTTP"
                ) from error
            except (aiohttp.ClientError, TimeoutError) as error:
                again = Again(
                    f"the registry {place.host} cannot be reached ({_kind(error)}): check its name, that it runs, and the way to it"
                )
            if number + 1 < TRIES:
                await asyncio.sleep(
                    max(again.after_s, _FIRST_PAUSE_S * 2**number * (0.5 + secrets.randbelow(1000) / 1000))
                )
        raise RepositoryError(again.message)

    async def call(self, request: Request, read: Callable[[aiohttp.ClientResponse], Awaitable[T]]) -> T:
        """`read` of a good answer. Sent twice where the first one only asks who we are. Made within `tried`, which takes what else it raises: Again,
        and aiohttp's errors."""
        key = (request.place.host, request.scopes)
        for last in (False, True):
            async with self._sent(request, self._authorizations.get(key)) as response:
                if response.status != 401:
                    await refuse_bad(response, request)
                    return await read(response)
                # Who we are is nothing to a store that we were sent on to, and its challenge may want a login for somebody else.
                ours = response.url.origin() == URL(self.address(request.place.host))
                challenges = response.headers.getall("WWW-Authenticate", [])
            if last or not ours:
                break
            self._authorizations[key] = await authorize(
                self._opened(),
                request,
                challenges,
                docker_config=self._docker_config,
                secure=self.address(request.place.host).startswith("https:"),
            )
        raise forbidden(request)

    @asynccontextmanager
    async def _sent(self, request: Request, authorization: str | None) -> AsyncIterator[aiohttp.ClientResponse]:
        headers = dict(request.headers)
        if authorization and request.url.origin() == URL(self.address(request.place.host)):
            headers["Authorization"] = authorization
        body = await finish(None, request.body) if request.body else None
        try:
            async with self._opened().request(
                request.method,
                request.url,
                headers=headers,
                data=body,
                allow_redirects=request.method in ("GET", "HEAD"),
                max_redirects=5,
                timeout=aiohttp.ClientTimeout(total=request.timeout_s, sock_connect=CONNECT_S),
            ) as response:
                yield response
        finally:
            if body is not None:
                body.close()

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                trust_env=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                headers={"Accept-Encoding": "identity", "User-Agent": "tiltyard"},
                read_bufsize=CHUNK_BYTES,
            )
        return self._session


def _loopback(host: str) -> bool:
    name = host.rpartition("]")[0].lstrip("[") if host.startswith("[") else host.partition(":")[0]
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _kind(error: BaseException) -> str:
    """Without an address: it may hold what a redirect was signed with."""
    return type(error).__name__
