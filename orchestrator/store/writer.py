"""Group commit: what waited during the last commit goes into the next one, as one transaction."""

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine

from orchestrator.errors import StoreError, TiltyardError
from orchestrator.store.batch import run_batch
from orchestrator.store.engine import words
from orchestrator.store.writes import AnyWrite, Outcome, Pulse, Write

R = TypeVar("R")

MAX_BATCH = 500
"""Writes per transaction: bounds what one failed commit fails, and how long another process waits for the lock."""


@dataclass(slots=True, kw_only=True)
class _Waiter:
    write: AnyWrite
    done: asyncio.Future[Any]


@dataclass(slots=True, kw_only=True)
class _Lane:
    """Writes of one durability, on one engine."""

    engine: AsyncEngine
    waiting: deque[_Waiter] = field(default_factory=deque)

    def take(self) -> list[_Waiter]:
        return [self.waiting.popleft() for _ in range(min(MAX_BATCH, len(self.waiting)))]


class Writer:
    """Serves writes until `stop`; `run` is its one task, owned by the store."""

    def __init__(self, *, quick: AsyncEngine, durable: AsyncEngine) -> None:
        self._lanes = {False: _Lane(engine=quick), True: _Lane(engine=durable)}
        self._wake = asyncio.Event()
        self._stopped = False

    async def submit(self, write: Write[R]) -> R:
        """Returns after the commit that holds `write`. A cancelled caller's write is carried out all the same.

        Raises StaleLease, StoreError (then nothing of it is in the record).
        """
        return await self._enqueue(write)  # type: ignore[no-any-return]  # each rule returns its write's type

    async def pulse(self, write: Pulse) -> None:
        """Raises StoreError where the store cannot be written to."""
        await self._enqueue(write)

    async def _enqueue(self, write: AnyWrite) -> Any:
        if self._stopped:
            raise StoreError("the store is closed")
        waiter = _Waiter(write=write, done=asyncio.get_running_loop().create_future())
        self._lanes[write.durable].waiting.append(waiter)
        self._wake.set()
        return await waiter.done

    def stop(self) -> None:
        """Take nothing new; `run` returns when what waits is committed."""
        self._stopped = True
        self._wake.set()

    async def run(self) -> None:
        """Commit batches until stopped and empty. Both lanes in turn: SQLite has one write lock, two would only fight for it."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while any(lane.waiting for lane in self._lanes.values()):
                for lane in self._lanes.values():
                    await self._serve(lane.engine, lane.take())
            if self._stopped:
                return

    async def _serve(self, engine: AsyncEngine, batch: list[_Waiter]) -> None:
        """Commit `batch`. A write that cannot be stored is found by committing each alone: it must not fail its neighbours."""
        if not batch:
            return
        try:
            outcomes = await _commit(engine, [waiter.write for waiter in batch])
        except OperationalError as error:  # locked, full, damaged: true of every write
            _fail(batch, StoreError(words(error)), error)
        except TiltyardError as error:
            _fail(batch, error, None)
        except Exception as error:  # noqa: BLE001 - one write's row or value; the writer must outlive it
            await self._serve_refused(engine, batch, error)
        else:
            _resolve(batch, outcomes)

    async def _serve_refused(self, engine: AsyncEngine, batch: list[_Waiter], error: Exception) -> None:
        if len(batch) == 1:
            _fail(batch, StoreError(words(error)), error)
            return
        for waiter in batch:
            await self._serve(engine, [waiter])


async def _commit(engine: AsyncEngine, writes: Sequence[AnyWrite]) -> list[Outcome]:
    async with engine.begin() as connection:
        return await connection.run_sync(run_batch, writes)


def _resolve(batch: Sequence[_Waiter], outcomes: Sequence[Outcome]) -> None:
    for waiter, outcome in zip(batch, outcomes, strict=True):
        if waiter.done.done():
            continue  # its caller was cancelled
        if isinstance(outcome, TiltyardError):
            waiter.done.set_exception(outcome)
        else:
            waiter.done.set_result(outcome)


def _fail(batch: Sequence[_Waiter], error: TiltyardError, cause: BaseException | None) -> None:
    for waiter in batch:
        if not waiter.done.done():
            told = type(error)(error.message)  # one object per waiter: tracebacks are appended on each raise
            told.__cause__ = cause
            waiter.done.set_exception(told)
