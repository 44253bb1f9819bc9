"""Tasks with an owner. None outlives it, and no failure goes unseen."""

import asyncio
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self

import structlog

log = structlog.get_logger(__name__)


class OwnedTasks:
    """A set of background tasks; leaving it cancels those that still run and waits for them.

    A failure is logged and counted, and does not touch its siblings: one rollout's trouble is not another's.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False
        self.failures = 0
        """Tasks that ended by an exception nobody handled."""

    def start(self, work: Coroutine[Any, Any, None], *, name: str) -> asyncio.Task[None]:
        """Raises RuntimeError once closed: whoever starts work then has outlived its owner."""
        if self._closed:
            work.close()
            raise RuntimeError(f"{self._name} is closed and takes no {name}")
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            self.failures += 1
            log.error("task_failed", owner=self._name, task=task.get_name(), exc_info=error)

    def __len__(self) -> int:
        return len(self._tasks)

    async def settle(self, timeout_s: float) -> None:
        """Wait until none is left, at most `timeout_s`."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closed = True
        while running := {task for task in self._tasks if task is not asyncio.current_task()}:
            for task in running:
                task.cancel()
            await asyncio.wait(running)
