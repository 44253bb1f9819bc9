"""A grade beyond its tests' own time, with one warm grading box in reserve."""

import asyncio
import time

import aiohttp

from benchmarks.measure import Budget, Sample
from tests.e2e.harness import MENDED, Server, Trainer

RUNS = 10


async def own_test_time(player: Trainer) -> float:
    """Seconds that the hidden tests take by themselves: pytest on them in a box, as the grade's child would run them."""
    text = "from calc import add\ndef test_add():\n    assert add(2, 3) == 5\ndef test_zero():\n    assert add(0, 0) == 0\n"
    await player.call("w", "write_file", path="test_own.py", content=text)
    code = (
        "import time, pytest; t = time.perf_counter(); pytest.main(['-q', '-p', 'no:cacheprovider', 'test_own.py']);"
        " print('took', time.perf_counter() - t)"
    )
    output = await player.call("t", "shell", command=f'python3 -c "{code}"')
    return float(output.split("took")[1].split()[0])


async def run(server: Server) -> tuple[list[Budget], list[Sample]]:
    taken, own = [], 0.0
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=120)) as session:
        for number in range(RUNS):
            player = Trainer(server=server, trace_id=f"trace_grade_{number}", task_id="calc-tests", session=session)
            await player.call("1", "write_file", path="calc.py", content=MENDED)
            if number == 0:
                own = await own_test_time(player)
            await asyncio.sleep(2.0)  # the reserve is refilled in the background
            started = time.perf_counter()
            assert await player.grade() == 1.0
            taken.append(time.perf_counter() - started)
    sample = Sample(name="grade, one warm box in reserve", seconds=tuple(taken))
    runs = 2  # the real file and one must-fail sibling
    return [
        Budget(
            name="grade beyond the tests' own time, p50",
            value=max(0.0, sample.p50 - runs * own),
            limit=0.5,
            unit="s",
            baseline=f"{runs} runs of the tests by themselves ({own:.3f} s each)",
        )
    ], [sample]
