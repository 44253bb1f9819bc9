"""Images by reference, set-up commands in a throw-away container, and tiltyard's own images."""

import asyncio
import errno
import os
import secrets
import stat
import subprocess
import tarfile
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import BinaryIO

import pytest

from orchestrator.backends.docker import base_images
from orchestrator.backends.docker.engine import Engine
from orchestrator.backends.docker.images import DockerImages
from orchestrator.backends.docker.settings import DockerSettings
from orchestrator.errors import EngineUnavailable, Misconfigured, RepositoryError
from orchestrator.models import Network
from tests.backends.docker.imaged import image_with
from tests.needs import needs

pytestmark = pytest.mark.anyio

PYTHON = base_images.PYTHON


class Setup:
    """A tree with one file, and a place for what set-up commands change; its deployment is its own."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self.deployment = f"test-{secrets.token_hex(6)}"
        self.images = DockerImages(settings(folder, deployment=self.deployment))
        self.engine = engine
        self.tree, self.upper, self.work = folder / "tree", folder / "upper", folder / "work"
        for place in (self.tree, self.upper, self.work):
            place.mkdir()
        (self.tree / "kept.txt").write_text("as it was\n")
        self.tag = f"tiltyard/{self.deployment}:1"

    async def run(
        self, *commands: str, network: Network | None = None, timeout_s: float = 30.0, image: str = PYTHON
    ) -> str:
        return await self.images.run_setup(
            image=image,
            commands=commands,
            tree=self.tree,
            upper=self.upper,
            tag=self.tag,
            network=network or Network(),
            timeout_s=timeout_s,
        )

    async def left(self) -> list[str]:
        """Containers and volumes that still exist."""
        labels = {"tiltyard.deployment": self.deployment}
        return [entry.name for entry in await self.engine.containers(labels)] + list(await self.engine.volumes(labels))


@pytest.fixture
async def setup(engine: Engine, tmp_path: Path) -> AsyncIterator[Setup]:
    made = Setup(engine, tmp_path)
    async with made.images:
        yield made
    await engine.remove_image(made.tag)


def settings(folder: Path, *, deployment: str = "test", socket: str = "") -> DockerSettings:
    return DockerSettings(deployment=deployment, host_id="test", state_dir=folder, socket=socket)


@needs("docker")
async def test_a_reference_becomes_an_id(setup: Setup) -> None:
    found = await setup.images.image_id(PYTHON)
    assert found.startswith("sha256:")
    assert await setup.images.image_id(found) == found


@needs("docker")
async def test_a_missing_image_names_its_fix_and_is_not_pulled(setup: Setup) -> None:
    with pytest.raises(Misconfigured, match="docker pull tiltyard-none:1"):
        await setup.images.image_id("tiltyard-none:1")
    with pytest.raises(Misconfigured):
        await setup.run("true", image="tiltyard-none:1")


async def test_no_engine_is_said(tmp_path: Path) -> None:
    async with DockerImages(settings(tmp_path, socket=f"unix://{tmp_path}/none.sock")) as images:
        with pytest.raises(EngineUnavailable):
            await images.image_id(PYTHON)


@needs("docker")
async def test_setup_changes_the_workspaces_upper_and_the_image(setup: Setup) -> None:
    image = await setup.run(
        "id -u > who.txt; cat kept.txt > copy.txt; echo changed >> kept.txt", "echo kept > /opt/made; useradd -m bob"
    )
    assert (setup.upper / "who.txt").read_text() == "0\n"
    assert (setup.upper / "copy.txt").read_text() == "as it was\n"
    assert (setup.tree / "kept.txt").read_text() == "as it was\n", "the tree is a lower layer"
    assert (setup.upper / "kept.txt").read_text() == "as it was\nchanged\n"
    facts = await setup.engine.image(setup.tag)
    assert facts is not None
    assert facts.id == image
    assert facts.labels["tiltyard.role"] == "task-image"
    assert await run_in(image, "cat /opt/made && id -u bob && ls /workspace") == "kept\n1000\n"
    assert await setup.left() == []


async def run_in(image: str, command: str) -> str:
    process = await asyncio.create_subprocess_exec(
        "docker", "run", "--rm", "--network=none", image, "sh", "-c", command, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    return output.decode()


@needs("docker")
async def test_setup_has_root_but_not_the_machine(setup: Setup) -> None:
    await setup.run(
        "chown 1:1 . && su -s /bin/sh nobody -c id > /tmp/id",
        "grep -q uid=65534 /tmp/id",
        "! mknod /tmp/null c 1 3",
        "! mount -t tmpfs none /mnt",
        "! unshare -m true",
        'test "$(ls /sys/class/net)" = lo',
    )


@needs("docker")
async def test_a_failing_command_stops_the_rest_and_shows_its_output(setup: Setup) -> None:
    with pytest.raises(RepositoryError, match=r"status 7; they had no network(?s:.*)the reason"):
        await setup.run("echo the reason; exit 7", "echo never > never.txt")
    assert not (setup.upper / "never.txt").exists()
    assert await setup.engine.image(setup.tag) is None
    assert await setup.left() == []


@needs("docker")
async def test_a_command_that_does_not_end_is_ended(setup: Setup) -> None:
    with pytest.raises(RepositoryError, match=r"within 0\.5 s"):
        await setup.run("sleep 60", timeout_s=0.5)
    assert await setup.left() == []


@needs("docker")
async def test_a_cancelled_setup_leaves_nothing(setup: Setup) -> None:
    task = asyncio.create_task(setup.run("touch began; sleep 60"))
    await until_exists(setup.upper / "began")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await setup.left() == []


async def until_exists(path: Path) -> None:
    async with asyncio.timeout(20):
        while not await asyncio.to_thread(path.exists):  # noqa: ASYNC110 - another program makes it
            await asyncio.sleep(0.02)


@needs("docker")
async def test_what_a_killed_process_left_is_swept_by_label(setup: Setup) -> None:
    labels = {"tiltyard.deployment": setup.deployment, "tiltyard.host": "test", "tiltyard.role": "setup"}
    name = f"tiltyard-setup-{secrets.token_hex(8)}"
    await setup.engine.create_volume(name, {"type": "tmpfs", "device": "tmpfs"}, labels)
    await setup.engine.create(
        name, {"Image": PYTHON, "Cmd": ["sleep", "60"], "Labels": {**labels}, "HostConfig": {"NetworkMode": "none"}}
    )
    await setup.engine.start(name)
    assert len(await setup.left()) == 2
    assert await setup.images.sweep() == 1
    assert await setup.left() == []


@needs("docker")
@pytest.mark.parametrize("name", ["host", "container:x", ""])
async def test_other_networks_are_refused(setup: Setup, name: str) -> None:
    with pytest.raises(Misconfigured, match="network"):
        await setup.run("true", network=Network(allow=(name,)))


@needs("docker")
async def test_paths_that_mount_options_cannot_carry_are_refused(setup: Setup, tmp_path: Path) -> None:
    setup.tree = setup.tree.rename(tmp_path / "a:b")
    with pytest.raises(Misconfigured):
        await setup.run("true")


@needs("docker")
async def test_own_images_are_found_not_rebuilt(setup: Setup) -> None:
    said: list[str] = []
    first = await setup.images.ensure_base(PYTHON, progress=said.append)
    assert first == await setup.images.image_id(PYTHON)
    assert all("up to date" in line for line in said), said
    with pytest.raises(Misconfigured, match="not one of tiltyard's own"):
        await setup.images.ensure_base("debian:12")


def test_a_changed_recipe_or_parent_is_another_image(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM scratch\n")
    recipe = base_images.Recipe(name="x", folder=tmp_path, parent="p")
    before = base_images.recipe_digest(recipe, "sha256:1")
    assert base_images.recipe_digest(recipe, "sha256:1") == before
    assert base_images.recipe_digest(recipe, "sha256:2") != before
    (tmp_path / "packages").write_text("git\n")
    assert base_images.recipe_digest(recipe, "sha256:1") != before


@needs("docker")
async def test_C23_nothing_of_this_machine_is_in_the_images() -> None:
    """Its name, resolver, proxies and certificates; the positive control is a file that must be there."""
    names = ("hostname", "resolv.conf", "apt/sources.list")
    found = await run_in(PYTHON, f"cd /etc && grep -c . {' '.join(names)} ssl/certs/ca-certificates.crt; env")
    assert "apt/sources.list:3" in found
    assert "proxy" not in found.lower()
    listing = await run_in(PYTHON, "ls /usr/local/share/ca-certificates /etc/apt/apt.conf.d /etc/apt/auth.conf.d")
    assert ".crt" not in listing
    assert await run_in(PYTHON, "cat /usr/share/ca-certificates/mozilla/*.crt | grep -c BEGIN") == await run_in(
        PYTHON, "grep -c BEGIN /etc/ssl/certs/ca-certificates.crt"
    ), "every trusted authority is Debian's"


@needs("docker")
async def test_the_python_image_has_what_tasks_need() -> None:
    wanted = "bash git grep sed gawk diff find ps patch less tar gzip python3 python pip"
    await run_in(PYTHON, f"for tool in {wanted}; do command -v $tool >/dev/null || exit 1; done")
    assert (await run_in(PYTHON, "/usr/bin/python3 -m pytest --version")).startswith("pytest")


@needs("docker", "root")
async def test_owners_are_left_to_the_caller_with_root(setup: Setup) -> None:
    await setup.run("install -o 7 -g 7 -m 600 /dev/null owned.txt")
    found = os.lstat(setup.upper / "owned.txt")
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (7, 7, 0o600)


@needs("docker")
async def test_an_images_files_are_read_without_running_it(setup: Setup, tmp_path: Path) -> None:
    def names(stream: BinaryIO) -> list[str]:
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            return [member.name for member in archive]

    def full(stream: BinaryIO) -> None:
        raise OSError(errno.ENOSPC, "no space")

    (tmp_path / "repo" / "sub").mkdir(parents=True)
    (tmp_path / "repo" / "sub" / "file").write_text("x")
    with image_with(tmp_path / "repo", "/opt/repo") as image:
        read = partial(setup.images.read_folder, image, timeout_s=120)
        assert sorted(await read("/opt/repo", names)) == ["repo", "repo/sub", "repo/sub/file"]
        everything = [name.strip("./") for name in await read("/", names)]
        assert {"opt/repo/sub/file", "usr/bin"} <= set(everything)
        with pytest.raises(Misconfigured, match="image has nothing at /none: correct"):
            await read("/none", names)
        with pytest.raises(OSError, match="no space"):
            await read("/opt/repo", full)
        with pytest.raises(RepositoryError, match="took too long"):
            await setup.images.read_folder(image, "/opt/repo", names, timeout_s=0)
    assert await setup.left() == []


@needs("docker")
async def test_reading_an_image_that_is_given_up_leaves_no_container(setup: Setup) -> None:
    """At whatever moment: the engine makes a container behind the back of who asked and left."""
    for lap in range(30):
        reading = asyncio.create_task(
            setup.images.read_folder("tiltyard/base:bookworm", "/etc", lambda tar: tar.read(1), timeout_s=60)
        )
        await asyncio.wait({reading}, timeout=lap * 0.002)
        reading.cancel()
        await asyncio.wait({reading})
    assert await setup.left() == []


@needs("docker")
async def test_a_long_reading_ends_when_it_is_given_up(setup: Setup) -> None:
    """A server that stops does not wait for gigabytes."""
    began = asyncio.Event()
    loop = asyncio.get_running_loop()

    def read_slowly(tar: BinaryIO) -> None:
        while tar.read(65536):
            loop.call_soon_threadsafe(began.set)
            time.sleep(0.05)

    reading = asyncio.create_task(setup.images.read_folder("tiltyard/base:bookworm", "/", read_slowly, timeout_s=600))
    await began.wait()
    reading.cancel()
    async with asyncio.timeout(20):
        await asyncio.wait({reading})
    assert reading.cancelled()
    assert await setup.left() == []


@needs("docker")
async def test_git_trusts_the_tree_whoever_it_belongs_to(setup: Setup) -> None:
    await asyncio.to_thread(subprocess.run, ["git", "init", "-q", str(setup.tree)], check=True)
    for path in (setup.tree, *setup.tree.rglob("*")):
        os.lchown(path, 12345, 12345)
    image = await setup.run("git status --porcelain > said.txt; env > told.txt")
    assert (setup.upper / "said.txt").read_text().startswith("?? ")
    facts = await setup.engine.image(setup.tag)
    assert facts is not None
    assert image == facts.id
    assert not any(name.startswith("GIT_") for name in facts.environment), "that is for set-up alone"
