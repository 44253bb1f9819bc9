"""What gateway, host and record cost per call: the real server over the fake backend, beside a bare FastAPI route under the same client.

The client is a process of its own on the second core, so that the server's core does nothing but serve.
"""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import Budget, Sample
from tests.e2e.harness import Server, free_port

CALLS = 4000
IN_FLIGHT = 32
ROLLOUTS = 16
ROUNDS = 3
BARE_ROUTE = """
import json, sys
import uvicorn
from fastapi import FastAPI, Request
app = FastAPI()
@app.post("/tools")
async def tools(request: Request) -> dict[str, str]:
    body = json.loads(await request.body())
    return {"type": "function_call_output", "call_id": body["call_id"], "id": "", "output": "ok"}
uvicorn.run(app, port=int(sys.argv[1]), log_level="error", access_log=False)
"""


async def client(url: str, salt: str) -> tuple[float, ...]:
    """Seconds each call took, with IN_FLIGHT of them at once; the first element is the whole run's seconds."""
    process = await asyncio.create_subprocess_exec(
        "taskset", "-c", "1", sys.executable, "-m", "benchmarks.load", url, str(CALLS), str(IN_FLIGHT), str(ROLLOUTS), salt,
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, _ = await process.communicate()
    assert process.returncode == 0
    return tuple(json.loads(output))


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What CALLS calls took: processor seconds of the serving process with all its threads, seconds by the clock, and each call's."""

    processor_s: float
    whole_s: float
    each_s: tuple[float, ...]


def processor_s(pid: int) -> float:
    """User and system time of a process so far, in the kernel's ticks of a hundredth of a second."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def one_round(pid: int, url: str, salt: str) -> Round:
    before = processor_s(pid)
    whole, *each = await client(url, salt)
    return Round(processor_s=processor_s(pid) - before, whole_s=whole, each_s=tuple(each))


@asynccontextmanager
async def bare_route() -> AsyncIterator[tuple[int, str]]:
    """(pid, URL) of the bare route, on the server's core."""
    port = free_port()
    process = await asyncio.create_subprocess_exec("taskset", "-c", "0", sys.executable, "-c", BARE_ROUTE, str(port))
    try:
        yield process.pid, f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        await process.wait()


async def run(server: Server) -> tuple[list[Budget], list[Sample]]:
    """The ratio is of processor time, which a busy machine stretches less than the clock; the sum of ROUNDS turn-about rounds."""
    for thread in os.listdir(f"/proc/{server.pid}/task"):
        os.sched_setaffinity(int(thread), {0})
    bare: list[Round] = []
    ours: list[Round] = []
    async with bare_route() as (pid, url):
        for number in range(ROUNDS + 1):  # the first warms both up
            bare.append(await one_round(pid, url, f"bare{number}"))
            ours.append(await one_round(server.pid, server.url, f"ours{number}"))
    bare, ours = bare[1:], ours[1:]
    ratio = sum(each.processor_s for each in ours) / sum(each.processor_s for each in bare)
    return [
        Budget(
            name="own cost per call, record included",
            value=ratio,
            limit=3.0,
            unit="x",
            baseline="bare FastAPI route, processor time",
        ),
        Budget(
            name="calls per second on one core",
            value=CALLS * ROUNDS / sum(each.whole_s for each in ours),
            limit=600.0,
            unit="calls/s",
            baseline="none (absolute)",
            at_least=True,
        ),
    ], [
        Sample(name="bare FastAPI route, 32 in flight", seconds=bare[-1].each_s),
        Sample(name="gateway over fake backend, 32 in flight", seconds=ours[-1].each_s),
    ]
