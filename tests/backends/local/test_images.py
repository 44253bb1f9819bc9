"""The one image, and set-up commands whose result is kept as a layer over the tree."""

import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.backends.local.images import LocalImages
from orchestrator.backends.local.settings import LocalSettings
from orchestrator.errors import Misconfigured, RepositoryError
from orchestrator.models import Network
from orchestrator.repos import mounts
from tests.needs import needs

pytestmark = [pytest.mark.anyio, needs("bwrap", "libseccomp", "root")]
NONE = Network()


@pytest.fixture
async def images(settings: LocalSettings) -> AsyncIterator[LocalImages]:
    made = LocalImages(settings)
    yield made
    assert await made.sweep() == 0, "a set-up box was left behind"
    assert not mounts.mounted_below(settings.state_dir)


@pytest.fixture
def layers(state_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(tree, upper) as the templates' builder lays them out, both root's."""
    build = tmp_path_factory.mktemp("build")
    for folder in (build, build.parent, build.parent.parent):
        folder.chmod(folder.stat().st_mode & 0o7777 | 0o055)
    for name in ("tree", "upper", "work"):
        (build / name).mkdir(mode=0o755)
    (build / "tree" / "kept").write_text("kept\n")
    (build / "tree" / "removed").write_text("removed\n")
    return build / "tree", build / "upper"


async def run(images: LocalImages, layers: tuple[Path, Path], *commands: str, timeout_s: float = 60) -> str:
    tree, upper = layers
    return await images.run_setup(
        image="host", commands=commands, tree=tree, upper=upper, tag="t:1", network=NONE, timeout_s=timeout_s
    )


async def test_what_set_up_leaves_is_the_upper_layer(images: LocalImages, layers: tuple[Path, Path]) -> None:
    image = await run(images, layers, "cat kept > made; rm removed", "mkdir built; echo more >> made; pwd >> made")
    tree, upper = layers
    assert image == await images.image_id("host")
    assert (upper / "made").read_text() == "kept\nmore\n/workspace\n"
    assert (upper / "built").is_dir()
    assert (upper / "removed").is_char_device()  # overlay's mark
    assert (tree / "removed").exists()


async def test_a_failing_command_shows_its_output(images: LocalImages, layers: tuple[Path, Path]) -> None:
    with pytest.raises(RepositoryError, match=r"status 3(.|\n)*the reason"):
        await run(images, layers, "true", "echo the reason; exit 3", "touch never")
    assert not (layers[1] / "never").exists()


async def test_a_command_that_does_not_end_is_ended(images: LocalImages, layers: tuple[Path, Path]) -> None:
    began = time.monotonic()
    with pytest.raises(RepositoryError, match="did not end"):
        await run(images, layers, "sleep 600", timeout_s=3)
    assert time.monotonic() - began < 60


async def test_it_is_not_root_and_has_no_network(images: LocalImages, layers: tuple[Path, Path]) -> None:
    await run(
        images,
        layers,
        "id -u > uid; ls /sys/class/net 2>/dev/null | wc -l > links; (: > /usr/probe) 2>/dev/null || echo no > usr",
    )
    upper = layers[1]
    assert int((upper / "uid").read_text()) >= 1_000_000
    assert (upper / "usr").read_text() == "no\n"


async def test_what_cannot_be_had_is_refused(images: LocalImages, layers: tuple[Path, Path]) -> None:
    tree, upper = layers
    with pytest.raises(Misconfigured, match="--host-root"):
        await images.image_id("tiltyard/python:3.11")
    with pytest.raises(Misconfigured, match="setup_network"):
        await images.run_setup(
            image="host",
            commands=("true",),
            tree=tree,
            upper=upper,
            tag="t:1",
            network=Network(allow=("example.org",)),
            timeout_s=5,
        )
    with pytest.raises(Misconfigured, match="no image"):
        await images.read_folder("host", "/testbed", lambda stream: stream.read(), timeout_s=5)


async def test_any_image_must_be_asked_for(settings: LocalSettings) -> None:
    asked = LocalImages(replace(settings, any_image=True))
    assert await asked.image_id("tiltyard/python:3.11") == await asked.image_id("host")
