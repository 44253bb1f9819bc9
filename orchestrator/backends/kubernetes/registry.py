"""A client of OCI registries: what making a task's image without an engine needs. Everything that comes is bounded, and checked by its digest."""

import asyncio
import base64
import errno
import hashlib
import io
import ipaddress
import json
import os
import platform
import re
import secrets
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal, Self, TypeVar, cast
from urllib.parse import quote

import aiohttp
from pydantic import BaseModel, Field, ValidationError
from yarl import URL

from orchestrator.agent.binary import ARCHITECTURES
from orchestrator.errors import Misconfigured, RepositoryError
from orchestrator.repos.locks import NamedLocks
from orchestrator.repos.threads import finish

T = TypeVar("T")

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"

MAX_MANIFEST_BYTES = 4 * 1024 * 1024
MAX_CONFIG_BYTES = 8 * 1024 * 1024
MAX_BLOB_BYTES = 64 * 1024**3
_MAX_ANSWER_BYTES = 64 * 1024
"""Of tokens and errors."""
_MAX_LAYERS = 512
_CHUNK_BYTES = 1024 * 1024

TRIES = 4
_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 20.0
_CONNECT_S = 10.0
_SMALL_S = 60.0
_BLOB_S = 1800.0
"""One transfer of a blob; a registry may take minutes to put a large one away."""

_HUB = "docker.io"
_HUB_API = "registry-1.docker.io"
_HUB_NAMES = frozenset({_HUB, _HUB_API, "index.docker.io"})
_HOST = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:]+\])(?::[0-9]{1,5})?")
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_PART}(?:/{_PART})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST_FORM = r"^sha256:[0-9a-f]{64}$"
_DIGEST = re.compile(_DIGEST_FORM)
_CHALLENGE = re.compile(r'(\w+)="([^"]*)"')
_TOKEN = re.compile(r"[\x21-\x7e]{1,32768}")
_CODE = re.compile(r'"code"\s*:\s*"([A-Z_]{1,40})"')


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """An image in a registry. Where both are there, the digest decides."""

    host: str
    repository: str
    tag: str = ""
    digest: str = ""

    @property
    def name(self) -> str:
        return f"{self.host}/{self.repository}"

    def __str__(self) -> str:
        return self.name + (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")


def parse_reference(text: str) -> Reference:
    """As engines read it: no host is Docker Hub, neither tag nor digest is `latest`. Raises Misconfigured."""
    rest, _, digest = text.partition("@")
    head, slash, last = rest.rpartition("/")
    last, colon, tag = last.partition(":")
    host, repository = _place(head + slash + last)
    if (colon and not _TAG.fullmatch(tag)) or ("@" in text and not _DIGEST.fullmatch(digest)):
        raise _no_reference(text)
    if not _HOST.fullmatch(host) or not _REPOSITORY.fullmatch(repository) or len(repository) > 255:
        raise _no_reference(text)
    return Reference(host=host, repository=repository, tag=tag or ("" if digest else "latest"), digest=digest)


def parse_repository(text: str) -> Reference:
    """`registry.example:5000/team/name`, without tag and digest. Raises Misconfigured."""
    host, repository = _place(text)
    if not _HOST.fullmatch(host) or not _REPOSITORY.fullmatch(repository) or len(repository) > 255:
        raise Misconfigured(
            f"{_shown(text)!r} names no repository: write registry.example:5000/team/name, without tag and digest"
        )
    return Reference(host=host, repository=repository)


def _place(name: str) -> tuple[str, str]:
    """Host and repository. The first part is a host if it looks like one: a plain word is a folder of Docker Hub's."""
    first, slash, rest = name.partition("/")
    if slash and (first == "localhost" or first.startswith("[") or "." in first or ":" in first):
        host = _HUB if first in _HUB_NAMES else first
        return host, f"library/{rest}" if host == _HUB and "/" not in rest else rest
    return _HUB, name if slash else f"library/{name}"


def _no_reference(text: str) -> Misconfigured:
    return Misconfigured(
        f"{_shown(text)!r} is no image reference: write registry.example:5000/team/name:tag or …/name@sha256:<64 hex digits>"
    )


def _shown(text: str) -> str:
    """What stands before an @ may be a password that somebody wrote into an address."""
    return text.rpartition("@")[2][:200]


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrySettings:
    insecure: frozenset[str] = frozenset()
    """Hosts (with their port) that speak plain HTTP. Those on loopback do anyway."""
    docker_config: Path | None = None
    """Folder of docker's config.json; None: `DOCKER_CONFIG`, else ~/.docker. Read whenever a registry asks who we are: secrets rotate."""
    architecture: str = ""
    """Which image of an index is taken (amd64, arm64); empty: this machine's."""
    scratch: Path | None = None
    """Where layers are written before they are sent; None: the system's folder for temporary files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    media_type: str
    digest: str
    size_bytes: int

    def to_json(self) -> dict[str, Any]:
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.size_bytes}


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """One platform's image. `manifest` is all of it, so that what we do not know is kept."""

    digest: str
    media_type: str
    manifest: Mapping[str, Any]
    config: Descriptor
    layers: tuple[Descriptor, ...]


class _Platform(BaseModel):
    os: str = ""
    architecture: str = ""


class _Entry(BaseModel):
    mediaType: str = ""
    digest: Annotated[str, Field(pattern=_DIGEST_FORM)]
    size: Annotated[int, Field(ge=0, le=MAX_BLOB_BYTES)]
    platform: _Platform = _Platform()

    def descriptor(self) -> Descriptor:
        return Descriptor(media_type=self.mediaType, digest=self.digest, size_bytes=self.size)


class _Manifest(BaseModel):
    schemaVersion: Literal[2]
    config: _Entry
    layers: Annotated[list[_Entry], Field(max_length=_MAX_LAYERS)]


class _Index(BaseModel):
    schemaVersion: Literal[2]
    manifests: Annotated[list[_Entry], Field(max_length=_MAX_LAYERS)]


class _Token(BaseModel):
    token: str = ""
    access_token: str = ""


class _Auth(BaseModel):
    auth: str = ""
    username: str = ""
    password: str = ""


class _DockerConfig(BaseModel):
    auths: dict[str, _Auth] = {}


class _Again(Exception):
    """Worth another try. Says what is told if that was the last one, and how long the registry wants to be left alone."""

    def __init__(self, message: str, after_s: float = 0.0) -> None:
        super().__init__(message)
        self.message = message
        self.after_s = after_s


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    method: str
    url: URL
    place: Reference
    """Whose registry it is, and what messages are about."""
    scopes: tuple[str, ...]
    good: frozenset[int]
    headers: Mapping[str, str]
    body: Callable[[], BinaryIO] | None = None
    """Opened anew for each try."""
    timeout_s: float = _SMALL_S

    @property
    def verb(self) -> str:
        return "push to" if any(scope.endswith("push") for scope in self.scopes) else "pull from"


class Registry:
    """Any number of registries, one HTTP session, the tokens that they gave. `locks` are for who builds something in them.

    Raises (all methods): Misconfigured (nothing there, no permission, no trust), RepositoryError (unreachable, corrupt, no space), with the fix.
    """

    def __init__(self, settings: RegistrySettings | None = None) -> None:
        self._settings = settings or RegistrySettings()
        self._session: aiohttp.ClientSession | None = None
        self._authorizations: dict[tuple[str, tuple[str, ...]], str] = {}
        self.locks = NamedLocks()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def address(self, host: str) -> str:
        """Where the API of a registry is."""
        plain = host in self._settings.insecure or _loopback(host)
        return f"{'http' if plain else 'https'}://{_HUB_API if host == _HUB else host}"

    async def image(self, reference: Reference) -> Image:
        """The image for our architecture."""
        if found := await self.find(reference):
            return found
        raise Misconfigured(f"there is no image {reference}: push it to the registry, or name another one")

    async def find(self, reference: Reference) -> Image | None:
        """As `image`; None where nothing has this name."""
        for _ in range(2):
            answer = await self._manifest(reference)
            if answer is None:
                return None
            media_type, body = answer
            manifest = _json(body, reference)
            if media_type not in (OCI_INDEX, DOCKER_LIST):
                return _image(manifest, media_type, body, reference)
            reference = replace(reference, digest=self._choose(manifest, reference))
        raise RepositoryError(f"{reference.name}: its index leads to another index: push an image for each platform")

    async def read_blob(self, place: Reference, blob: Descriptor) -> bytes:
        """A small one, such as a config."""
        if blob.size_bytes > MAX_CONFIG_BYTES:
            raise RepositoryError(
                f"{place.name}: its config has more than {MAX_CONFIG_BYTES} bytes: make a smaller one"
            )
        buffer = io.BytesIO()
        await self.save_blob(place, blob, buffer)
        return buffer.getvalue()

    async def save_blob(self, place: Reference, blob: Descriptor, file: BinaryIO) -> None:
        """Into `file`, from its beginning."""
        request = self._request("GET", place, f"blobs/{blob.digest}", good=(200, 404), timeout_s=_BLOB_S)

        async def read(response: aiohttp.ClientResponse) -> None:
            if response.status == 404:
                raise RepositoryError(f"{place.name} lacks its blob {blob.digest}: push the image anew")
            await _save(response, place, blob, file)

        await self._tried(place, lambda: self._call(request, read))

    async def has_blob(self, place: Reference, blob: Descriptor) -> bool:
        """Asked by who is about to push."""
        request = self._request("HEAD", place, f"blobs/{blob.digest}", good=(200, 404), scopes=_push(place))
        return await self._tried(place, lambda: self._call(request, _status)) == 200

    async def mount_blob(self, place: Reference, blob: Descriptor, *, source: Reference) -> bool:
        """Whether the registry shares a blob of another repository of its own with `place`. If not, it must be copied."""
        asked = self._request("POST", place, "blobs/uploads/", good=(201, 202), scopes=(*_push(place), *_pull(source)))
        request = replace(asked, url=asked.url.with_query({"mount": blob.digest, "from": source.repository}))
        return await self._tried(place, lambda: self._call(request, _status)) == 201

    async def put_blob(self, place: Reference, blob: Descriptor, body: Callable[[], BinaryIO]) -> None:
        """`body` opens it, once per try, in a thread."""
        await self._tried(place, lambda: self._upload(place, blob, body))

    async def copy_blob(self, place: Reference, blob: Descriptor, *, source: Reference) -> None:
        """Make `place` hold a blob of `source`: shared where they are one registry's, else by way of this machine."""
        if place.name == source.name:
            return
        if place.host == source.host and await self.mount_blob(place, blob, source=source):
            return
        if await self.has_blob(place, blob):
            return
        async with self.scratch_file() as file:
            await self.save_blob(source, blob, file)
            await self.put_blob(place, blob, reopened(file))

    async def put_manifest(self, place: Reference, media_type: str, body: bytes) -> str:
        """Under the tag of `place`; its digest."""
        request = self._request(
            "PUT",
            place,
            f"manifests/{place.tag}",
            good=(201,),
            scopes=_push(place),
            headers={"Content-Type": media_type},
            body=lambda: io.BytesIO(body),
        )
        await self._tried(place, lambda: self._call(request, _status))
        return _digest(body)

    @asynccontextmanager
    async def scratch_file(self) -> AsyncIterator[BinaryIO]:
        """No path names it: it is gone however this process ends."""
        file = await finish(None, _temporary, self._settings.scratch)
        try:
            yield file
        finally:
            await finish(None, file.close)

    async def _manifest(self, reference: Reference) -> tuple[str, bytes] | None:
        """Media type and bytes."""
        accept = {"Accept": ", ".join((OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST))}
        path = f"manifests/{reference.digest or reference.tag}"
        request = self._request("GET", reference, path, good=(200, 404), headers=accept)

        async def read(response: aiohttp.ClientResponse) -> tuple[str, bytes] | None:
            if response.status == 404:
                return None
            body = await _read(response, MAX_MANIFEST_BYTES, f"the manifest of {reference}")
            asked = reference.digest or response.headers.get("Docker-Content-Digest", "")
            if _DIGEST.fullmatch(asked) and asked != _digest(body):
                raise _corrupt(reference, "manifest", asked)
            return response.content_type, body

        return await self._tried(reference, lambda: self._call(request, read))

    def _choose(self, manifest: dict[str, Any], reference: Reference) -> str:
        wanted = self._settings.architecture or ARCHITECTURES.get(platform.machine().lower(), platform.machine())
        try:
            entries = _Index.model_validate(manifest).manifests
        except ValidationError as error:
            raise _odd(reference) from error
        for entry in entries:
            if (entry.platform.os, entry.platform.architecture) == ("linux", wanted):
                return entry.digest
        known = sorted({f"{entry.platform.os}/{entry.platform.architecture}" for entry in entries})
        raise Misconfigured(f"{reference} has no image for linux/{wanted}, but for {', '.join(known) or 'nothing'}")

    def _request(
        self,
        method: str,
        place: Reference,
        path: str,
        *,
        good: Sequence[int],
        scopes: tuple[str, ...] = (),
        headers: Mapping[str, str] | None = None,
        body: Callable[[], BinaryIO] | None = None,
        timeout_s: float = _SMALL_S,
    ) -> _Request:
        """Without scopes it is a pull."""
        return _Request(
            method=method,
            url=URL(self.address(place.host)).with_path(f"/v2/{place.repository}/{path}"),
            place=place,
            scopes=scopes or _pull(place),
            good=frozenset(good),
            headers=headers or {},
            body=body,
            timeout_s=timeout_s,
        )

    async def _upload(self, place: Reference, blob: Descriptor, body: Callable[[], BinaryIO]) -> None:
        """In one piece. A try that failed begins anew: the registry forgets its upload."""
        start = self._request("POST", place, "blobs/uploads/", good=(202,), scopes=_push(place))
        put = self._request(
            "PUT",
            place,
            "",
            good=(201,),
            scopes=_push(place),
            headers={"Content-Type": "application/octet-stream", "Content-Length": str(blob.size_bytes)},
            body=body,
            timeout_s=_BLOB_S,
        )
        location = await self._call(start, _location)
        await self._call(replace(put, url=_upload_url(start, location, blob)), _status)

    async def _tried(self, place: Reference, attempt: Callable[[], Awaitable[T]]) -> T:
        for number in range(TRIES):
            try:
                return await attempt()
            except _Again as error:
                again = error
            except aiohttp.ClientSSLError as error:
                raise Misconfigured(
                    f"the registry {place.host} has no certificate that we trust: name its authority in SSL_CERT_FILE, "
                    "or list the host as insecure if it speaks plain HTTP"
                ) from error
            except (aiohttp.ClientError, TimeoutError) as error:
                again = _Again(
                    f"the registry {place.host} cannot be reached ({_kind(error)}): check its name, that it runs, and the way to it"
                )
            if number + 1 < TRIES:
                await asyncio.sleep(
                    max(again.after_s, _FIRST_PAUSE_S * 2**number * (0.5 + secrets.randbelow(1000) / 1000))
                )
        raise RepositoryError(again.message)

    async def _call(self, request: _Request, read: Callable[[aiohttp.ClientResponse], Awaitable[T]]) -> T:
        """`read` of a good answer. Sent twice where the first one only asks who we are."""
        key = (request.place.host, request.scopes)
        for last in (False, True):
            async with self._sent(request, self._authorizations.get(key)) as response:
                if response.status != 401:
                    await _refuse_bad(response, request)
                    return await read(response)
                # Who we are is nothing to a store that we were sent on to, and its challenge may want a login for somebody else.
                ours = response.url.origin() == URL(self.address(request.place.host))
                challenges = response.headers.getall("WWW-Authenticate", [])
            if last or not ours:
                break
            self._authorizations[key] = await self._authorize(request, challenges)
        raise _forbidden(request)

    @asynccontextmanager
    async def _sent(self, request: _Request, authorization: str | None) -> AsyncIterator[aiohttp.ClientResponse]:
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
                timeout=aiohttp.ClientTimeout(total=request.timeout_s, sock_connect=_CONNECT_S),
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
                read_bufsize=_CHUNK_BYTES,
            )
        return self._session

    async def _authorize(self, request: _Request, challenges: Sequence[str]) -> str:
        """The header that answers a challenge."""
        host = request.place.host
        login = await finish(None, _login, self._settings.docker_config, host)
        for challenge in challenges:
            if challenge.lower().startswith("bearer "):
                return f"Bearer {await self._token(request, dict(_CHALLENGE.findall(challenge)), login)}"
        if not any(challenge.lower().startswith("basic") for challenge in challenges):
            raise Misconfigured(f"the registry {host} asks for a way to log in that is neither Basic nor Bearer")
        if login is None:
            raise Misconfigured(
                f"the registry {host} wants a login: run `docker login {host}`, or point DOCKER_CONFIG to a folder whose "
                "config.json has one under auths"
            )
        return login

    async def _token(self, request: _Request, challenge: Mapping[str, str], login: str | None) -> str:
        host = request.place.host
        try:
            realm = URL(challenge.get("realm", ""))
        except ValueError:
            realm = URL()
        if realm.scheme != "https" and (realm.scheme != "http" or self.address(host).startswith("https:")):
            raise Misconfigured(
                f"the registry {host} gives tokens out at no https address: nothing secret is sent there"
            )
        query = [("service", challenge.get("service", "")), *(("scope", scope) for scope in request.scopes)]
        async with self._opened().get(
            realm.extend_query([pair for pair in query if pair[1]]),
            headers={"Authorization": login} if login else {},
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(total=_SMALL_S, sock_connect=_CONNECT_S),
        ) as response:
            if response.status in (400, 401, 403):
                raise _forbidden(request)
            await _refuse_bad(response, replace(request, good=frozenset({200})))
            body = await _read(response, _MAX_ANSWER_BYTES, f"the token of {host}")
        try:
            answer = _Token.model_validate_json(body)
        except ValidationError:
            answer = _Token()
        token = answer.token or answer.access_token
        if not _TOKEN.fullmatch(token):
            raise RepositoryError(f"the registry {host} gave no token that can be used: look at its token service")
        return token


def reopened(file: BinaryIO) -> Callable[[], BinaryIO]:
    """Opens `file` once more, at its beginning. One of these at a time: they share one place in it."""

    def opened() -> BinaryIO:
        file.flush()
        again = os.fdopen(os.dup(file.fileno()), "rb")
        again.seek(0)
        return again

    return opened


@contextmanager
def disk_errors() -> Iterator[None]:
    """Says in words what this machine's disk refuses."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RepositoryError("the disk for temporary files is full: free space, or set TMPDIR") from error
        name = errno.errorcode.get(error.errno or 0, "unknown error")
        raise RepositoryError(f"a layer could not be written: {name} ({error.strerror or error})") from error


def _temporary(folder: Path | None) -> BinaryIO:
    with disk_errors():
        return cast(BinaryIO, tempfile.TemporaryFile(dir=folder))


def _upload_url(start: _Request, location: str, blob: Descriptor) -> URL:
    """Where the registry wants the blob. What it wrote into the address stays as it is: its state is in there."""
    glue = "&" if "?" in location else "?"
    host = start.place.host
    try:
        url = start.url.join(URL(f"{location}{glue}digest={quote(blob.digest)}", encoded=True))
    except ValueError as error:
        raise RepositoryError(f"the registry {host} names no place for an upload: look at its log") from error
    if not location or url.scheme not in ("http", "https"):
        raise RepositoryError(f"the registry {host} names no place for an upload: look at its log")
    if start.url.scheme == "https" and url.scheme != "https":
        raise Misconfigured(
            f"the registry {host} wants uploads without TLS: let the proxy before it set X-Forwarded-Proto"
        )
    return url


def _loopback(host: str) -> bool:
    name = host.rpartition("]")[0].lstrip("[") if host.startswith("[") else host.partition(":")[0]
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _pull(place: Reference) -> tuple[str, ...]:
    return (f"repository:{place.repository}:pull",)


def _push(place: Reference) -> tuple[str, ...]:
    return (f"repository:{place.repository}:pull,push",)


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _kind(error: BaseException) -> str:
    """Without an address: it may hold what a redirect was signed with."""
    return type(error).__name__


def _json(body: bytes, reference: Reference) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise _odd(reference) from error
    if not isinstance(found, dict):
        raise _odd(reference)
    return found


def _image(manifest: dict[str, Any], media_type: str, body: bytes, reference: Reference) -> Image:
    if media_type not in (OCI_MANIFEST, DOCKER_MANIFEST) or "manifests" in manifest:
        raise _odd(reference)
    try:
        parsed = _Manifest.model_validate(manifest)
    except ValidationError as error:
        raise _odd(reference) from error
    return Image(
        digest=_digest(body),
        media_type=media_type,
        manifest=manifest,
        config=parsed.config.descriptor(),
        layers=tuple(layer.descriptor() for layer in parsed.layers),
    )


def _odd(reference: Reference) -> RepositoryError:
    return RepositoryError(
        f"{reference} is no image that can be built upon: push it anew in the OCI or Docker v2 form, with sha256 digests"
    )


def _corrupt(place: Reference, what: str, digest: str) -> RepositoryError:
    return RepositoryError(
        f"the {what} that the registry gave for {place.name} is not {digest}: remove it there, and push the image anew"
    )


def _forbidden(request: _Request) -> Misconfigured:
    place = request.place
    return Misconfigured(
        f"the registry does not let us {request.verb} {place.name}: check that it exists there, and that docker's config.json "
        f"holds a login for {place.host} that may {request.verb} it"
    )


async def _refuse_bad(response: aiohttp.ClientResponse, request: _Request) -> None:
    status, host = response.status, request.place.host
    if status in request.good:
        return
    if status == 403:
        raise _forbidden(request)
    if status == 413:
        raise Misconfigured(f"the registry {host}, or a proxy before it, takes no blob of this size: raise its limit")
    codes = _CODE.findall((await response.content.read(_MAX_ANSWER_BYTES)).decode("utf-8", "replace"))
    said = " ".join((str(status), *codes[:3]))
    if status == 429:
        raise _Again(
            f"the registry {host} has had too many requests ({said}): log in, or try later", _after_s(response)
        )
    if status >= 500:
        raise _Again(
            f"the registry {host} fails ({said}): look at its log, and whether its disk is full", _after_s(response)
        )
    raise RepositoryError(
        f"the registry {host} refuses {request.method} in {request.place.name} ({said}): look at its log"
    )


def _after_s(response: aiohttp.ClientResponse) -> float:
    said = response.headers.get("Retry-After", "")
    return min(float(said), _LONGEST_PAUSE_S) if said.isascii() and said.isdigit() else 0.0


async def _status(response: aiohttp.ClientResponse) -> int:
    return response.status


async def _location(response: aiohttp.ClientResponse) -> str:
    return response.headers.get("Location", "")


async def _read(response: aiohttp.ClientResponse, limit_bytes: int, what: str) -> bytes:
    parts, left = [], limit_bytes
    async for part in response.content.iter_any():
        left -= len(part)
        if left < 0:
            raise RepositoryError(f"{what} has more than {limit_bytes} bytes: that is no honest one")
        parts.append(part)
    return b"".join(parts)


async def _save(response: aiohttp.ClientResponse, place: Reference, blob: Descriptor, file: BinaryIO) -> None:
    digest, left = hashlib.sha256(), blob.size_bytes

    def write(part: bytes) -> None:
        with disk_errors():
            digest.update(part)
            file.write(part)
            file.flush()

    file.seek(0)
    file.truncate()
    async for part in response.content.iter_chunked(_CHUNK_BYTES):
        left -= len(part)
        if left < 0:
            break
        await finish(None, write, part)
    if left or f"sha256:{digest.hexdigest()}" != blob.digest:
        raise _corrupt(place, "blob", blob.digest)


def _login(folder: Path | None, host: str) -> str | None:
    """The Basic header for `host` in docker's config.json. What is wrong with it is told without what it holds."""
    where = folder or Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker")
    try:
        config = _DockerConfig.model_validate_json((where / "config.json").read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError):
        raise Misconfigured("docker's config.json cannot be read: mend it, or point DOCKER_CONFIG elsewhere") from None
    names = _HUB_NAMES if host == _HUB else {host}
    for key, entry in config.auths.items():
        named = key.removeprefix("https://").removeprefix("http://").partition("/")[0] in names
        if named and (header := _basic(entry)):
            return header
    return None


def _basic(entry: _Auth) -> str:
    encoded = entry.auth or base64.b64encode(f"{entry.username}:{entry.password}".encode()).decode()
    usable = (entry.auth or entry.username) and _TOKEN.fullmatch(encoded)
    return f"Basic {encoded}" if usable else ""
