"""Boxes outlive whoever made them, are found again, and go without a trace, however their maker died."""

import asyncio
import os
import secrets
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.backends.local import processes
from orchestrator.backends.local.backend import LocalBackend
from orchestrator.backends.local.settings import HOST_IMAGE, LocalSettings
from orchestrator.errors import Misconfigured, SandboxLost, SandboxOutOfMemory, StartFailed
from orchestrator.interfaces import SandboxSpec
from orchestrator.models import Limits, SandboxId
from orchestrator.operations import Exec
from orchestrator.repos import loops, mounts
from tests.backends.docker.boxes import Box
from tests.backends.local.conftest import Open, entered, new_id
from tests.needs import needs

pytestmark = [pytest.mark.anyio, needs("bwrap", "libseccomp", "root")]

MAKES_A_BOX = """
import asyncio, os, sys, time
from pathlib import Path
from orchestrator.backends.local.backend import LocalBackend
from orchestrator.backends.local.settings import LocalSettings
from orchestrator.interfaces import SandboxSpec
from orchestrator.models import Limits
from orchestrator.repos.workspace import make_workspaces

async def main(state_dir, deployment, box):
    settings = LocalSettings(deployment=deployment, state_dir=Path(state_dir, deployment))
    async with LocalBackend(settings, make_workspaces(Path(state_dir), deployment)) as backend:
        print("entered", flush=True)
        spec = SandboxSpec(image="host", template=None, limits=Limits(memory_mib=64))
        await backend.create(box, spec, deadline=time.monotonic() + 30)
        print("made", flush=True)
        await asyncio.sleep(60)

asyncio.run(main(*sys.argv[1:]))
"""
SPEC = SandboxSpec(image=HOST_IMAGE, template=None, limits=Limits(memory_mib=64))


def traces(settings: LocalSettings) -> Sequence[object]:
    """Mounts, loops and cgroups of the deployment, and processes that know its folder."""
    boxes = settings.state_dir / "boxes"
    backing = [path for path in loops.backing_files().values() if boxes in path.parents]
    groups = [path for path in Path("/sys/fs/cgroup").glob(f"*/tiltyard/{settings.deployment}/*") if path.is_dir()]
    running = [
        entry
        for entry in os.listdir("/proc")
        if entry.isdigit() and str(boxes).encode() in _command_line(entry) and int(entry) != os.getpid()
    ]
    return [*mounts.mounted_below(boxes), *backing, *groups, *running, *boxes.iterdir()]


def _command_line(pid: str) -> bytes:
    try:
        return Path("/proc", pid, "cmdline").read_bytes()
    except OSError:
        return b""


async def killed_maker(settings: LocalSettings, box: SandboxId, *, after: bytes, delay_s: float = 0.0) -> None:
    """A process that makes a box, killed when it said `after`."""
    arguments = (str(settings.state_dir.parent), settings.deployment, box)
    maker = await asyncio.create_subprocess_exec(
        sys.executable, "-c", MAKES_A_BOX, *arguments, stdout=asyncio.subprocess.PIPE
    )
    assert maker.stdout is not None
    try:
        while (said := await maker.stdout.readline()).strip() != after:
            assert said, "the maker ended early"
        await asyncio.sleep(delay_s)
    finally:
        maker.kill()
        await maker.wait()


async def test_a_box_outlives_its_killed_maker(backend: LocalBackend, settings: LocalSettings) -> None:
    name = new_id()
    await killed_maker(settings, name, after=b"made")
    assert [(box.id, box.running) for box in await backend.owned()] == [(name, True)]
    sandbox = await backend.attach(name)
    box = Box(sandbox)
    await box.lease()
    assert await box.text("echo alive") == "alive\n"
    await sandbox.aclose()
    await backend.destroy(name)
    assert traces(settings) == []


@pytest.mark.parametrize("delay_s", [0.0, 0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.08])
async def test_a_maker_killed_at_any_moment_leaves_what_can_be_removed(
    backend: LocalBackend, settings: LocalSettings, delay_s: float
) -> None:
    name = new_id()
    await killed_maker(settings, name, after=b"entered", delay_s=delay_s)
    for box in await backend.owned():
        assert box.id == name
        await backend.destroy(name)
    assert traces(settings) == []


async def test_a_destroyed_box_leaves_nothing(backend: LocalBackend, settings: LocalSettings, opened: Open) -> None:
    box = await opened(memory_mib=64)
    await box.text("setsid sh -c 'trap \"\" TERM; sleep 60 & sleep 60' >/dev/null 2>&1 & echo started")
    assert traces(settings) != []
    await backend.destroy(box.sandbox.id)
    assert traces(settings) == []


async def test_a_box_that_owes_processor_time_is_ended(
    backend: LocalBackend, settings: LocalSettings, opened: Open
) -> None:
    """Reclaiming memory is done in the kernel, beyond a quota, and owed afterwards: who waits for his share is deaf to every signal."""
    box = await opened(pids=256)
    await box.sh("for n in $(seq 200); do (while :; do :; done) & done >/dev/null 2>&1; sleep 1")
    group = Path("/sys/fs/cgroup/cpu/tiltyard", settings.deployment, box.sandbox.id)
    (group / "cpu.cfs_period_us").write_text("1000000")
    (group / "cpu.cfs_quota_us").write_text("1000")
    await backend.destroy(box.sandbox.id)
    assert not traces(settings)


async def test_a_killed_monitor_takes_its_box_along(
    backend: LocalBackend, settings: LocalSettings, opened: Open
) -> None:
    box = await opened(memory_mib=64)
    folder = settings.state_dir / "boxes" / box.sandbox.id
    record, status = processes.read_record(folder), processes.read_status(folder)
    assert record is not None
    assert status.child is not None
    agent = processes.known(status.child)
    assert agent is not None
    watched = processes.watch(agent)
    assert watched is not None
    os.kill(record.process.pid, signal.SIGKILL)
    await asyncio.to_thread(processes._wait_ended, [watched])
    os.close(watched)
    with pytest.raises(SandboxLost):
        await box.text("true")
    with pytest.raises(SandboxLost):
        await backend.attach(box.sandbox.id)


async def test_a_kill_from_outside_is_ours(settings: LocalSettings, opened: Open) -> None:
    box = await opened(memory_mib=64)
    child = processes.read_status(settings.state_dir / "boxes" / box.sandbox.id).child
    assert child is not None
    os.kill(child, signal.SIGKILL)
    with pytest.raises(SandboxLost, match="no doing of its commands"):
        await box.text("true")


async def test_a_death_of_memory_is_the_models(settings: LocalSettings, opened: Open) -> None:
    """Everything in the box dies of memory, its agent included: as when the kernel finds nothing else to kill."""
    box = await opened(memory_mib=64)
    hog = 'python3 -c "x = bytearray(200 << 20)"'
    assert (await box.sh(hog)).oom_killed
    child = processes.read_status(settings.state_dir / "boxes" / box.sandbox.id).child
    assert child is not None
    os.kill(child, signal.SIGKILL)
    with pytest.raises(SandboxOutOfMemory):
        await box.text("true")


async def test_a_box_that_is_silent_at_a_deadline_and_full_of_memory_is_the_models(
    settings: LocalSettings, opened: Open
) -> None:
    box = await opened(memory_mib=64)
    await box.text("python3 -c 'import time; x = bytearray(52 << 20); time.sleep(60)' >/dev/null 2>&1 & sleep 1")
    child = processes.read_status(settings.state_dir / "boxes" / box.sandbox.id).child
    assert child is not None
    os.kill(child, signal.SIGSTOP)
    with pytest.raises(SandboxOutOfMemory, match="answers no more"):
        await box.run(Exec(argv=("true",), timeout_s=1), timeout_s=2)
    os.kill(child, signal.SIGCONT)


async def test_the_same_id_is_made_once(backend: LocalBackend, opened: Open) -> None:
    box = await opened(memory_mib=64)
    with pytest.raises(StartFailed, match="exists already"):
        await backend.create(box.sandbox.id, SPEC, deadline=time.monotonic() + 10)
    assert await box.text("echo first") == "first\n"


async def test_a_box_that_cannot_start_says_why(settings: LocalSettings) -> None:
    def broken(*_: object, **__: object) -> list[str]:
        return ["bwrap", "--no-such-option"]

    async with entered(replace(settings, deployment=f"x-{secrets.token_hex(4)}"), broken) as made:
        with pytest.raises(StartFailed, match="no-such-option"):
            await made.create(new_id(), SPEC, deadline=time.monotonic() + 10)
        assert not await made.owned()


async def test_boxes_of_another_backend_are_not_taken_over(short_path: Path) -> None:
    theirs = LocalSettings(deployment="theirs", state_dir=short_path / "theirs")
    (theirs.state_dir / "boxes" / "container-1").mkdir(parents=True)
    with pytest.raises(Misconfigured, match="another backend"):
        async with entered(theirs):
            pass
