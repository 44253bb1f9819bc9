"""A real registry for all tests of this folder, small images in it, and templates to lay over them."""

import base64
import gzip
import hashlib
import io
import json
import os
import tarfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.backends.kubernetes.registry.client import Registry, RegistrySettings
from orchestrator.backends.kubernetes.registry.manifests import OCI_MANIFEST, Descriptor
from orchestrator.backends.kubernetes.registry.references import Reference, parse_reference
from orchestrator.interfaces import Template
from tests.kubernetes import registry_server
from tests.kubernetes.registry_server import PASSWORD, USER, Front, front
from tests.kubernetes.registry_server import registry_server as started
from tests.needs import promised

KEY = "ab" * 20
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


def server_or_skip() -> None:
    if why := registry_server.lacking():
        (pytest.fail if "docker-registry" in promised() else pytest.skip)(why)


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    server_or_skip()
    with started() as address:
        yield address


@pytest.fixture(scope="session")
def guarded() -> Iterator[str]:
    server_or_skip()
    with started(login=True) as address:
        yield address


@pytest.fixture
async def proxy(server: str) -> AsyncIterator[Front]:
    async with front(server) as made:
        yield made


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[Registry]:
    async with Registry(settings(tmp_path)) as made:
        yield made


def settings(tmp_path: Path, **changes: Any) -> RegistrySettings:
    return RegistrySettings(**{"docker_config": tmp_path / "docker", "architecture": "amd64", **changes})


def log_in(tmp_path: Path, host: str, password: str = PASSWORD) -> None:
    (tmp_path / "docker").mkdir(exist_ok=True)
    auth = base64.b64encode(f"{USER}:{password}".encode()).decode()
    (tmp_path / "docker" / "config.json").write_text(json.dumps({"auths": {host: {"auth": auth}}}))


def template(folder: Path, *, key: str = KEY) -> Template:
    """One layer of some files."""
    tree = folder / "tree"
    (tree / "src").mkdir(parents=True, mode=0o700)
    (tree / "src" / "a.py").write_text("a = 1\n")
    (tree / "src" / "a.py").chmod(0o600)
    (tree / "run.sh").write_text("#!/bin/sh\n")
    (tree / "run.sh").chmod(0o4755)
    os.link(tree / "run.sh", tree / "twin.sh")
    (tree / "link").symlink_to("src/a.py")
    for path in (*tree.rglob("*"), tree):
        os.utime(path, (1_600_000_000.5, 1_600_000_000.5), follow_symlinks=False)
    return over(tree, key=key)


def over(*lowers: Path, key: str = KEY) -> Template:
    return Template(key=key, lowers=tuple(map(str, lowers)), manifest={}, owner_uid=os.geteuid(), image="")


def blob(data: bytes, media_type: str = OCI_LAYER) -> Descriptor:
    return Descriptor(media_type=media_type, digest=f"sha256:{hashlib.sha256(data).hexdigest()}", size_bytes=len(data))


async def push_base(
    registry: Registry, name: str, *, arch: str = "amd64", kind: str = OCI_MANIFEST, layers: int = 2, **config: Any
) -> Reference:
    """A small image; `config` is what is odd about it."""
    place = parse_reference(name)
    plain = [tar_of({f"etc/{number}": f"{arch} {number} of {name}"}) for number in range(layers)]
    packed = [gzip.compress(layer, mtime=0) for layer in plain]
    diff_ids = [blob(layer).digest for layer in plain]
    encoded = json.dumps(
        {
            "architecture": arch,
            "os": "linux",
            "config": {"Env": ["A=b"], "Labels": {"kept": "yes"}},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": [{"created_by": f"step {number}"} for number in range(layers)],
            "odd": "kept",
            **config,
        }
    ).encode()
    for data in (*packed, encoded):
        await registry.put_blob(place, blob(data), lambda data=data: io.BytesIO(data))
    config_kind = (
        "application/vnd.oci.image.config.v1+json"
        if kind == OCI_MANIFEST
        else "application/vnd.docker.container.image.v1+json"
    )
    manifest = {
        "schemaVersion": 2,
        "mediaType": kind,
        "config": blob(encoded, config_kind).to_json(),
        "layers": [blob(layer).to_json() for layer in packed],
    }
    await registry.put_manifest(place, kind, json.dumps(manifest).encode())
    return place


def tar_of(files: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text.encode()))
    return buffer.getvalue()


async def config_of(registry: Registry, reference: str) -> dict[str, Any]:
    place = parse_reference(reference)
    image = await registry.image(place)
    found: dict[str, Any] = json.loads(await registry.read_blob(place, image.config))
    return found
