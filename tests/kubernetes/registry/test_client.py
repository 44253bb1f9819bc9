"""What registries hold, and what they answer when they fail."""

import asyncio
import errno
import io
import json
import os
import socket
from pathlib import Path

import pytest

from orchestrator.backends.kubernetes.registry.client import Registry
from orchestrator.backends.kubernetes.registry.manifests import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
)
from orchestrator.backends.kubernetes.registry.references import parse_reference, parse_repository
from orchestrator.backends.kubernetes.registry.scratch import disk_errors, reopened
from orchestrator.backends.kubernetes.registry.task_images import task_image
from orchestrator.errors import Misconfigured, RepositoryError, TiltyardError
from tests.kubernetes.registry.conftest import blob, config_of, push_base, settings, template
from tests.kubernetes.registry_server import Front, front

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("kind", [OCI_INDEX, DOCKER_LIST])
async def test_an_index_leads_to_the_image_for_our_machines(
    proxy: Front, registry: Registry, tmp_path: Path, kind: str
) -> None:
    repository = f"{proxy.host}/many-{'oci' if kind == OCI_INDEX else 'docker'}"
    sort = OCI_MANIFEST if kind == OCI_INDEX else DOCKER_MANIFEST
    entries, digests = [], {}
    for arch in ("arm64", "amd64"):
        found = await registry.image(await push_base(registry, f"{repository}:{arch}", arch=arch, kind=sort))
        size = len(json.dumps(found.manifest))
        digests[arch] = found.digest
        entries.append(
            {"mediaType": sort, "digest": found.digest, "size": size, "platform": {"os": "linux", "architecture": arch}}
        )
    index = json.dumps({"schemaVersion": 2, "mediaType": kind, "manifests": entries}).encode()
    await registry.put_manifest(parse_reference(f"{repository}:all"), kind, index)
    assert (await registry.image(parse_reference(f"{repository}:all"))).digest == digests["amd64"]
    async with Registry(settings(tmp_path, architecture="arm64")) as other:
        assert (await other.image(parse_reference(f"{repository}:all"))).digest == digests["arm64"]
    async with Registry(settings(tmp_path, architecture="riscv64")) as other:
        with pytest.raises(Misconfigured, match="no image for linux/riscv64, but for linux/amd64, linux/arm64"):
            await other.image(parse_reference(f"{repository}:all"))
    made = await task_image(
        registry, f"{repository}:all", template(tmp_path), workdir="/w", repository=f"{repository}-tasks"
    )
    assert (await config_of(registry, made))["architecture"] == "amd64"


@pytest.mark.parametrize("part", ["/blobs/", "/manifests/"])
async def test_what_is_not_its_digest_is_refused(proxy: Front, registry: Registry, tmp_path: Path, part: str) -> None:
    name = f"{proxy.host}/base-spoiled:1"
    await push_base(registry, name)
    proxy.spoiled = part
    with pytest.raises(RepositoryError, match=r"is not sha256:.* push the image anew"):
        await task_image(registry, name, template(tmp_path), workdir="/w", repository=f"{proxy.host}/spoiled")
    assert not proxy.count("PUT", "/spoiled/")


async def test_a_corrupt_blob_of_the_base_is_not_copied(proxy: Front, server: str, tmp_path: Path) -> None:
    async with Registry(settings(tmp_path)) as registry, front(server) as other:
        name = f"{proxy.host}/base-rotten:1"
        base = await registry.image(await push_base(registry, name))
        proxy.spoiled = base.layers[1].digest
        with pytest.raises(RepositoryError, match="is not sha256:"):
            await task_image(registry, name, template(tmp_path), workdir="/w", repository=f"{other.host}/rotten")
        assert not other.count("PUT", "/manifests/")


async def test_a_blob_longer_than_it_says_is_refused(proxy: Front, registry: Registry) -> None:
    place = parse_repository(f"{proxy.host}/long")
    data = b"x" * 1000
    await registry.put_blob(place, blob(data), lambda: io.BytesIO(data))
    lie = Descriptor(media_type="", digest=blob(data).digest, size_bytes=999)
    file = io.BytesIO()
    with pytest.raises(RepositoryError, match="is not sha256:"):
        await registry.save_blob(place, lie, file)
    assert len(file.getvalue()) <= 999
    with pytest.raises(RepositoryError, match="lacks its blob"):
        await registry.save_blob(place, blob(b"other"), file)


async def test_failures_are_tried_again_a_few_times(proxy: Front, registry: Registry, tmp_path: Path) -> None:
    name = f"{proxy.host}/base-tried:1"
    await push_base(registry, name)
    proxy.failing = [500, 429, 503]
    assert await registry.image(parse_reference(name))
    proxy.failing = [502] * 9
    with pytest.raises(RepositoryError, match=r"fails \(502\)"):
        await registry.image(parse_reference(name))
    assert len(proxy.failing) == 5
    proxy.failing, proxy.retry_after = [429], "1"
    began = asyncio.get_running_loop().time()
    assert await registry.image(parse_reference(name))
    assert asyncio.get_running_loop().time() - began >= 1


@pytest.mark.parametrize("method", ["POST", "PUT"])
async def test_an_upload_that_fails_begins_anew(proxy: Front, registry: Registry, method: str) -> None:
    place, data = parse_repository(f"{proxy.host}/anew-{method.lower()}"), os.urandom(3_000_000)
    proxy.failing, proxy.fails_at = [503], method
    async with registry.scratch_file() as file:
        file.write(data)
        await registry.put_blob(place, blob(data), reopened(file))
    assert (proxy.count("POST"), proxy.uploads) == (2, 1 if method == "POST" else 2)
    assert await registry.has_blob(place, blob(data))
    assert not await registry.has_blob(place, blob(b"not there"))


@pytest.mark.parametrize(
    ("status", "kind", "said"),
    [
        (403, Misconfigured, "does not let us pull from"),
        (413, Misconfigured, "raise its limit"),
        (405, RepositoryError, "look at its log"),
    ],
)
async def test_refusals_are_not_tried_again(
    proxy: Front, registry: Registry, status: int, kind: type[TiltyardError], said: str
) -> None:
    proxy.failing = [status]
    with pytest.raises(kind, match=said):
        await registry.image(parse_reference(f"{proxy.host}/refused:1"))
    assert len(proxy.seen) == 1


async def test_a_missing_base_is_named(proxy: Front, registry: Registry, tmp_path: Path) -> None:
    name = f"{proxy.host}/nothing:here"
    with pytest.raises(Misconfigured, match=r"no image 127.*/nothing:here: push it"):
        await task_image(registry, name, template(tmp_path), workdir="/w", repository=f"{proxy.host}/t")


async def test_a_registry_that_does_not_answer_is_named(registry: Registry) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
        with pytest.raises(RepositoryError, match=rf"registry 127.0.0.1:{port} cannot be reached"):
            await registry.image(parse_reference(f"127.0.0.1:{port}/a:1"))


@pytest.mark.parametrize(("number", "said"), [(errno.ENOSPC, "disk for temporary files is full"), (errno.EIO, "EIO")])
def test_a_full_disk_is_told(number: int, said: str) -> None:
    with pytest.raises(RepositoryError, match=said), disk_errors():
        raise OSError(number, os.strerror(number))
