"""Task images without an engine: a base image in a registry, and one layer over it that holds a sealed template.

The layer lies at a place of its own, not at the workspace: that is a fresh volume of the pod's, and hides what the image has there. The box's
start copies it over.
"""

import gzip
import hashlib
import io
import json
import os
import posixpath
import stat
import tarfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

import structlog
from pydantic import BaseModel, ValidationError

from orchestrator.backends.kubernetes.registry.client import Registry
from orchestrator.backends.kubernetes.registry.manifests import DOCKER_MANIFEST, Descriptor, Image
from orchestrator.backends.kubernetes.registry.references import Reference, parse_reference, parse_repository
from orchestrator.backends.kubernetes.registry.scratch import disk_errors, reopened
from orchestrator.errors import Misconfigured, RepositoryError
from orchestrator.interfaces import Template
from orchestrator.models import canonical_json
from orchestrator.repos import mounts
from orchestrator.repos.threads import finish

SEED_DIR = "/tiltyard/seed"
"""Where a task image holds its template."""
TEMPLATE_LABEL = "dev.tiltyard.template"
BASE_LABEL = "dev.tiltyard.base"
SEED_LABEL = "dev.tiltyard.seed"
WORKDIR_LABEL = "dev.tiltyard.workdir"
FORMAT_LABEL = "dev.tiltyard.format"
FORMAT = 1
"""Of the layer: one more, and every task image is made anew."""

_GZIP_LEVEL = 1
"""Most of a sealed tree is git's packs, which nothing makes smaller; a start waits for this."""
_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """Everything that decides a task image; all of it is written on it."""

    base: Image
    source: Reference
    """Where the base is."""
    template: Template
    workdir: str
    prefix: str
    repository: Reference

    @property
    def labels(self) -> dict[str, str]:
        return {
            FORMAT_LABEL: str(FORMAT),
            TEMPLATE_LABEL: self.template.key,
            BASE_LABEL: self.base.digest,
            SEED_LABEL: self.prefix,
            WORKDIR_LABEL: self.workdir,
        }

    @property
    def place(self) -> Reference:
        """A template may lie over several bases, so its key alone is no name."""
        told = hashlib.sha256(canonical_json(self.labels).encode("utf-8", "surrogatepass")).hexdigest()
        return replace(self.repository, tag=f"{self.template.key[:12]}-{told[:20]}")


class _Rootfs(BaseModel):
    type: str
    diff_ids: list[str]


class _Inner(BaseModel):
    Labels: dict[str, str] | None = None


class _Config(BaseModel):
    """What must hold of an image's config; the rest of it is kept as it is."""

    os: str = "linux"
    rootfs: _Rootfs
    history: list[dict[str, Any]] | None = None
    config: _Inner | None = None


async def task_image(
    registry: Registry, base_ref: str, template: Template, *, workdir: str, repository: str, prefix: str = SEED_DIR
) -> str:
    """`repository@sha256:…` of `base_ref` with the template at `prefix`, made where the registry has none yet; simultaneous callers wait for one.

    `workdir` is where boxes will have it; the image only says so. Raises Misconfigured, RepositoryError.
    """
    if not prefix.startswith("/") or prefix.startswith("//") or posixpath.normpath(prefix) != prefix or prefix == "/":
        raise Misconfigured(f"{prefix!r} is no place for a seed: write an absolute path in normal form")
    source = parse_reference(base_ref)
    target = parse_repository(repository)
    base = await registry.image(source)
    plan = _Plan(base=base, source=source, template=template, workdir=workdir, prefix=prefix, repository=target)
    digest = await _found(registry, plan)
    if digest is None:
        async with registry.locks[str(plan.place)]:
            digest = await _found(registry, plan) or await _make(registry, plan)
    return f"{target.name}@{digest}"


async def _found(registry: Registry, plan: _Plan) -> str | None:
    """The digest of what has the plan's tag, if it is what the plan says: a tag is anybody's."""
    image = await registry.find(plan.place)
    if image is None:
        return None
    try:
        inner = _Config.model_validate_json(await registry.read_blob(plan.place, image.config)).config
    except ValidationError:
        return None
    labels = (inner.Labels if inner else None) or {}
    return image.digest if plan.labels.items() <= labels.items() else None


async def _make(registry: Registry, plan: _Plan) -> str:
    started = time.monotonic()
    config = await _base_config(registry, plan)
    async with registry.scratch_file() as file:
        layer = await finish(None, _write_layer, plan.template, plan.prefix, file)
        for blob in plan.base.layers:
            await registry.copy_blob(plan.place, blob, source=plan.source)
        blob = Descriptor(media_type=_layer_type(plan.base), digest=layer.digest, size_bytes=layer.size_bytes)
        if not await registry.has_blob(plan.place, blob):
            await registry.put_blob(plan.place, blob, reopened(file))
    encoded = _encoded(_appended_config(config, layer, plan.labels))
    described = Descriptor(
        media_type=plan.base.config.media_type,
        digest=f"sha256:{hashlib.sha256(encoded).hexdigest()}",
        size_bytes=len(encoded),
    )
    await registry.put_blob(plan.place, described, lambda: io.BytesIO(encoded))
    manifest = {
        **plan.base.manifest,
        "config": described.to_json(),
        "layers": [*plan.base.manifest["layers"], blob.to_json()],
    }
    digest = await registry.put_manifest(plan.place, plan.base.media_type, _encoded(manifest))
    log.info(
        "task_image_pushed",
        image=str(plan.place),
        digest=digest,
        layer_bytes=layer.size_bytes,
        took_s=time.monotonic() - started,
    )
    return digest


async def _base_config(registry: Registry, plan: _Plan) -> dict[str, Any]:
    body = await registry.read_blob(plan.source, plan.base.config)
    odd = RepositoryError(
        f"{plan.source}: its config does not fit its layers, so that no layer can be added: push it anew"
    )
    try:
        parsed = _Config.model_validate_json(body)
        found: dict[str, Any] = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise odd from error
    if parsed.os != "linux":
        raise Misconfigured(f"{plan.source} is an image for {parsed.os}: boxes run Linux")
    if parsed.rootfs.type != "layers" or len(parsed.rootfs.diff_ids) != len(plan.base.layers):
        raise odd
    return found


def _appended_config(config: Mapping[str, Any], layer: "_Layer", labels: Mapping[str, str]) -> dict[str, Any]:
    inner, rootfs = config.get("config") or {}, config["rootfs"]
    appended = {
        **config,
        "config": {**inner, "Labels": {**(inner.get("Labels") or {}), **labels}},
        "rootfs": {**rootfs, "diff_ids": [*rootfs["diff_ids"], layer.diff_id]},
    }
    history = config.get("history") or []
    if history or not rootfs["diff_ids"]:  # one that tells of some layers only is taken for a broken one
        appended["history"] = [*history, {"created": "1970-01-01T00:00:00Z", "created_by": "tiltyard"}]
    return appended


def _layer_type(base: Image) -> str:
    if base.media_type == DOCKER_MANIFEST:
        return "application/vnd.docker.image.rootfs.diff.tar.gzip"
    return "application/vnd.oci.image.layer.v1.tar+gzip"


def _encoded(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    digest: str
    diff_id: str
    """Of the layer before it was compressed."""
    size_bytes: int


class _Writable(Protocol):
    def write(self, data: bytes, /) -> int: ...


class _Hashed:
    """Passes on what is written, and knows its digest."""

    def __init__(self, file: _Writable) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.size_bytes = 0

    @property
    def digest(self) -> str:
        return f"sha256:{self._digest.hexdigest()}"

    def write(self, data: bytes) -> int:
        self._digest.update(data)
        self.size_bytes += len(data)
        return self._file.write(data)

    def flush(self) -> None:
        """The file below is flushed by its owner."""


def _write_layer(template: Template, prefix: str, file: BinaryIO) -> _Layer:
    """The same bytes for the same folders. Blocks."""
    outer = _Hashed(file)
    with disk_errors(), _view(template) as folder:
        with gzip.GzipFile(filename="", mode="wb", compresslevel=_GZIP_LEVEL, fileobj=outer, mtime=0) as packed:
            inner = _Hashed(packed)
            with tarfile.open(fileobj=cast(BinaryIO, inner), mode="w|", format=tarfile.PAX_FORMAT) as tar:
                _add_prefix(tar, prefix.strip("/"))
                _add_folder(tar, folder, prefix.strip("/"))
        file.flush()
    return _Layer(digest=outer.digest, diff_id=inner.digest, size_bytes=outer.size_bytes)


@contextmanager
def _view(template: Template) -> Iterator[int]:
    """Descriptor of the template's tree. Several layers are read as the kernel merges them: only it knows all of overlay's marks."""
    try:
        if len(template.lowers) == 1:
            folder = os.open(template.lowers[0], _FOLDER)
        else:
            view = mounts.detached_view([Path(lower) for lower in template.lowers])
            try:
                folder = os.open(".", _FOLDER, dir_fd=view)  # the view's own descriptor only names it
            finally:
                os.close(view)
    except FileNotFoundError as error:
        raise RepositoryError("the template was removed before its image was made: try again") from error
    except PermissionError as error:
        raise Misconfigured(
            "the layers that set-up left can be merged by root with CAP_SYS_ADMIN alone: serve so, or build them into the task's image"
        ) from error
    try:
        yield folder
    finally:
        os.close(folder)


def _add_prefix(tar: tarfile.TarFile, prefix: str) -> None:
    """Its folders. The last one hides what a base may have there: a box starts with the template and nothing else."""
    for end, letter in enumerate(prefix + "/"):
        if letter == "/":
            tar.addfile(_entry(prefix[:end], tarfile.DIRTYPE, 0o755))
    tar.addfile(_entry(f"{prefix}/{_OPAQUE}", tarfile.REGTYPE, 0o644))


def _add_folder(tar: tarfile.TarFile, folder: int, prefix: str) -> None:
    for name in sorted(os.listdir(folder), key=os.fsencode):
        path = f"{prefix}/{name}"
        if name.startswith(_WHITEOUT):
            raise RepositoryError(
                f"{_told(name)}: no image can hold a file whose name begins with {_WHITEOUT}: rename it"
            )
        info = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if stat.S_ISDIR(info.st_mode):
            tar.addfile(_entry(path, tarfile.DIRTYPE, 0o755 | info.st_mode & 0o777, info))
            child = os.open(name, _FOLDER, dir_fd=folder)
            try:
                _add_folder(tar, child, path)
            finally:
                os.close(child)
        elif stat.S_ISREG(info.st_mode):
            _add_file(tar, folder, name, path)
        elif stat.S_ISLNK(info.st_mode):
            entry = _entry(path, tarfile.SYMTYPE, 0o777, info)
            entry.linkname = os.readlink(name, dir_fd=folder)
            tar.addfile(entry)
        elif not (stat.S_ISCHR(info.st_mode) and info.st_rdev == 0):  # a white-out in the lowest layer hides nothing
            raise RepositoryError(
                f"{_told(name)} is neither a file, a folder nor a symlink: let the set-up commands remove it"
            )


def _add_file(tar: tarfile.TarFile, folder: int, name: str, path: str) -> None:
    """A hard link is a file of its own."""
    with open(os.open(name, _FILE, dir_fd=folder), "rb") as file:
        info = os.fstat(file.fileno())
        entry = _entry(path, tarfile.REGTYPE, 0o444 | info.st_mode & 0o777, info)
        entry.size = info.st_size
        tar.addfile(entry, file)


def _entry(path: str, kind: bytes, mode: int, info: os.stat_result | None = None) -> tarfile.TarInfo:
    """Root's, and readable by all: a pod's uid is not known beforehand. Times stay, to the second: git and Python take a file with another time
    than they noted for a changed one, and would read the whole tree again in each box."""
    entry = tarfile.TarInfo(path)
    entry.type, entry.mode = kind, mode
    entry.mtime = max(int(info.st_mtime), 0) if info else 0
    return entry


def _told(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "backslashreplace")[:200]
