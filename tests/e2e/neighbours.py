"""One box that abuses every resource, one that works beside it, and how the machine fares: shared by the test and the benchmark."""

import asyncio
import itertools
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from tests.e2e.harness import Server, Trainer

ABUSES = {
    "fork bomb": "bomb() { bomb | bomb & }; bomb; sleep 5",
    "memory hog": "exec tail /dev/zero",
    "disk filler": "dd if=/dev/zero of=fill bs=1M; dd if=/dev/zero of=/tmp/fill bs=1M; rm -f fill /tmp/fill",
    "output flood": "exec yes flood",
    "cpu spinner": "for i in 1 2 3 4; do (while :; do :; done) & done; sleep 5",
}
"""Each runs until its time-out, again and again, all at once."""
ABUSE_S = 5.0
MIB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """What the neighbour and the machine felt. `echo_s`: each call of the neighbour. Falls are against the quiet state."""

    quiet_s: tuple[float, ...]
    noisy_s: tuple[float, ...]
    abuses: dict[str, int]
    """How often each was run to its end."""
    memory_fall_mib: float
    disk_fall_mib: float
    server_rss_mib: float


def available_mib() -> float:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("/proc/meminfo names no MemAvailable")


def rss_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MIB


async def echoes(neighbour: Trainer, numbers: "itertools.count[int]", *, until: float, at_least: int) -> list[float]:
    """Calls one after another until the instant `until` (monotonic) and at least so many; every reply must be right."""
    seconds: list[float] = []
    while len(seconds) < at_least or time.monotonic() < until:
        number = next(numbers)
        started = time.perf_counter()
        reply = await neighbour.call(f"echo-{number}", "shell", command=f"echo {number}")
        seconds.append(time.perf_counter() - started)
        assert reply.strip() == str(number), reply
    return seconds


async def abuse(bully: Trainer, name: str, command: str, *, until: float) -> int:
    """Run `command` over and over; whatever it is answered, it is answered. Returns how often."""
    turns = 0
    while time.monotonic() < until:
        turns += 1
        await bully.call(f"{name}-{turns}", "shell", command=command, timeout_s=ABUSE_S)
    return turns


async def watch(server: Server, *, seconds: float, at_least: int) -> Watched:
    """The neighbour alone for `seconds`, then beside the bully for as long."""
    numbers = itertools.count()
    timeout = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        neighbour = Trainer(server=server, trace_id="trace_neighbour", task_id="calc-tests", session=session)
        bully = Trainer(server=server, trace_id="trace_bully", task_id="calc-files", session=session)
        await bully.call("open", "shell", command="true")
        await echoes(neighbour, numbers, until=0, at_least=20)
        memory, disk = available_mib(), shutil.disk_usage(server.state).free / MIB
        quiet = await echoes(neighbour, numbers, until=time.monotonic() + seconds, at_least=at_least)
        until = time.monotonic() + seconds
        async with asyncio.TaskGroup() as group:
            bullies = {
                name: group.create_task(abuse(bully, name, command, until=until)) for name, command in ABUSES.items()
            }
            noisy = await echoes(neighbour, numbers, until=until, at_least=at_least)
            memory_fall = memory - available_mib()
            disk_fall = disk - shutil.disk_usage(server.state).free / MIB
        return Watched(
            quiet_s=tuple(quiet),
            noisy_s=tuple(noisy),
            abuses={name: task.result() for name, task in bullies.items()},
            memory_fall_mib=memory_fall,
            disk_fall_mib=disk_fall,
            server_rss_mib=rss_mib(server.pid),
        )
