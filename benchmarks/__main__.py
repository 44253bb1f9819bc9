"""`python -m benchmarks`: measure every budget, keep the raw figures, renew the table in docs/performance.md. Needs a Docker engine and root."""

import asyncio
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import aiohttp

from benchmarks import boxes, calls, grades, neighbour, own_cost, runtimes
from benchmarks.measure import Budget, Sample
from orchestrator.settings import load_settings
from tests.e2e.harness import Trainer, make_repository, serving, task_rows

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "performance.md"
RESULTS = ROOT / "benchmarks" / "results"
START, END = "<!-- measured: start -->", "<!-- measured: end -->"
LEAK_ROLLOUTS, LEAK_KILLS = 100, 10


async def measure(folder: Path) -> tuple[list[Budget], list[Sample]]:
    commit = make_repository(folder / "calc")
    rows = task_rows(folder / "calc", commit, max_calls=100_000)
    found: list[tuple[list[Budget], list[Sample]]] = []
    (folder / "docker").mkdir()
    async with serving(folder / "docker", rows) as server:
        print("calls through the gateway", flush=True)
        found.append(await calls.run(server))
        print("grades", flush=True)
        found.append(await grades.run(server))
    (folder / "fake").mkdir()
    async with serving(folder / "fake", rows, TILTYARD_BACKEND="fake", TILTYARD_LOG_LEVEL="warning") as server:
        print("own cost per call", flush=True)
        found.append(await own_cost.run(server))
    print("backends and runtimes", flush=True)
    found.append(await runtimes.run(folder / "runtimes", folder / "calc", commit))
    print("idle boxes", flush=True)
    settings = load_settings(deployment="bench", state_dir=folder / "boxes", accept_old_runc=True)
    found.append(await boxes.run(settings, folder / "calc", commit))
    print("neighbours", flush=True)
    (folder / "neighbours").mkdir()
    async with serving(folder / "neighbours", rows) as server:
        found.append(await neighbour.run(server, "docker, runc"))
    print("leaks", flush=True)
    (folder / "leaks").mkdir()
    async with serving(folder / "leaks", rows) as server, aiohttp.ClientSession() as session:
        players = [
            Trainer(server=server, trace_id=f"trace_leak_{n}", task_id="calc-files", session=session)
            for n in range(LEAK_ROLLOUTS)
        ]
        found.append(([await boxes.leaks(server, players, LEAK_KILLS)], []))
    return [b for budgets, _ in found for b in budgets], [s for _, samples in found for s in samples]


def table(budgets: Sequence[Budget], samples: Sequence[Sample]) -> str:
    lines = ["| budget | measured | must be | against | |", "|---|---|---|---|---|"]
    for budget in budgets:
        sign = "≥" if budget.at_least else "≤"
        verdict = "met" if budget.met else "**missed**"
        lines.append(
            f"| {budget.name} | {budget.value:.2f} {budget.unit} | {sign} {budget.limit:g} | {budget.baseline} | {verdict} |"
        )
    lines += ["", "| sample | runs | p50 | p95 |", "|---|---|---|---|"]
    for sample in samples:
        p95 = sample.quantile(0.95)
        lines.append(f"| {sample.name} | {len(sample.seconds)} | {sample.p50 * 1000:.2f} ms | {p95 * 1000:.2f} ms |")
    return "\n".join(lines)


def keep(budgets: Sequence[Budget], samples: Sequence[Sample]) -> Path:
    """Raw figures, as JSON, one file a run."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{datetime.now(UTC):%Y%m%dT%H%M%S}.json"
    whole = {
        "at": time.time(),
        "machine": {"cpus": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version()},
        "budgets": [asdict(budget) | {"met": budget.met} for budget in budgets],
        "samples": [asdict(sample) for sample in samples],
    }
    path.write_text(json.dumps(whole, indent=1))
    return path


def renew_page(text: str, marks: tuple[str, str] = (START, END)) -> None:
    """Put the table between its two marks of docs/performance.md."""
    start, end = marks
    before, _, rest = PAGE.read_text().partition(start)
    _, _, after = rest.partition(end)
    machine = f"{os.cpu_count()} cores, Linux {platform.release()}, {datetime.now(UTC):%Y-%m-%d}."
    PAGE.write_text(f"{before}{start}\n{machine}\n\n{text}\n{end}{after}")


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="tiltyard-bench-") as folder:
        budgets, samples = asyncio.run(measure(Path(folder)))
    path = keep(budgets, samples)
    text = table(budgets, samples)
    renew_page(text)
    print(text)
    print(f"raw figures: {path.relative_to(ROOT)}")
    return 0 if all(budget.met for budget in budgets) else 1


if __name__ == "__main__":
    sys.exit(main())
