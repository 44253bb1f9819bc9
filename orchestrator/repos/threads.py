"""Blocking work in threads whose end is always awaited: nothing runs on behind a cancelled caller's back."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import ParamSpec, TypeVar

import anyio.to_thread
from anyio import CapacityLimiter

P = ParamSpec("P")
T = TypeVar("T")


async def finish(limiter: CapacityLimiter | None, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """`work(...)` in a thread. A cancelled caller waits for its end, too, and is then cancelled; what it returned or raised is dropped."""
    task = asyncio.ensure_future(anyio.to_thread.run_sync(partial(work, *args, **kwargs), limiter=limiter))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await _settled(task)
        raise


async def _settled(task: "asyncio.Future[T]") -> None:
    """Until `task` is done, however often the caller is cancelled meanwhile."""
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            continue
    if not task.cancelled():
        task.exception()  # taken note of: the cancel is what the caller hears
