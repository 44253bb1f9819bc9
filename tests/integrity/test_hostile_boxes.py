"""Hostile life seen from the host: what the engine writes, what a pause and an end do to what will not die, what evidence comes of it."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from orchestrator.agent.binary import probe_binary
from orchestrator.conformance.file_checks import packed
from orchestrator.hosts.evidence import unpack
from orchestrator.operations import (
    Change,
    Delta,
    DeltaResult,
    Exec,
    ExecResult,
    Freeze,
    FreezeResult,
    Get,
    GetResult,
    Put,
    PutResult,
    Write,
    WriteResult,
)
from tests.integrity.live import Live, backend, engine, live
from tests.needs import needs

pytestmark = [pytest.mark.anyio, needs("docker", "root")]

PROBE = "/tmp/tiltyard-probe"
LIFE_S = 40
FLOOD_BYTES = 5 * 1024**3
RUNTIMES = ["runc", pytest.param("runsc", marks=needs("runsc"))]


@asynccontextmanager
async def hostile(runtime: str) -> AsyncIterator[Live]:
    """A box that has the probe."""
    async with backend(runtime) as made, live(made, runtime=runtime) as box:
        tar = packed({"tiltyard-probe": await asyncio.to_thread(probe_binary().read_bytes)}, 0o755)
        assert isinstance(await box.box.run(Put(path="/tmp", tar=tar)), PutResult)
        yield box


async def beats(box: Live) -> int:
    return int(await box.box.text("wc -c < beat"))


async def beating(box: Live) -> bool:
    before = await beats(box)
    await asyncio.sleep(0.5)
    return await beats(box) > before


def files_below(folder: Path, pattern: str = "*") -> int:
    """Bytes of regular files."""
    return sum(path.stat().st_size for path in folder.rglob(pattern) if path.is_file() and not path.is_symlink())


@pytest.mark.parametrize("runtime", RUNTIMES)
async def test_a_flood_leaves_nothing_in_the_engines_log_or_the_agents_folder(runtime: str) -> None:
    """C16: the engine keeps no log of a box, and the agent's folder grows by what is kept of a reply."""
    async with hostile(runtime) as box:
        assert box.inspected["LogPath"] == ""
        before = files_below(box.agent_dir)
        flood = Exec(argv=(PROBE, "flood", str(FLOOD_BYTES)), timeout_s=2)
        result = await box.box.run(flood, timeout_s=20)
        assert isinstance(result, ExecResult)
        assert result.timed_out
        assert result.stdout.cut_bytes > 1_000_000
        assert files_below(box.agent_dir) - before < 2**20
        with engine() as api:
            container = Path(api.info()["DockerRootDir"], "containers", box.container)
        assert files_below(container, "*.log*") == 0
        assert files_below(container) < 2**20


@pytest.mark.parametrize("runtime", RUNTIMES)
async def test_a_pause_stops_what_is_deaf_and_an_unpause_wakes_it(runtime: str) -> None:
    """C33: no signal reaches the daemons, the cgroup does; the box goes on where it stood."""
    async with hostile(runtime) as box:
        await box.box.text(f"for i in 1 2 3; do {PROBE} deaf beat {LIFE_S}; done")
        assert await beating(box)
        size = await beats(box)
        await asyncio.to_thread(box.pause)
        await asyncio.sleep(1.0)
        await asyncio.to_thread(box.unpause)
        grown = await beats(box) - size
        assert grown < 3 * 50 * 0.8, "a second of three daemons is 150 beats: they slept"
        assert await beating(box)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("kind", ["deaf", "runner"])
async def test_an_end_leaves_no_process_of_what_will_not_die(runtime: str, kind: str) -> None:
    """C18, C33: when destroy returns, no process of the box is left on the machine."""
    async with hostile(runtime) as box:
        await box.box.text(f"for i in 1 2 3; do {PROBE} {kind} beat {LIFE_S}; done")
        assert await beating(box)
        assert processes_of(box.container)
        began = time.monotonic()
    assert time.monotonic() - began < 20
    assert processes_of(box.container) == []


def processes_of(container: str) -> list[str]:
    """Pids whose cgroup is the container's."""
    return [path.name for path in Path("/proc").iterdir() if path.name.isdigit() and container in cgroup(path)]


def cgroup(process: Path) -> str:
    try:
        return (process / "cgroup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


@pytest.mark.parametrize("runtime", RUNTIMES)
async def test_evidence_of_odd_names_and_sizes_is_taken_strictly(runtime: str) -> None:
    """C28: the agent's archive of what a model may leave behind is one that the host's strict reader takes, byte for byte."""
    files = {
        "ü" * 100: b"umlauts",
        "a/" * 60 + "n" * 255: b"long",
        "new\nline": b"lines",
        "-rf *": b"",
        "'\" $(x)": b"q" * 513,
        "zeros": bytes(70_000),
        "\u202egpj.exe": b"bidi",
    }
    async with hostile(runtime) as box:
        for path, data in files.items():
            assert isinstance(await box.box.run(Write(path=path, data=data)), WriteResult)
        assert isinstance(await box.box.run(Freeze()), FreezeResult)
        delta = await box.box.run(Delta(root=".", manifest={}))
        assert isinstance(delta, DeltaResult)
        wanted: list[Change] = [change for change in delta.changes if change.path in files]
        assert {change.path: change.sha256 for change in wanted} == {
            path: hashlib.sha256(data).hexdigest() for path, data in files.items()
        }
        got = await box.box.run(Get(root=".", paths=tuple(files), max_bytes=2**20))
        assert isinstance(got, GetResult)
        assert unpack(got.tar, wanted) == files
