"""Images as registries describe them: manifests, indexes, and what of them can be built upon."""

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError

from orchestrator.agent.binary import ARCHITECTURES
from orchestrator.backends.kubernetes.registry.references import DIGEST_FORM, Reference
from orchestrator.errors import Misconfigured, RepositoryError

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"

MAX_BLOB_BYTES = 64 * 1024**3
_MAX_LAYERS = 512


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
    digest: Annotated[str, Field(pattern=DIGEST_FORM)]
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


def choose(manifest: Mapping[str, Any], reference: Reference, architecture: str) -> str:
    """Digest of an index's image for `architecture`; empty: this machine's. Raises Misconfigured, RepositoryError."""
    wanted = architecture or ARCHITECTURES.get(platform.machine().lower(), platform.machine())
    try:
        entries = _Index.model_validate(manifest).manifests
    except ValidationError as error:
        raise _odd(reference) from error
    for entry in entries:
        if (entry.platform.os, entry.platform.architecture) == ("linux", wanted):
            return entry.digest
    known = sorted({f"{entry.platform.os}/{entry.platform.architecture}" for entry in entries})
    raise Misconfigured(f"{reference} has no image for linux/{wanted}, but for {', '.join(known) or 'nothing'}")


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def read_json(body: bytes, reference: Reference) -> dict[str, Any]:
    """A JSON object. Raises RepositoryError."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise _odd(reference) from error
    if not isinstance(found, dict):
        raise _odd(reference)
    return found


def read_image(manifest: dict[str, Any], media_type: str, body: bytes, reference: Reference) -> Image:
    """Of a manifest and the bytes that it came in. Raises RepositoryError."""
    if media_type not in (OCI_MANIFEST, DOCKER_MANIFEST) or "manifests" in manifest:
        raise _odd(reference)
    try:
        parsed = _Manifest.model_validate(manifest)
    except ValidationError as error:
        raise _odd(reference) from error
    return Image(
        digest=digest_of(body),
        media_type=media_type,
        manifest=manifest,
        config=parsed.config.descriptor(),
        layers=tuple(layer.descriptor() for layer in parsed.layers),
    )


def _odd(reference: Reference) -> RepositoryError:
    return RepositoryError(
        f"{reference} is no image that can be built upon: push it anew in the OCI or Docker v2 form, with sha256 digests"
    )


def corrupt(place: Reference, what: str, digest: str) -> RepositoryError:
    """To raise where what came has another digest."""
    return RepositoryError(
        f"the {what} that the registry gave for {place.name} is not {digest}: remove it there, and push the image anew"
    )
