"""A tool call: through the gateway, beside a bare subprocess, `docker exec`, and swe-rex on the same work."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import aiohttp

from benchmarks.measure import Budget, Sample, interleaved
from tests.e2e.harness import Server

RUNS = 150


async def bare_subprocess() -> None:
    process = await asyncio.create_subprocess_exec("bash", "-c", "true")
    await process.wait()


def gateway_call(session: aiohttp.ClientSession, server: Server) -> Callable[[], Awaitable[None]]:
    """`shell true` in a box that is already there."""
    numbers = itertools.count()

    async def once() -> None:
        body = {
            "type": "function_call",
            "call_id": f"call_{next(numbers)}",
            "name": "shell",
            "arguments": json.dumps({"command": "true"}),
            "trace_id": "trace_bench",
            "item": {"task_id": "calc-tests"},
        }
        async with session.post(f"{server.url}/tools", json=body) as response:
            assert response.status == 200, await response.text()
            await response.read()

    return once


def docker_exec(container: str) -> Callable[[], Awaitable[None]]:
    async def once() -> None:
        command = ("docker", "exec", container, "bash", "-c", "true")
        process = await asyncio.create_subprocess_exec(*command)
        assert await process.wait() == 0

    return once


@asynccontextmanager
async def swerex_call() -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """The peer's own runtime server over loopback HTTP, as it runs inside its containers."""
    from swerex.runtime.abstract import Command
    from swerex.runtime.remote import RemoteRuntime

    from tests.e2e.harness import free_port

    port = free_port()
    server = await asyncio.create_subprocess_exec(
        "swerex-remote", "--auth-token", "bench", "--port", str(port), "--host", "127.0.0.1",
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    runtime = RemoteRuntime(host="http://127.0.0.1", port=port, auth_token="bench", timeout=10)
    try:
        await runtime.wait_until_alive(timeout=30)

        async def once() -> None:
            await runtime.execute(Command(command=["bash", "-c", "true"]))

        yield once
    finally:
        server.kill()
        await server.wait()


async def run(server: Server) -> tuple[list[Budget], list[Sample]]:
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(timeout=timeout) as session, swerex_call() as peer:
        ours = gateway_call(session, server)
        await ours()
        container = next(iter(server.boxes().values()))[0]
        fast = await interleaved(
            [("bare subprocess", bare_subprocess), ("gateway call", ours), ("swe-rex execute", peer)], runs=RUNS
        )
        slow = await interleaved([("docker exec", docker_exec(container))], runs=15)
    samples = fast | slow
    call, bare = samples["gateway call"].p50, samples["bare subprocess"].p50
    return [
        Budget(
            name="`shell true` through the gateway, p50",
            value=call / bare,
            limit=4.0,
            unit="x",
            baseline="bare subprocess",
        ),
        Budget(
            name="the same against `docker exec`, p50",
            value=samples["docker exec"].p50 / call,
            limit=20.0,
            unit="x faster",
            baseline="docker exec",
            at_least=True,
        ),
        Budget(
            name="the same against swe-rex, p50",
            value=samples["swe-rex execute"].p50 / call,
            limit=1.0,
            unit="x faster",
            baseline="swe-rex 1.4 over loopback, no box",
            at_least=True,
        ),
    ], list(samples.values())
