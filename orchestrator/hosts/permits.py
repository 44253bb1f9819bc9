"""How many test runs go on at once: they are bound by CPU, and a time-out counts only of a run that had the machine to itself (D8)."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Permits:
    """`size` at once, in order of asking; who asks to be alone gets all of them."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._free = asyncio.Semaphore(size)
        self._turn = asyncio.Lock()
        """One gathers permits at a time: two that each hold a part would wait for each other for ever."""

    @asynccontextmanager
    async def one(self, *, alone: bool) -> AsyncIterator[None]:
        taken = 0
        try:
            async with self._turn:
                while taken < (self._size if alone else 1):
                    await self._free.acquire()
                    taken += 1
            yield
        finally:
            for _ in range(taken):
                self._free.release()
