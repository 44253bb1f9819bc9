"""C26 on a real engine: runtimes that are missing, broken, or another thing than their names say. Nothing falls back, and nothing is left."""

import secrets
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.backends.docker.backend import DockerBackend
from orchestrator.backends.docker.settings import DockerSettings
from orchestrator.errors import Misconfigured
from orchestrator.interfaces import SandboxSpec
from orchestrator.models import Limits
from orchestrator.repos.workspace import make_workspaces
from tests.backends.docker.boxes import Box
from tests.backends.docker.conftest import START_S, new_id
from tests.backends.docker.engines import IMAGE, private_engine, program, real
from tests.needs import needs

pytestmark = [needs("docker", "root"), pytest.mark.anyio]

GVISOR_ARGUMENTS = ("--platform=systrap", "--host-uds=create", "--overlay2=none")
ECHO_GVISOR = 'case " $* " in *" --version "*) echo "runsc version release-20260224.0"; exit 0;; esac'
DROP_FLAGS = (
    'for word; do shift; case $word in --platform=*|--host-uds=*|--overlay2=*) ;; *) set -- "$@" "$word";; esac; done'
)
"""runc knows none of gVisor's flags."""


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Short: agents' sockets lie below it."""
    with tempfile.TemporaryDirectory(prefix="tl-") as made:
        yield Path(made)


@pytest.fixture(scope="module")
async def liars(folder: Path) -> AsyncIterator[DockerSettings]:
    """Settings for an engine with: `runsc` that is runc, `runsc-echo` that only answers as gVisor does, `runsc-gone` that is no program,
    `mine` that is runc under a name that means nothing, `kata`."""
    echo = program(folder / "echo", f'{ECHO_GVISOR}\n{DROP_FLAGS}\nexec {real("runc")} "$@"')
    runtimes = {
        "runsc": (real("runc"), *GVISOR_ARGUMENTS),
        "runsc-echo": (echo, *GVISOR_ARGUMENTS),
        "runsc-gone": (str(folder / "gone"), *GVISOR_ARGUMENTS),
        "mine": (real("runc"),),
        "kata": (real("runc"),),
    }
    async with private_engine(runtimes) as socket:
        deployment = f"liars-{secrets.token_hex(3)}"
        yield DockerSettings(
            deployment=deployment,
            host_id="test",
            state_dir=folder / deployment,
            memory_limit_mib=1024,
            socket=socket,
            accept_old_runc=True,
        )


def backend(settings: DockerSettings, folder: Path) -> DockerBackend:
    return DockerBackend(settings, make_workspaces(folder, settings.deployment))


async def make(made: DockerBackend) -> Box:
    spec = SandboxSpec(image=IMAGE, template=None, limits=Limits(memory_mib=128, disk_mib=32))
    return Box(await made.create(new_id(), spec, deadline=time.monotonic() + START_S))


@pytest.mark.parametrize(
    ("runtime", "word"),
    [
        ("runsc", "should be gVisor, but the program registered under that name is runc"),
        ("runsc-gone", "no gVisor of 20230801 or newer"),
        ("kata", "is Kata"),
        ("crun", "the engine has no runtime 'crun' (it has: io.containerd"),
    ],
)
async def test_C26_what_is_not_what_it_is_called_refuses_to_start(
    liars: DockerSettings, folder: Path, runtime: str, word: str
) -> None:
    with pytest.raises(Misconfigured, match=word.replace("(", r"\(")):
        async with backend(replace(liars, runtime=runtime), folder):
            pass


async def test_C26_a_backend_that_was_never_entered_refuses_at_its_first_box(
    liars: DockerSettings, folder: Path
) -> None:
    made = backend(replace(liars, runtime="runsc"), folder)
    try:
        with pytest.raises(Misconfigured, match="should be gVisor"):
            await make(made)
        assert not await made.owned()
    finally:
        await made.aclose()


async def test_C26_a_program_that_says_it_is_gvisor_is_found_out_by_its_first_box(
    liars: DockerSettings, folder: Path
) -> None:
    async with backend(replace(liars, runtime="runsc-echo"), folder) as made:
        with pytest.raises(Misconfigured, match=r"is not what its name says.*no gVisor"):
            await make(made)
        assert not await made.owned()


@pytest.mark.parametrize("runtime", ["runc", "mine"])
async def test_the_same_engine_makes_boxes_under_an_honest_name(
    liars: DockerSettings, folder: Path, runtime: str
) -> None:
    """The control: without it, all of the above could fail for another reason."""
    async with backend(replace(liars, runtime=runtime), folder) as made:
        box = await make(made)
        assert (await box.sandbox.health()).kernel.version.startswith("Linux version")  # type: ignore[attr-defined]
        await box.sandbox.aclose()
        await made.destroy(box.sandbox.id)
        assert not await made.owned()


@pytest.mark.parametrize("runtime", ["runc", "mine"])
async def test_C8_an_old_runc_refuses_unless_it_is_accepted_and_then_says_so(
    liars: DockerSettings, folder: Path, runtime: str
) -> None:
    async with backend(replace(liars, runtime=runtime), folder) as made:
        notices = made.notices
    if not notices:
        pytest.skip("this machine's runc has the fixes")
    assert "CVE-2025-31133" in notices[0]
    with pytest.raises(Misconfigured, match="--accept-old-runc"):
        async with backend(replace(liars, runtime=runtime, accept_old_runc=False), folder):
            pass


@needs("runsc")
async def test_gvisor_under_a_name_that_means_nothing_is_taken_for_gvisor(folder: Path) -> None:
    async with private_engine({"walled": (real("runsc"), *GVISOR_ARGUMENTS)}) as socket:
        deployment = f"walled-{secrets.token_hex(3)}"
        settings = DockerSettings(
            deployment=deployment,
            host_id="test",
            state_dir=folder / deployment,
            memory_limit_mib=1024,
            socket=socket,
            runtime="walled",
        )
        async with backend(settings, folder) as made:
            box = await make(made)
            assert "gVisor" in (await box.sandbox.health()).kernel.log  # type: ignore[attr-defined]
            await box.sandbox.aclose()
            await made.destroy(box.sandbox.id)
