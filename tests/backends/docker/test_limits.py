"""Boxes that use up what they may, and their neighbours, who must not feel it beyond a fair share of the machine."""

import asyncio
import os
import resource
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import pytest

from orchestrator.backends.docker.backend import DockerBackend
from orchestrator.backends.docker.engine import Engine
from orchestrator.errors import SandboxDead
from orchestrator.operations import Failure, FailureCode, Read, ReadResult, Write, WriteResult
from tests.backends.docker.boxes import Box
from tests.backends.docker.conftest import Open
from tests.needs import needs

pytestmark = [pytest.mark.anyio, needs("docker", "root")]

MIB = 1024 * 1024
NEIGHBOUR_RATIO = 100
NEIGHBOUR_FLOOR_S = 1.0
"""A neighbour's median call may not become both this much slower and slower than a second: far beyond noise, far below starvation."""


@dataclass
class Pulse:
    """How long a neighbour's calls took."""

    before_s: list[float] = field(default_factory=list)
    during_s: list[float] = field(default_factory=list)

    @property
    def unaffected(self) -> bool:
        worse = median(self.during_s)
        return worse < max(NEIGHBOUR_FLOOR_S, NEIGHBOUR_RATIO * median(self.before_s))


async def beat(box: Box) -> float:
    began = time.perf_counter()
    assert await box.text("echo alive", timeout_s=60) == "alive\n"
    return time.perf_counter() - began


@asynccontextmanager
async def heartbeat(neighbour: Box) -> AsyncIterator[Pulse]:
    """Beats before, and all through the body."""
    pulse = Pulse(before_s=[await beat(neighbour) for _ in range(5)])
    stop = asyncio.Event()

    async def on() -> None:
        while not stop.is_set() or not pulse.during_s:
            pulse.during_s.append(await beat(neighbour))

    task = asyncio.create_task(on())
    try:
        yield pulse
    finally:
        stop.set()
        await task


async def test_C11_a_hog_is_killed_at_the_limit_and_its_box_goes_on(opened: Open, shared: Box) -> None:
    box = await opened(memory_mib=128)
    fits = "x = bytearray(40_000_000); print(len(x))"
    assert await box.text(f"python3 -c '{fits}'") == "40000000\n"
    async with heartbeat(shared) as pulse:
        hog = await box.sh("python3 -c 'x = bytearray(160_000_000); print(len(x))'")
    assert hog.exit_code != 0
    assert b"160000000" not in hog.stdout.head
    assert await box.text("echo on") == "on\n"
    assert pulse.unaffected, pulse


async def test_C11_a_box_whose_memory_is_used_up_for_good_is_dead_by_its_own_doing(
    backend: DockerBackend, opened: Open, shared: Box
) -> None:
    box = await opened(memory_mib=64)
    async with heartbeat(shared) as pulse:
        with pytest.raises(SandboxDead, match="memory"):
            await use_up_memory(box)
    assert pulse.unaffected, pulse
    with pytest.raises(SandboxDead):
        await box.sh("true")
    with pytest.raises(SandboxDead):
        await backend.attach(box.sandbox.id)


async def use_up_memory(box: Box) -> None:
    """Many processes, each smaller than the agent and no likelier to be picked, so that the kernel picks the agent."""
    hogs = "for i in $(seq 100); do (x=$(head -c 2000000 /dev/zero | tr '\\0' x); sleep 60) & done; sleep 3"
    for _ in range(10):
        await box.sh(f"echo 0 > /proc/self/oom_score_adj; {hogs}", timeout_s=5)


async def test_C11_held_memory_is_told_apart_from_page_cache(opened: Open, engine: Engine) -> None:
    """By it, a box that thrashes and is silent is told from one that was stopped."""
    box = await opened(memory_mib=128)
    container = f"tiltyard-{box.sandbox.id}"
    await box.text("head -c 100M /dev/zero > cached; cat cached > /dev/null")
    assert await engine.memory_share(container) < 0.3
    await box.text("python3 -c 'import time; x = b\"x\" * 90_000_000; time.sleep(60)' >/dev/null 2>&1 & sleep 1")
    assert await engine.memory_share(container) > 0.6


FILL_SOCKETS = """
import socket
held, parked = [], {}
for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
    parked[kind] = 0
    for _ in range(60):
        there, here = socket.socket(socket.AF_INET, kind), socket.socket(socket.AF_INET, kind)
        for each in (there, here):
            each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 24)
            each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 24)
        there.bind(("127.0.0.1", 0))
        if kind is socket.SOCK_STREAM:
            there.listen()
        here.connect(there.getsockname())
        held += [here, there.accept()[0] if kind is socket.SOCK_STREAM else there]
        here.setblocking(False)
        held[-1].setblocking(False)
        try:
            for _ in range(256):
                here.send(b"x" * 32768)
        except OSError:
            pass
for each in held:
    kind = each.type
    try:
        while data := each.recv(1 << 16):
            parked[kind] += len(data)
    except OSError:
        pass
print(*(size >> 20 for size in parked.values()))
"""
"""MiB that could be left lying in TCP and in UDP sockets at once."""


async def test_C11_what_lies_in_sockets_is_limited(opened: Open) -> None:
    box = await opened(memory_mib=128)
    await box.text(f"cat >fill.py <<'EOF'\n{FILL_SOCKETS}\nEOF")
    streams, packets = map(int, (await box.text("python3 fill.py")).split())
    assert 1 <= streams <= 64
    assert packets <= 64


async def test_C33_a_paused_box_can_be_destroyed(backend: DockerBackend, opened: Open) -> None:
    box = await opened()
    process = await asyncio.create_subprocess_exec(
        "docker", "pause", f"tiltyard-{box.sandbox.id}", stdout=asyncio.subprocess.DEVNULL
    )
    assert await process.wait() == 0
    await backend.destroy(box.sandbox.id)
    assert box.sandbox.id not in {entry.id for entry in await backend.owned()}


async def test_C12_a_fork_bomb_hurts_its_own_box_only(backend: DockerBackend, opened: Open, shared: Box) -> None:
    box = await opened(pids=64)
    bomb = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
    async with heartbeat(shared) as pulse:
        try:
            result = await box.sh(f"python3 -c '{bomb}'", timeout_s=3)
            assert result.timed_out
            assert await box.text("echo on") == "on\n"
        except SandboxDead:
            pass  # allowed: its own doing
    assert pulse.unaffected, pulse
    began = time.monotonic()
    await backend.destroy(box.sandbox.id)
    assert time.monotonic() - began < 30
    assert box.sandbox.id not in {entry.id for entry in await backend.owned()}


async def test_C12_processes_stop_at_the_limit_and_the_agent_keeps_its_own(opened: Open) -> None:
    box = await opened(pids=32)
    starter = (
        "import subprocess as s\nn = 0\ntry:\n    while n < 500:\n        s.Popen(['sleep', '20']); n += 1\n"
        "except OSError: pass\nprint(n)"
    )
    started = int(await box.text(f'python3 -c "{starter}"'))
    assert 10 < started < 32
    answer = await box.run(Read(path="/etc/hostname"))
    assert isinstance(answer, ReadResult), "the agent answers while its box is full"
    refused = await box.sh("true; true")
    assert refused.exit_code in (0, 1, 2, 127, 254) or refused.signal


async def test_C13_spinners_get_their_share_only(opened: Open) -> None:
    box = await opened(cpus=0.5)
    spin = (
        "import os, time\nend = time.monotonic() + 2\nfor _ in range(4):\n    if os.fork() == 0:\n"
        "        while time.monotonic() < end: pass\n        os._exit(0)\n"
        "for _ in range(4): os.wait()\nt = os.times()\nprint(t.children_user + t.children_system)"
    )
    used_s = float(await box.text(f'python3 -c "{spin}"'))
    assert 0.1 < used_s < 2 * 0.5 * 1.5, "a period's quota of slack at both ends"


async def test_C15_a_full_disk_says_so_and_the_box_goes_on(opened: Open) -> None:
    box = await opened(disk_mib=48)
    free_before = shutil.disk_usage("/var/lib").free
    filled = await box.sh("dd if=/dev/zero of=big bs=1M count=400 2>&1")
    assert filled.exit_code != 0
    assert b"No space left" in filled.stdout.head
    size = int(await box.text("stat -c %s big"))
    assert 24 * MIB < size <= 48 * MIB
    assert free_before - shutil.disk_usage("/var/lib").free < 200 * MIB
    for place in ("/tmp/x", "/home/agent/x"):
        assert (await box.sh(f"dd if=/dev/zero of={place} bs=1M count=40")).exit_code != 0, "one cap for all of them"
    refused = await box.run(Write(path="more.txt", data=b"x" * 2_000_000))
    assert isinstance(refused, Failure)
    assert refused.code is FailureCode.NO_SPACE
    assert isinstance(await box.run(Read(path="big", limit_bytes=10)), ReadResult)
    await box.text("rm -f big /tmp/x /home/agent/x")
    assert isinstance(await box.run(Write(path="more.txt", data=b"x" * 2_000_000)), WriteResult)


async def test_C15_inodes_run_out_in_the_box_not_on_the_machine(opened: Open) -> None:
    box = await opened(disk_mib=64, inodes=2000)
    maker = (
        "n = 0\ntry:\n    while n < 50_000: open(f'f{n}', 'w').close(); n += 1\nexcept OSError as e: print(n, e.errno)"
    )
    made, errno = (await box.text(f'mkdir many && cd many && python3 -c "{maker}"')).split()
    assert 1000 < int(made) < 2500
    assert int(errno) == 28
    await box.text("rm -r many; echo ok > again")


async def test_C15_shared_memory_is_bounded(opened: Open) -> None:
    box = await opened(memory_mib=256)
    assert (await box.sh("head -c 100M /dev/zero > /dev/shm/x")).exit_code != 0
    assert int(await box.text("stat -c %s /dev/shm/x")) <= 64 * MIB
    assert (await box.sh("cp /bin/true /dev/shm/t && /dev/shm/t")).exit_code != 0


async def test_C16_a_flood_of_output_is_cut_and_costs_the_server_nothing(opened: Open, shared: Box) -> None:
    box = await opened()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with heartbeat(shared) as pulse:
        result = await box.sh("yes", timeout_s=2, output_limit_bytes=65_536)
    assert result.timed_out
    assert len(result.stdout.head) + len(result.stdout.tail) <= 65_536
    assert result.stdout.total_bytes > 10 * MIB
    assert result.stdout.cut_bytes > 0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 * 1024, "KiB"
    assert pulse.unaffected, pulse
    log = await asyncio.create_subprocess_exec(
        "docker", "inspect", "--format", "{{.HostConfig.LogConfig.Type}}", f"tiltyard-{box.sandbox.id}",
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert (await log.communicate())[0] == b"none\n"


async def test_the_agent_outlives_what_its_commands_send_it(opened: Open) -> None:
    box = await opened()
    tried = await box.sh("for s in KILL TERM INT STOP SEGV; do kill -$s 1 && exit 9; done; kill -9 -1; echo still")
    assert tried.exit_code != 9
    assert await box.text("echo alive") == "alive\n"


async def test_links_do_not_lead_the_agent_out(opened: Open) -> None:
    box = await opened()
    await box.text("echo mine > mine; ln -s mine near; ln -s /run/tiltyard/config.json far; mkfifo pipe")
    assert isinstance(await box.run(Read(path="mine")), ReadResult)
    for path in ("near", "far", "pipe", "/proc/1/environ", "/dev/zero", "../etc/passwd", "/run/tiltyard/state"):
        assert isinstance(await box.run(Read(path=path)), Failure), path


async def test_C19_no_core_file_is_written(opened: Open) -> None:
    box = await opened()
    crashed = await box.sh("python3 -c 'import ctypes; ctypes.string_at(0)'")
    assert crashed.exit_code in (None, 139)
    assert await box.text("ls -A /workspace /tmp /home/agent | grep -c core || true") == "0\n"


async def test_nothing_is_left_of_boxes_that_were_hurt(backend: DockerBackend, opened: Open) -> None:
    """Processes of a box that is destroyed while commands run are gone when `destroy` returns."""
    box = await opened()
    marker = f"{os.getpid()}{time.monotonic_ns()}"
    await box.text(f"for i in 1 2 3; do sh -c 'exec -a x sleep 1000.{marker}' >/dev/null 2>&1 & done; true")
    await box.text(f"sleep 1000{marker} >/dev/null 2>&1 &")
    assert running_with(marker), "the control: seen from outside"
    await backend.destroy(box.sandbox.id)
    assert not running_with(marker)


def running_with(marker: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if marker.encode() in path.read_bytes():
                found.append(path.parent.name)
        except OSError:
            continue
    return found
