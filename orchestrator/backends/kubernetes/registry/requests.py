"""One request to a registry, and its answer: everything that comes is bounded, and what a registry refuses is told with its fix."""

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import BinaryIO

import aiohttp
from yarl import URL

from orchestrator.backends.kubernetes.registry.manifests import Descriptor, corrupt
from orchestrator.backends.kubernetes.registry.references import Reference
from orchestrator.backends.kubernetes.registry.scratch import disk_errors
from orchestrator.errors import Misconfigured, RepositoryError
from orchestrator.repos.threads import finish

MAX_ANSWER_BYTES = 64 * 1024
"""Of tokens and errors."""
CHUNK_BYTES = 1024 * 1024
CONNECT_S = 10.0
SMALL_S = 60.0
BLOB_S = 1800.0
"""One transfer of a blob; a registry may take minutes to put a large one away."""
_LONGEST_PAUSE_S = 20.0

_CODE = re.compile(r'"code"\s*:\s*"([A-Z_]{1,40})"')


class Again(Exception):
    """Worth another try. Says what is told if that was the last one, and how long the registry wants to be left alone."""

    def __init__(self, message: str, after_s: float = 0.0) -> None:
        super().__init__(message)
        self.message = message
        self.after_s = after_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One to the registry of `place`; `good` are the statuses that answer it."""

    method: str
    url: URL
    place: Reference
    """Whose registry it is, and what messages are about."""
    scopes: tuple[str, ...]
    good: frozenset[int]
    headers: Mapping[str, str]
    body: Callable[[], BinaryIO] | None = None
    """Opened anew for each try."""
    timeout_s: float = SMALL_S

    @property
    def verb(self) -> str:
        return "push to" if any(scope.endswith("push") for scope in self.scopes) else "pull from"


def pull_scopes(place: Reference) -> tuple[str, ...]:
    """What a token is asked for."""
    return (f"repository:{place.repository}:pull",)


def push_scopes(place: Reference) -> tuple[str, ...]:
    return (f"repository:{place.repository}:pull,push",)


def forbidden(request: Request) -> Misconfigured:
    place = request.place
    return Misconfigured(
        f"the registry does not let us {request.verb} {place.name}: check that it exists there, and that docker's config.json "
        f"holds a login for {place.host} that may {request.verb} it"
    )


async def refuse_bad(response: aiohttp.ClientResponse, request: Request) -> None:
    """Raises Again, Misconfigured or RepositoryError, unless the status is one of the request's good ones."""
    status, host = response.status, request.place.host
    if status in request.good:
        return
    if status == 403:
        raise forbidden(request)
    if status == 413:
        raise Misconfigured(f"the registry {host}, or a proxy before it, takes no blob of this size: raise its limit")
    codes = _CODE.findall((await response.content.read(MAX_ANSWER_BYTES)).decode("utf-8", "replace"))
    said = " ".join((str(status), *codes[:3]))
    if status == 429:
        raise Again(f"the registry {host} has had too many requests ({said}): log in, or try later", _after_s(response))
    if status >= 500:
        raise Again(
            f"the registry {host} fails ({said}): look at its log, and whether its disk is full", _after_s(response)
        )
    raise RepositoryError(
        f"the registry {host} refuses {request.method} in {request.place.name} ({said}): look at its log"
    )


def _after_s(response: aiohttp.ClientResponse) -> float:
    said = response.headers.get("Retry-After", "")
    return min(float(said), _LONGEST_PAUSE_S) if said.isascii() and said.isdigit() else 0.0


async def status_of(response: aiohttp.ClientResponse) -> int:
    return response.status


async def location_of(response: aiohttp.ClientResponse) -> str:
    return response.headers.get("Location", "")


async def read_all(response: aiohttp.ClientResponse, limit_bytes: int, what: str) -> bytes:
    """Raises RepositoryError where there are more than `limit_bytes`."""
    parts, left = [], limit_bytes
    async for part in response.content.iter_any():
        left -= len(part)
        if left < 0:
            raise RepositoryError(f"{what} has more than {limit_bytes} bytes: that is no honest one")
        parts.append(part)
    return b"".join(parts)


async def save(response: aiohttp.ClientResponse, place: Reference, blob: Descriptor, file: BinaryIO) -> None:
    """The blob, from the beginning of `file`. Raises RepositoryError where it is not what its descriptor says, or the disk is full."""
    digest, left = hashlib.sha256(), blob.size_bytes

    def write(part: bytes) -> None:
        with disk_errors():
            digest.update(part)
            file.write(part)
            file.flush()

    file.seek(0)
    file.truncate()
    async for part in response.content.iter_chunked(CHUNK_BYTES):
        left -= len(part)
        if left < 0:
            break
        await finish(None, write, part)
    if left or f"sha256:{digest.hexdigest()}" != blob.digest:
        raise corrupt(place, "blob", blob.digest)
