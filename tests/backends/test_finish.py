"""Work goes to its end although its caller is cancelled, by asyncio or by anyio."""

import asyncio

import anyio
import pytest

from orchestrator.backends.finish import finish

pytestmark = pytest.mark.anyio


class Work:
    """A piece of work that ends when told to."""

    def __init__(self) -> None:
        self.began = asyncio.Event()
        self.may_end = asyncio.Event()
        self.ended = False

    async def __call__(self) -> str:
        self.began.set()
        await self.may_end.wait()
        self.ended = True
        return "done"


async def test_without_a_cancel_it_is_an_await() -> None:
    work = Work()
    work.may_end.set()
    assert await finish(work()) == "done"


async def test_a_failure_passes_through() -> None:
    async def fails() -> None:
        raise LookupError("x")

    with pytest.raises(LookupError):
        await finish(fails())


async def test_asyncio_cancels_are_delivered_after_the_end() -> None:
    work = Work()
    task = asyncio.create_task(finish(work()))
    await work.began.wait()
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    assert not task.done()
    work.may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert work.ended


async def test_anyio_cancels_are_delivered_after_the_end() -> None:
    work = Work()
    after = False
    with anyio.CancelScope() as scope:
        asyncio.get_running_loop().call_soon(scope.cancel)
        asyncio.get_running_loop().call_later(0.02, work.may_end.set)
        assert await finish(work()) == "done"
        await anyio.lowlevel.checkpoint()
        after = True
    assert work.ended
    assert not after
