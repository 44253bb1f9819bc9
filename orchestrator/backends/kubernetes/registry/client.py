"""A client of OCI registries: what making a task's image without an engine needs. Everything that comes is bounded, and checked by its digest."""

import io
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Self
from urllib.parse import quote

import aiohttp
from yarl import URL

from orchestrator.backends.kubernetes.registry.manifests import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Image,
    choose,
    corrupt,
    digest_of,
    read_image,
    read_json,
)
from orchestrator.backends.kubernetes.registry.references import DIGEST, Reference
from orchestrator.backends.kubernetes.registry.requests import (
    BLOB_S,
    SMALL_S,
    Request,
    location_of,
    pull_scopes,
    push_scopes,
    read_all,
    save,
    status_of,
)
from orchestrator.backends.kubernetes.registry.scratch import reopened, temporary_file
from orchestrator.backends.kubernetes.registry.session import RegistrySession
from orchestrator.errors import Misconfigured, RepositoryError
from orchestrator.repos.locks import NamedLocks
from orchestrator.repos.threads import finish

MAX_MANIFEST_BYTES = 4 * 1024 * 1024
MAX_CONFIG_BYTES = 8 * 1024 * 1024


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


class Registry:
    """Any number of registries, one HTTP session, the tokens that they gave. `locks` are for who builds something in them.

    Raises (all methods): Misconfigured (nothing there, no permission, no trust), RepositoryError (unreachable, corrupt, no space), with the fix.
    """

    def __init__(self, settings: RegistrySettings | None = None) -> None:
        self._settings = settings or RegistrySettings()
        self._http = RegistrySession(insecure=self._settings.insecure, docker_config=self._settings.docker_config)
        self.locks = NamedLocks()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._http.aclose()

    def address(self, host: str) -> str:
        """Where the API of a registry is."""
        return self._http.address(host)

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
            manifest = read_json(body, reference)
            if media_type not in (OCI_INDEX, DOCKER_LIST):
                return read_image(manifest, media_type, body, reference)
            reference = replace(reference, digest=choose(manifest, reference, self._settings.architecture))
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
        request = self._request("GET", place, f"blobs/{blob.digest}", good=(200, 404), timeout_s=BLOB_S)

        async def read(response: aiohttp.ClientResponse) -> None:
            if response.status == 404:
                raise RepositoryError(f"{place.name} lacks its blob {blob.digest}: push the image anew")
            await save(response, place, blob, file)

        await self._http.tried(place, lambda: self._http.call(request, read))

    async def has_blob(self, place: Reference, blob: Descriptor) -> bool:
        """Asked by who is about to push."""
        request = self._request("HEAD", place, f"blobs/{blob.digest}", good=(200, 404), scopes=push_scopes(place))
        return await self._http.tried(place, lambda: self._http.call(request, status_of)) == 200

    async def mount_blob(self, place: Reference, blob: Descriptor, *, source: Reference) -> bool:
        """Whether the registry shares a blob of another repository of its own with `place`. If not, it must be copied."""
        asked = self._request(
            "POST", place, "blobs/uploads/", good=(201, 202), scopes=(*push_scopes(place), *pull_scopes(source))
        )
        request = replace(asked, url=asked.url.with_query({"mount": blob.digest, "from": source.repository}))
        return await self._http.tried(place, lambda: self._http.call(request, status_of)) == 201

    async def put_blob(self, place: Reference, blob: Descriptor, body: Callable[[], BinaryIO]) -> None:
        """`body` opens it, once per try, in a thread."""
        await self._http.tried(place, lambda: self._upload(place, blob, body))

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
            scopes=push_scopes(place),
            headers={"Content-Type": media_type},
            body=lambda: io.BytesIO(body),
        )
        await self._http.tried(place, lambda: self._http.call(request, status_of))
        return digest_of(body)

    @asynccontextmanager
    async def scratch_file(self) -> AsyncIterator[BinaryIO]:
        """No path names it: it is gone however this process ends."""
        file = await finish(None, temporary_file, self._settings.scratch)
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
            body = await read_all(response, MAX_MANIFEST_BYTES, f"the manifest of {reference}")
            asked = reference.digest or response.headers.get("Docker-Content-Digest", "")
            if DIGEST.fullmatch(asked) and asked != digest_of(body):
                raise corrupt(reference, "manifest", asked)
            return response.content_type, body

        return await self._http.tried(reference, lambda: self._http.call(request, read))

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
        timeout_s: float = SMALL_S,
    ) -> Request:
        """Without scopes it is a pull."""
        return Request(
            method=method,
            url=URL(self.address(place.host)).with_path(f"/v2/{place.repository}/{path}"),
            place=place,
            scopes=scopes or pull_scopes(place),
            good=frozenset(good),
            headers=headers or {},
            body=body,
            timeout_s=timeout_s,
        )

    async def _upload(self, place: Reference, blob: Descriptor, body: Callable[[], BinaryIO]) -> None:
        """In one piece. A try that failed begins anew: the registry forgets its upload."""
        start = self._request("POST", place, "blobs/uploads/", good=(202,), scopes=push_scopes(place))
        put = self._request(
            "PUT",
            place,
            "",
            good=(201,),
            scopes=push_scopes(place),
            headers={"Content-Type": "application/octet-stream", "Content-Length": str(blob.size_bytes)},
            body=body,
            timeout_s=BLOB_S,
        )
        location = await self._http.call(start, location_of)
        await self._http.call(replace(put, url=_upload_url(start, location, blob)), status_of)


def _upload_url(start: Request, location: str, blob: Descriptor) -> URL:
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
