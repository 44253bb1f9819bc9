"""The load of `own_cost`: `python -m benchmarks.load URL CALLS IN_FLIGHT ROLLOUTS SALT` prints [whole, each...] seconds. Loopback only."""

import asyncio
import json
import sys
import time

import aiohttp


async def main(url: str, calls: int, in_flight: int, rollouts: int, salt: str) -> list[float]:
    assert url.startswith("http://127.0.0.1:"), "the load goes to this machine only"
    connector = aiohttp.TCPConnector(limit=in_flight)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=120)) as session:

        async def call(rollout: int, number: int) -> float:
            body = {
                "call_id": f"call_{number}",
                "name": "shell",
                "arguments": '{"command": "true"}',
                "trace_id": f"trace_{salt}_{rollout}",
                "item": {"task_id": "calc-tests"},
            }
            started = time.perf_counter()
            async with session.post(f"{url}/tools", json=body) as response:
                assert response.status == 200, await response.text()
                await response.read()
            return time.perf_counter() - started

        for _ in range(100):
            try:
                await call(0, -1)
                break
            except aiohttp.ClientConnectorError:
                await asyncio.sleep(0.1)
        await asyncio.gather(*(call(rollout, -1) for rollout in range(rollouts)))
        gate = asyncio.Semaphore(in_flight)

        async def bounded(number: int) -> float:
            async with gate:
                return await call(number % rollouts, number)

        started = time.perf_counter()
        each = await asyncio.gather(*(bounded(number) for number in range(calls)))
        return [time.perf_counter() - started, *each]


if __name__ == "__main__":
    url, calls, in_flight, rollouts, salt = sys.argv[1:]
    print(json.dumps(asyncio.run(main(url, int(calls), int(in_flight), int(rollouts), salt))))
