"""Work that must come to its end although its caller is cancelled."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import anyio

T = TypeVar("T")


async def finish(work: Coroutine[Any, Any, T] | asyncio.Future[T]) -> T:
    """Await `work` to its end. A cancellation of the caller, asyncio's or anyio's, is delivered only then; a failure of `work` passes through."""
    task = asyncio.ensure_future(work)
    with anyio.CancelScope(shield=True):
        cancelled = await _settled(task)
    if cancelled is not None:
        if not task.cancelled():
            task.exception()  # retrieved: the cancellation is what the caller sees
        raise cancelled
    return task.result()


async def _settled(task: asyncio.Future[T]) -> asyncio.CancelledError | None:
    """Wait until `task` is done; the first cancellation that came meanwhile."""
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = cancelled or error
    return cancelled
