"""Timing and its summary. Ratios are what to keep: absolute figures move with the machine."""

import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Seconds of each repetition."""

    name: str
    seconds: tuple[float, ...]

    def quantile(self, q: float) -> float:
        """Nearest-rank quantile, q in (0, 1]."""
        ordered = sorted(self.seconds)
        return ordered[max(0, math.ceil(q * len(ordered)) - 1)]

    @property
    def p50(self) -> float:
        return self.quantile(0.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """One line of the table. `value` must be at most `limit` (or at least, when `at_least`)."""

    name: str
    value: float
    limit: float
    unit: str
    baseline: str
    at_least: bool = False
    note: str = ""

    @property
    def met(self) -> bool:
        return self.value >= self.limit if self.at_least else self.value <= self.limit


async def timed(name: str, once: Callable[[], Awaitable[object]], *, runs: int, warmup: int = 3) -> Sample:
    """`runs` repetitions one after another, after `warmup` that do not count."""
    for _ in range(warmup):
        await once()
    seconds = []
    for _ in range(runs):
        started = time.perf_counter()
        await once()
        seconds.append(time.perf_counter() - started)
    return Sample(name=name, seconds=tuple(seconds))


async def interleaved(
    contenders: Sequence[tuple[str, Callable[[], Awaitable[object]]]],
    *,
    runs: int,
    warmup: int = 2,
    between: Callable[[], Awaitable[object]] | None = None,
) -> dict[str, Sample]:
    """Each contender once per round, so that a drift of the machine's speed meets all of them. `between` clears away, and is not timed."""
    taken: dict[str, list[float]] = {name: [] for name, _ in contenders}
    for turn in range(warmup + runs):
        for name, once in contenders:
            started = time.perf_counter()
            await once()
            if turn >= warmup:
                taken[name].append(time.perf_counter() - started)
            if between is not None:
                await between()
    return {name: Sample(name=name, seconds=tuple(seconds)) for name, seconds in taken.items()}
