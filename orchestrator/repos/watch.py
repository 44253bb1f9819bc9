"""Ends boxes that outgrow their disk limit where no kernel limit holds them: the form without root."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import structlog

from orchestrator.errors import TiltyardError
from orchestrator.models import SandboxId

PERIOD_S = 1.0
REST = 3.0
"""Times a look's own length that is waited after it: looking takes at most a quarter of one core, however many boxes there are."""

log = structlog.get_logger(__name__)


class Watched(Protocol):
    """Workspaces whose space is watched and not capped."""

    async def overfull(self) -> Sequence[SandboxId]:
        """Look at every box: those beyond their limits, now or at an earlier look. They are marked before this returns. Raises OSError."""
        ...


async def watch_space(
    workspaces: Watched, end: Callable[[SandboxId], Awaitable[None]], *, period_s: float = PERIOD_S
) -> None:
    """Until cancelled. `end` stops a box's processes and leaves its files; it is called again while it raises one of our errors.

    A look that fails is told and made again: for want of descriptors, say, or of room on the very disk that is watched.
    """
    ended: set[SandboxId] = set()
    while True:
        began = time.monotonic()
        try:
            await _look(workspaces, end, ended)
        except OSError as error:
            log.warning("boxes_not_looked_at", error=error.strerror)
        await asyncio.sleep(max(period_s, REST * (time.monotonic() - began)))


async def _look(workspaces: Watched, end: Callable[[SandboxId], Awaitable[None]], ended: set[SandboxId]) -> None:
    found = await workspaces.overfull()
    ended &= set(found)
    for sandbox_id in set(found) - ended:
        log.warning("box_over_its_disk", sandbox=sandbox_id)
        try:
            await end(sandbox_id)
        except TiltyardError as error:
            log.warning("box_not_ended", sandbox=sandbox_id, error=error.message)
        else:
            ended.add(sandbox_id)
