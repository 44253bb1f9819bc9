"""What gateway, host and record cost per call: the real server over the fake backend, beside a bare FastAPI route under the same client.

The client is a process of its own on the second core, so that the server's core does nothing but serve.
"""

import asyncio
import json
import os
import sys

from benchmarks.measure import Budget, Sample
from tests.e2e.harness import Server, free_port

CALLS = 4000
IN_FLIGHT = 32
ROLLOUTS = 16
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


async def bare() -> tuple[float, ...]:
    port = free_port()
    process = await asyncio.create_subprocess_exec("taskset", "-c", "0", sys.executable, "-c", BARE_ROUTE, str(port))
    try:
        return await client(f"http://127.0.0.1:{port}", "bare")
    finally:
        process.kill()
        await process.wait()


async def ours(server: Server) -> tuple[float, ...]:
    for thread in os.listdir(f"/proc/{server.pid}/task"):
        os.sched_setaffinity(int(thread), {0})
    return await client(server.url, "ours")


async def run(server: Server) -> tuple[list[Budget], list[Sample]]:
    rounds = [(await bare(), await ours(server)) for _ in range(1)]
    bare_total = sum(b[0] for b, _ in rounds)
    ours_total = sum(o[0] for _, o in rounds)
    samples = [
        Sample(name="bare FastAPI route", seconds=rounds[0][0][1:]),
        Sample(name="gateway over fake backend", seconds=rounds[0][1][1:]),
    ]
    return [
        Budget(
            name="own cost per call, record included",
            value=ours_total / bare_total,
            limit=3.0,
            unit="x",
            baseline="bare FastAPI route",
        ),
        Budget(
            name="calls per second on one core",
            value=CALLS / ours_total,
            limit=600.0,
            unit="calls/s",
            baseline="none (absolute)",
            at_least=True,
        ),
    ], samples
