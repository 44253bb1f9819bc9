"""Test runs: bounded, first come first served, and alone when asked."""

import asyncio

import pytest

from orchestrator.hosts.permits import Permits

pytestmark = pytest.mark.anyio


class Runs:
    def __init__(self, size: int) -> None:
        self.permits = Permits(size)
        self.now = self.most = 0
        self.beside_alone = 0
        self.order: list[int] = []

    async def run(self, number: int, *, alone: bool = False) -> None:
        async with self.permits.one(alone=alone):
            self.order.append(number)
            self.now += 1
            self.most = max(self.most, self.now)
            await asyncio.sleep(0.002)
            if alone:
                self.beside_alone = max(self.beside_alone, self.now - 1)
            self.now -= 1


async def test_no_more_than_the_size_at_once_in_order_of_asking() -> None:
    runs = Runs(3)
    await asyncio.gather(*(runs.run(n) for n in range(12)))
    assert runs.most == 3
    assert runs.order == list(range(12))


async def test_who_asks_to_be_alone_is_and_two_of_them_do_not_wait_for_each_other() -> None:
    runs = Runs(3)
    await asyncio.wait_for(asyncio.gather(*(runs.run(n, alone=n % 2 == 0) for n in range(12))), 5)
    assert runs.beside_alone == 0
    assert runs.order == list(range(12))


async def test_who_gives_up_waiting_takes_nothing_along() -> None:
    runs = Runs(2)
    holding = asyncio.create_task(runs.run(1))
    await asyncio.sleep(0)
    waiting = asyncio.create_task(runs.run(2, alone=True))
    await asyncio.sleep(0)
    waiting.cancel()
    await holding
    await asyncio.wait_for(runs.run(3, alone=True), 1)
    assert runs.order == [1, 3]
