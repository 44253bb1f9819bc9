"""Task images made in a real registry, without an engine."""

import asyncio
import gzip
import io
import os
import stat
import tarfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from orchestrator.backends.kubernetes.registry.client import Registry
from orchestrator.backends.kubernetes.registry.manifests import DOCKER_MANIFEST, OCI_MANIFEST
from orchestrator.backends.kubernetes.registry.references import parse_reference
from orchestrator.backends.kubernetes.registry.task_images import SEED_DIR, TEMPLATE_LABEL, task_image
from orchestrator.errors import Misconfigured, RepositoryError, TiltyardError
from orchestrator.interfaces import Template
from orchestrator.repos import mounts, syscalls
from tests.kubernetes.registry.conftest import KEY, blob, config_of, over, push_base, settings, template
from tests.kubernetes.registry_server import Front
from tests.needs import needs

pytestmark = pytest.mark.anyio

SEED = SEED_DIR.strip("/")


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
