"""What one hostile box costs the box beside it: p99 of the neighbour's `echo`, quiet and beside the bully, in the same run."""

from benchmarks.measure import Budget, Sample
from tests.e2e.harness import Server
from tests.e2e.neighbours import watch

SECONDS = 20.0
ECHOES = 400
"""Enough for a 99th percentile that is not one outlier."""


async def run(server: Server, name: str) -> tuple[list[Budget], list[Sample]]:
    """`name` says what the boxes are made by, for the table."""
    seen = await watch(server, seconds=SECONDS, at_least=ECHOES)
    quiet = Sample(name=f"echo, quiet machine, {name}", seconds=seen.quiet_s)
    noisy = Sample(name=f"echo beside a box that abuses everything, {name}", seconds=seen.noisy_s)
    budget = Budget(
        name=f"neighbour's echo, p99, {name}",
        value=noisy.quantile(0.99) / quiet.quantile(0.99),
        limit=3.0,
        unit="x",
        baseline="the same, quiet",
        note=f"abuses run to their end: {seen.abuses}; memory fell by {seen.memory_fall_mib:.0f} MiB, "
        f"disk by {seen.disk_fall_mib:.0f} MiB, server RSS {seen.server_rss_mib:.0f} MiB",
    )
    return [budget], [quiet, noisy]
