"""The disk that boxes share: what a box may come to take of it, and what follows when it runs low.

Boxes' disks are sparse: far more is promised than is there. Admission stops at the reserve. Should boxes that live already eat that up, too,
their file systems lose writes without telling anybody who asks; whatever lived through that is ours to give up, and is never scored.
"""

import asyncio
from collections.abc import Callable

import structlog

from orchestrator.errors import Misconfigured
from orchestrator.hosts.events import BoxLost, Phase
from orchestrator.hosts.gate import Gate
from orchestrator.hosts.lifecycle import Lifecycle

log = structlog.get_logger(__name__)

Gauge = Callable[[], int]
"""Free MiB of the file system that boxes lie on. Blocks; run in a thread. Raises OSError."""

PERIOD_S = 0.5
EXHAUSTED_SHARE = 4
"""Below this part of the reserve boxes are given up: room for what a fast disk takes in within a period or two."""


def promises_mib(free_mib: int, reserve_mib: int, overcommit: float) -> int:
    """What all boxes together may be promised. With an `overcommit` of 1 they can fill the disk to the reserve and no further."""
    return int(max(0, free_mib - reserve_mib) * overcommit)


def check_room(free_mib: int, reserve_mib: int, *, boxes_left: bool) -> None:
    """Raises Misconfigured where nothing could be started. Boxes that an earlier process left may be finished: their end gives space back."""
    if free_mib < reserve_mib and not boxes_left:
        raise Misconfigured(
            f"too little disk: {free_mib} MiB are free at the state folder and {reserve_mib} MiB are kept free: free some space, "
            "name a larger disk in TILTYARD_STATE_DIR, or lower TILTYARD_DISK_RESERVE_MIB"
        )
    if free_mib < reserve_mib:
        log.warning(
            "disk_is_low", free_mib=free_mib, reserve_mib=reserve_mib, consequence="no new box until some is freed"
        )


def exhausted(free_mib: int, reserve_mib: int) -> bool:
    """Whether writes of boxes may be failing, or are about to."""
    return free_mib * EXHAUSTED_SHARE < reserve_mib


class DiskWatch:
    """Reads the gauge, tells the gate, and gives up what lived while the disk was full. `run` is its one task, owned by the host."""

    def __init__(self, gauge: Gauge, gate: Gate, life: Lifecycle, *, reserve_mib: int) -> None:
        self._gauge = gauge
        self._gate = gate
        self._life = life
        self._reserve_mib = reserve_mib
        self._was_exhausted = False

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(PERIOD_S)

    async def look(self) -> None:
        """One reading. A gauge that cannot be read is told, and changes nothing."""
        try:
            free_mib = await asyncio.to_thread(self._gauge)
        except OSError as error:
            log.warning("disk_not_read", error=error.strerror)
            return
        now = exhausted(free_mib, self._reserve_mib)
        if now:
            self._give_up(free_mib)
        self._was_exhausted = now
        self._gate.disk_is(free_mib)

    def _give_up(self, free_mib: int) -> None:
        if not self._was_exhausted:
            log.error("disk_exhausted", free_mib=free_mib, reserve_mib=self._reserve_mib)
        self._life.parts.disk_falls.count += 1
        self._life.reserve.make_room()
        for rollout in list(self._life.live.values()):
            if rollout.sandbox is not None and rollout.state.phase in (Phase.LIVE, Phase.GATHERING):
                self._life.post(rollout, BoxLost(reason="the host's disk ran full while it lived: writes may be lost"))
