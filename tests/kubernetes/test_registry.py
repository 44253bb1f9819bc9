"""Task images made in a real registry, without an engine."""

import asyncio
import base64
import errno
import gzip
import hashlib
import io
import json
import os
import socket
import ssl
import stat
import subprocess
import tarfile
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from orchestrator.backends.kubernetes.registry import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Reference,
    Registry,
    RegistrySettings,
    disk_errors,
    parse_reference,
    parse_repository,
    reopened,
)
from orchestrator.backends.kubernetes.task_images import SEED_DIR, TEMPLATE_LABEL, task_image
from orchestrator.errors import Misconfigured, RepositoryError, TiltyardError
from orchestrator.interfaces import Template
from orchestrator.repos import mounts, syscalls
from tests.kubernetes import registry_server
from tests.kubernetes.registry_server import PASSWORD, USER, Front, front
from tests.kubernetes.registry_server import registry_server as started
from tests.needs import needs, promised

pytestmark = pytest.mark.anyio

KEY = "ab" * 20
SEED = SEED_DIR.strip("/")
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


async def top_layer(registry: Registry, reference: str) -> dict[str, tarfile.TarInfo]:
    """Entries by name below the seed; contents in `pax_headers["content"]`."""
    place = parse_reference(reference)
    image = await registry.image(place)
    buffer = io.BytesIO()
    await registry.save_blob(place, image.layers[-1], buffer)
    entries = {}
    with tarfile.open(fileobj=io.BytesIO(buffer.getvalue())) as tar:
        for entry in tar:
            content = tar.extractfile(entry)
            entry.pax_headers["content"] = content.read().decode() if content else ""
            entries[entry.name] = entry
    return entries


async def config_of(registry: Registry, reference: str) -> dict[str, Any]:
    place = parse_reference(reference)
    image = await registry.image(place)
    found: dict[str, Any] = json.loads(await registry.read_blob(place, image.config))
    return found


@pytest.mark.parametrize(
    ("text", "host", "repository", "tag", "digest"),
    [
        ("registry.example:5000/team/name:v1", "registry.example:5000", "team/name", "v1", ""),
        ("registry.example:5000/team/name", "registry.example:5000", "team/name", "latest", ""),
        (f"r.example/a@sha256:{'0' * 64}", "r.example", "a", "", f"sha256:{'0' * 64}"),
        (f"r.example/a:t@sha256:{'0' * 64}", "r.example", "a", "t", f"sha256:{'0' * 64}"),
        ("localhost/a", "localhost", "a", "latest", ""),
        ("[::1]:5000/a:b", "[::1]:5000", "a", "b", ""),
        ("python:3.11", "docker.io", "library/python", "3.11", ""),
        ("docker.io/python", "docker.io", "library/python", "latest", ""),
        ("tiltyard/python:3.11", "docker.io", "tiltyard/python", "3.11", ""),
    ],
)
def test_references_are_read_as_engines_do(text: str, host: str, repository: str, tag: str, digest: str) -> None:
    assert parse_reference(text) == Reference(host=host, repository=repository, tag=tag, digest=digest)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "A/B",
        "r.example/a:",
        "r.example/a@",
        "r.example/a@sha256:12",
        "r.example/../a",
        "https://r.example/a",
        "a b",
        "r.example/",
    ],
)
def test_what_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises(Misconfigured, match="no image reference"):
        parse_reference(text)


def test_a_password_in_a_reference_is_not_told() -> None:
    with pytest.raises(Misconfigured) as caught:
        parse_reference("me:hunter2@r.example/a")
    assert "hunter2" not in caught.value.message
    with pytest.raises(Misconfigured, match="without tag"):
        parse_repository("r.example/a:tag")


@pytest.mark.parametrize("kind", [OCI_MANIFEST, DOCKER_MANIFEST])
async def test_an_image_is_its_base_and_one_layer(proxy: Front, registry: Registry, tmp_path: Path, kind: str) -> None:
    name = f"{proxy.host}/base-{'oci' if kind == OCI_MANIFEST else 'docker'}:1"
    base = await registry.image(await push_base(registry, name, kind=kind))
    proxy.seen.clear()
    made = await task_image(
        registry,
        name,
        template(tmp_path),
        workdir="/workspace",
        repository=f"{proxy.host}/of-{parse_reference(name).repository}/tasks",
    )
    assert made.startswith(f"{proxy.host}/")
    assert proxy.uploads == 2, "a layer and a config; the base's own are mounted"
    assert proxy.count("POST", "mount=") == 2
    assert proxy.count("GET", "/blobs/") == 1, "of the base only the config is read"
    image = await registry.image(parse_reference(made))
    assert (image.digest, image.media_type) == (parse_reference(made).digest, kind)
    assert image.layers[:-1] == base.layers
    config = await config_of(registry, made)
    place = parse_reference(made)
    for layer, diff_id in zip(image.layers, config["rootfs"]["diff_ids"], strict=True):
        buffer = io.BytesIO()
        await registry.save_blob(place, layer, buffer)
        assert blob(gzip.decompress(buffer.getvalue())).digest == diff_id
    assert config["odd"] == "kept"
    assert config["config"]["Env"] == ["A=b"]
    assert config["config"]["Labels"].items() >= {"kept": "yes", TEMPLATE_LABEL: KEY}.items()
    assert len(config["history"]) == 3


async def test_everything_in_the_layer_is_roots_and_readable_by_all(
    proxy: Front, registry: Registry, tmp_path: Path
) -> None:
    name = f"{proxy.host}/base-modes:1"
    await push_base(registry, name)
    made = await task_image(registry, name, template(tmp_path), workdir="/w", repository=f"{proxy.host}/modes")
    found = await top_layer(registry, made)
    assert list(found) == [
        "tiltyard",
        SEED,
        f"{SEED}/.wh..wh..opq",
        f"{SEED}/link",
        f"{SEED}/run.sh",
        f"{SEED}/src",
        f"{SEED}/src/a.py",
        f"{SEED}/twin.sh",
    ]
    assert {(entry.uid, entry.gid, entry.uname, entry.gname) for entry in found.values()} == {(0, 0, "", "")}
    assert found[f"{SEED}/src"].mode == 0o755
    assert found[f"{SEED}/src/a.py"].mode == 0o644
    assert found[f"{SEED}/run.sh"].mode == 0o755, "and not set-uid: it would be root's"
    assert (found[f"{SEED}/link"].type, found[f"{SEED}/link"].linkname) == (tarfile.SYMTYPE, "src/a.py")
    assert found[f"{SEED}/twin.sh"].isreg()
    assert found[f"{SEED}/twin.sh"].pax_headers["content"] == "#!/bin/sh\n"
    assert {found[f"{SEED}/{path}"].mtime for path in ("link", "run.sh", "src", "src/a.py")} == {1_600_000_000}


async def test_a_second_build_uploads_nothing(proxy: Front, registry: Registry, tmp_path: Path) -> None:
    name, repository = f"{proxy.host}/base-twice:1", f"{proxy.host}/twice"
    await push_base(registry, name)
    first = await task_image(registry, name, template(tmp_path), workdir="/w", repository=repository)
    proxy.seen.clear()
    async with Registry(settings(tmp_path)) as another:
        # Found by its name: the template need not even be there.
        again = await task_image(another, name, over(tmp_path / "gone"), workdir="/w", repository=repository)
    assert again == first
    assert {method for method, _ in proxy.seen} == {"GET"}
    assert len(proxy.seen) == 3, "the base's manifest, the image's, its config"


async def test_whoever_comes_at_once_waits_for_one_build(proxy: Front, registry: Registry, tmp_path: Path) -> None:
    name = f"{proxy.host}/base-crowd:1"
    await push_base(registry, name)
    proxy.seen.clear()
    sealed = template(tmp_path)
    ways = [task_image(registry, name, sealed, workdir="/w", repository=f"{proxy.host}/crowd") for _ in range(10)]
    assert len(set(await asyncio.gather(*ways))) == 1
    assert (proxy.uploads, proxy.count("PUT", "/manifests/")) == (2, 1)


async def test_who_waits_builds_when_the_first_one_is_cancelled(
    proxy: Front, registry: Registry, tmp_path: Path
) -> None:
    name = f"{proxy.host}/base-cancelled:1"
    await push_base(registry, name)
    sealed = template(tmp_path)

    async def build() -> str:
        return await task_image(registry, name, sealed, workdir="/w", repository=f"{proxy.host}/cancelled")

    first, second = asyncio.create_task(build()), asyncio.create_task(build())
    while not proxy.count("POST", "/cancelled/"):  # noqa: ASYNC110 - it happens beyond a wire
        await asyncio.sleep(0.001)
    first.cancel()
    with suppress(asyncio.CancelledError):
        await first
    assert first.cancelled()
    assert "@sha256:" in await second


async def test_the_same_tree_gives_the_same_digest(proxy: Front, registry: Registry, tmp_path: Path) -> None:
    name = f"{proxy.host}/base-same:1"
    await push_base(registry, name)
    made = set()
    for number in ("one", "two"):
        (tmp_path / number).mkdir()
        sealed = template(tmp_path / number)
        image = await task_image(registry, name, sealed, workdir="/w", repository=f"{proxy.host}/same-{number}")
        made.add(parse_reference(image).digest)
    assert len(made) == 1


async def test_a_template_lies_over_each_base_of_its_own(proxy: Front, registry: Registry, tmp_path: Path) -> None:
    sealed, repository, made = template(tmp_path), f"{proxy.host}/bases", []
    for number in (1, 2):
        await push_base(registry, f"{proxy.host}/base-{number}:1")
    for number in (1, 2, 1):
        base = f"{proxy.host}/base-{number}:1"
        made.append(await task_image(registry, base, sealed, workdir="/w", repository=repository))
    assert made[0] == made[2] != made[1]


async def test_another_ones_image_under_our_tag_is_not_taken(proxy: Front, registry: Registry, tmp_path: Path) -> None:
    name, repository = f"{proxy.host}/base-forged:1", f"{proxy.host}/forged"
    await push_base(registry, name)
    first = await task_image(registry, name, template(tmp_path), workdir="/w", repository=repository)
    (tag,) = {
        path.rpartition("/")[2] for method, path in proxy.seen if method == "PUT" and "/forged/manifests/" in path
    }
    await push_base(registry, f"{repository}:{tag}")
    assert await task_image(registry, name, over(tmp_path / "tree"), workdir="/w", repository=repository) == first


async def test_a_base_in_the_same_repository_needs_no_mount(proxy: Front, registry: Registry, tmp_path: Path) -> None:
    name = f"{proxy.host}/one:base"
    await push_base(registry, name)
    proxy.seen.clear()
    await task_image(registry, name, template(tmp_path), workdir="/w", repository=f"{proxy.host}/one")
    assert (proxy.uploads, proxy.count("POST", "mount=")) == (2, 0)


@pytest.mark.parametrize("why", ["no mounts", "another registry"])
async def test_what_cannot_be_mounted_is_copied(
    proxy: Front, server: str, registry: Registry, tmp_path: Path, why: str
) -> None:
    host = proxy.host if why == "no mounts" else server
    proxy.mounts = False
    name = f"{host}/base-copied-{why.split()[0]}:1"
    base = await registry.image(await push_base(registry, name))
    proxy.seen.clear()
    repository = f"{proxy.host}/copied-{why.split()[0]}"
    made = await task_image(registry, name, template(tmp_path), workdir="/w", repository=repository)
    assert proxy.uploads == 4
    image = await registry.image(parse_reference(made))
    assert image.layers[:-1] == base.layers
    for layer in image.layers:
        await registry.save_blob(parse_reference(made), layer, io.BytesIO())


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


async def test_a_certificate_that_nobody_vouches_for_is_told(proxy: Front, registry: Registry, tmp_path: Path) -> None:
    """By way of a redirect: what lies on loopback itself is spoken to without TLS."""
    name = f"{proxy.host}/base-tls:1"
    image = await registry.image(await push_base(registry, name))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    signed = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    await asyncio.to_thread(
        subprocess.run,
        [*signed, "-subj", "/CN=127.0.0.1", "-keyout", str(key), "-out", str(certificate)],
        check=True,
        capture_output=True,
    )
    context.load_cert_chain(certificate, key)
    async with front(proxy.upstream, tls=context) as other:
        proxy.sends_on = f"https://{other.host}"
        with pytest.raises(Misconfigured, match="no certificate that we trust"):
            await registry.read_blob(parse_reference(name), image.config)


def test_only_loopback_and_what_is_listed_goes_without_tls(tmp_path: Path) -> None:
    known = Registry(settings(tmp_path, insecure=frozenset({"registry.invalid:1"})))
    hosts = ("registry.invalid:1", "registry.invalid:2", "[::1]:2", "127.1.2.3", "localhost:1", "docker.io", "127.evil")
    assert [known.address(host) for host in hosts] == [
        "http://registry.invalid:1",
        "https://registry.invalid:2",
        "http://[::1]:2",
        "http://127.1.2.3",
        "http://localhost:1",
        "https://registry-1.docker.io",
        "https://127.evil",
    ]


async def test_a_store_that_we_are_sent_on_to_sees_no_login(proxy: Front, registry: Registry, tmp_path: Path) -> None:
    log_in(tmp_path, proxy.host)
    proxy.token = "one"
    name = f"{proxy.host}/base-store:1"
    async with front(proxy.upstream) as store:
        proxy.stores_at, proxy.sends_on = store.host, f"http://{store.host}"
        image = await registry.image(await push_base(registry, name))
        assert await registry.read_blob(parse_reference(name), image.config)
        assert [method for method, _ in store.seen] == ["PUT", "PUT", "PUT", "GET"]
        assert set(store.logins) == {""}
        store.token, store.realm = "two", f"http://{store.host}/token"
        with pytest.raises(Misconfigured, match="does not let us pull"):
            await registry.read_blob(parse_reference(name), image.config)
        assert store.scopes == []


async def test_a_login_is_taken_from_dockers_config(guarded: str, tmp_path: Path) -> None:
    async with Registry(settings(tmp_path)) as registry:
        name = f"{guarded}/base:1"
        with pytest.raises(Misconfigured, match=rf"wants a login: run `docker login {guarded}`"):
            await push_base(registry, name)
        log_in(tmp_path, guarded, "wrong")
        with pytest.raises(Misconfigured, match="does not let us push to") as caught:
            await push_base(registry, name)
        assert "wrong" not in str(caught.value)
        log_in(tmp_path, f"https://{guarded}/v1/")
        await push_base(registry, name)
        made = await task_image(registry, name, template(tmp_path), workdir="/w", repository=f"{guarded}/tasks")
        assert await registry.image(parse_reference(made))


async def test_a_config_that_cannot_be_read_is_told_without_what_it_holds(guarded: str, tmp_path: Path) -> None:
    (tmp_path / "docker").mkdir()
    (tmp_path / "docker" / "config.json").write_text('{"auths": {"x": "hunter2"}}')
    async with Registry(settings(tmp_path)) as registry:
        with pytest.raises(Misconfigured, match="cannot be read") as caught:
            await registry.image(parse_reference(f"{guarded}/a:1"))
    error: BaseException | None = caught.value
    assert "hunter2" not in str(error)
    assert caught.value.__suppress_context__


async def test_dockers_own_variable_names_the_config(
    guarded: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_in(tmp_path, guarded)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    async with Registry() as registry:
        await push_base(registry, f"{guarded}/by-variable:1")


async def test_tokens_are_asked_for_with_what_is_done(proxy: Front, registry: Registry, tmp_path: Path) -> None:
    proxy.token = "one"
    log_in(tmp_path, proxy.host)
    name = f"{proxy.host}/base-token:1"
    await push_base(registry, name)
    await task_image(registry, name, template(tmp_path), workdir="/w", repository=f"{proxy.host}/token")
    assert proxy.scopes == [
        ["repository:base-token:pull,push"],
        ["repository:base-token:pull"],
        ["repository:token:pull"],
        ["repository:token:pull,push", "repository:base-token:pull"],
        ["repository:token:pull,push"],
    ]
    proxy.token = "two"  # the first one's time is over
    data = os.urandom(3_000_000)
    await registry.put_blob(parse_repository(f"{proxy.host}/token"), blob(data), lambda: io.BytesIO(data))
    assert len(proxy.scopes) == 6


async def test_a_token_that_is_refused_is_told(proxy: Front, registry: Registry, tmp_path: Path) -> None:
    proxy.token = "one"
    log_in(tmp_path, proxy.host, "wrong")
    with pytest.raises(Misconfigured, match=rf"holds a login for {proxy.host} that may pull"):
        await registry.image(parse_reference(f"{proxy.host}/a:1"))


async def test_a_login_goes_only_where_nobody_listens_in(proxy: Front, registry: Registry, tmp_path: Path) -> None:
    proxy.token, proxy.realm = "one", "ftp://elsewhere.invalid/token"
    log_in(tmp_path, proxy.host)
    with pytest.raises(Misconfigured, match="no https address"):
        await registry.image(parse_reference(f"{proxy.host}/a:1"))


@needs("root")
@pytest.mark.parametrize("above", [False, True])
async def test_layers_are_merged_as_overlay_merges_them(
    proxy: Front, registry: Registry, tmp_path: Path, above: bool
) -> None:
    """Without the upper layer everything is there: the positive control."""
    tree, upper, work, merged = (tmp_path / name for name in ("tree", "upper", "work", "merged"))
    for folder in (tree, upper, work, merged):
        folder.mkdir()
    for path in ("removed", "kept", "changed", "dir/inner", "emptied/old", "moved/deep/file"):
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_text("tree")
    mounts.overlay(merged, lowers=[tree], upper=upper, work=work)
    try:
        (merged / "removed").unlink()
        (merged / "changed").write_text("upper")
        (merged / "dir" / "inner").unlink()
        (merged / "emptied" / "old").unlink()
        (merged / "emptied").rmdir()
        (merged / "emptied").mkdir()
        (merged / "emptied" / "new").write_text("upper")
        (merged / "moved").rename(merged / "renamed")
    finally:
        mounts.unmount(merged)
    assert stat.S_ISCHR((upper / "removed").lstat().st_mode)
    assert os.getxattr(upper / "emptied", "trusted.overlay.opaque") == b"y"
    assert os.getxattr(upper / "renamed", "trusted.overlay.redirect")
    name = f"{proxy.host}/base-merged:1"
    await push_base(registry, name)
    lowers = (upper, tree) if above else (tree,)
    made = await task_image(
        registry, name, over(*lowers, key=f"{above:d}" * 40), workdir="/w", repository=f"{proxy.host}/merged"
    )
    found = {
        path.removeprefix(f"{SEED}/"): entry.pax_headers["content"]
        for path, entry in (await top_layer(registry, made)).items()
        if entry.isreg() and ".wh." not in path
    }
    if above:
        assert found == {"changed": "upper", "emptied/new": "upper", "kept": "tree", "renamed/deep/file": "tree"}
    else:
        assert found == dict.fromkeys(
            ("changed", "dir/inner", "emptied/old", "kept", "moved/deep/file", "removed"), "tree"
        )


async def refused(proxy: Front, registry: Registry, sealed: Template) -> str:
    name = f"{proxy.host}/base-refused:1"
    await push_base(registry, name)
    with pytest.raises(RepositoryError) as caught:
        await task_image(registry, name, sealed, workdir="/w", repository=f"{proxy.host}/refused")
    assert not proxy.count("PUT", "/refused/")
    return caught.value.message


async def test_names_that_layers_give_a_meaning_are_refused(proxy: Front, registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / ".wh.etc").touch()
    assert ".wh.etc: no image can hold" in await refused(proxy, registry, over(tmp_path))


async def test_what_no_repository_holds_is_refused(proxy: Front, registry: Registry, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "pipe is neither a file" in await refused(proxy, registry, over(tmp_path))


async def test_a_template_that_is_gone_is_told(proxy: Front, registry: Registry, tmp_path: Path) -> None:
    assert "was removed" in await refused(proxy, registry, over(tmp_path / "gone"))


@pytest.mark.parametrize("prefix", ["seed", "/", "//a", "/a/../b", "/a/", ""])
async def test_a_seed_lies_at_an_absolute_path(registry: Registry, tmp_path: Path, prefix: str) -> None:
    with pytest.raises(Misconfigured, match="no place for a seed"):
        await task_image(registry, "a", over(tmp_path), workdir="/w", repository="b", prefix=prefix)


@pytest.mark.parametrize(
    ("odd", "kind"),
    [
        ({"rootfs": {"type": "layers", "diff_ids": []}}, RepositoryError),
        ({"rootfs": None}, RepositoryError),
        ({"config": {"Labels": [1]}}, RepositoryError),
        ({"os": "windows"}, Misconfigured),
    ],
)
async def test_a_base_that_makes_no_sense_is_refused(
    proxy: Front, registry: Registry, tmp_path: Path, odd: dict[str, Any], kind: type[TiltyardError]
) -> None:
    name = f"{proxy.host}/base-odd:1"
    await push_base(registry, name, **odd)
    with pytest.raises(kind):
        await task_image(registry, name, template(tmp_path), workdir="/w", repository=f"{proxy.host}/odd")


@pytest.mark.parametrize(("gaps", "steps"), [({"history": None}, None), ({"history": None, "layers": 0}, 1)])
async def test_a_history_tells_of_all_layers_or_none(
    proxy: Front, registry: Registry, tmp_path: Path, gaps: dict[str, Any], steps: int | None
) -> None:
    name = f"{proxy.host}/base-history-{steps or 0}:1"
    await push_base(registry, name, **gaps)
    made = await task_image(registry, name, template(tmp_path), workdir="/w", repository=f"{proxy.host}/history")
    history = (await config_of(registry, made))["history"]
    assert (history and len(history)) == steps


@pytest.mark.parametrize(("number", "said"), [(errno.ENOSPC, "disk for temporary files is full"), (errno.EIO, "EIO")])
def test_a_full_disk_is_told(number: int, said: str) -> None:
    with pytest.raises(RepositoryError, match=said), disk_errors():
        raise OSError(number, os.strerror(number))


@needs("root")
async def test_a_layer_that_finds_no_room_is_told_and_nothing_is_pushed(proxy: Front, tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "noise").write_bytes(os.urandom(2_000_000))
    syscalls.mount("tests", tmp_path / "small", "tmpfs", 0, "size=1m")
    try:
        async with Registry(settings(tmp_path, scratch=tmp_path / "small")) as registry:
            assert "disk for temporary files is full" in await refused(proxy, registry, over(tmp_path / "tree"))
    finally:
        mounts.unmount(tmp_path / "small")
