"""Pods kept ready, by what they are made from. Each is used once; a claim costs no request; whoever needs the room gets it."""

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace

from orchestrator.agent.client import AgentClient
from orchestrator.errors import TiltyardError
from orchestrator.interfaces import SandboxSpec
from orchestrator.models import Limits, SandboxId

log = logging.getLogger(__name__)

IDLE_S = 600.0
"""A shape that nobody asked for this long keeps no pods."""
CLAIM_S = 120.0
"""Who claimed a box takes it within moments; one whose rollout another host got first is never taken."""
PAUSE_S = 5.0
"""After a pod that could not be made, before the next try for its shape."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Boxes of one shape are interchangeable before they are leased."""

    image: str
    template: str
    workdir: str
    limits: Limits


def shape_of(spec: SandboxSpec) -> Shape:
    return Shape(
        image=spec.image,
        template=spec.template.key if spec.template else "",
        workdir=spec.workdir,
        limits=spec.limits,
    )


class WarmPods:
    """Owner of what is warm, until it is claimed."""

    def __init__(
        self,
        size: int,
        make: Callable[[SandboxId, SandboxSpec], Awaitable[AgentClient]],
        remove: Callable[[SandboxId], Awaitable[None]],
        *,
        claim_s: float = CLAIM_S,
    ) -> None:
        """`claim_s`: after how long a claimed box that nobody took is ended."""
        self._claim_s = claim_s
        self._size = size
        self._make = make
        self._remove = remove
        self._ready: dict[Shape, dict[SandboxId, AgentClient]] = {}
        self._claimed: dict[SandboxId, tuple[AgentClient, float]] = {}
        self._making: dict[SandboxId, tuple[Shape, asyncio.Task[None]]] = {}
        self._wanted: dict[Shape, tuple[SandboxSpec, float]] = {}
        self._not_before: dict[Shape, float] = {}
        self._removals: set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def kept(self) -> frozenset[SandboxId]:
        """Boxes that the host's sweeper must leave to us."""
        ready = (name for boxes in self._ready.values() for name in boxes)
        return frozenset({*ready, *self._making, *self._claimed})

    def want(self, spec: SandboxSpec) -> None:
        """Somebody uses this shape: have boxes made, up to the size."""
        if self._size == 0 or self._closed:
            return
        shape, spec = shape_of(spec), replace(spec, labels={})  # nobody's, until it is claimed
        self._wanted[shape] = (spec, time.monotonic())
        self._drop_idle()
        if time.monotonic() < self._not_before.get(shape, 0.0):
            return
        have = len(self._ready.get(shape, ())) + sum(made == shape for made, _ in self._making.values())
        for _ in range(self._size - have):
            sandbox_id = SandboxId(f"w-{secrets.token_hex(8)}")
            task = asyncio.create_task(self._fill(sandbox_id, shape, spec), name=f"warm {sandbox_id}")
            self._making[sandbox_id] = (shape, task)

    def claim(self, spec: SandboxSpec) -> SandboxId | None:
        """A box of this shape, no longer warm; its maker hands it out by `taken`. Another one is made in its place."""
        boxes = self._ready.get(shape_of(spec), {})
        sandbox_id = next(iter(boxes), None)
        if sandbox_id is not None:
            self._claimed[sandbox_id] = boxes.pop(sandbox_id), time.monotonic()
        self.want(spec)
        return sandbox_id

    def ready(self, spec: SandboxSpec) -> int:
        """How many boxes of this shape can be claimed now."""
        return len(self._ready.get(shape_of(spec), ()))

    def taken(self, sandbox_id: SandboxId) -> AgentClient | None:
        held = self._claimed.pop(sandbox_id, None)
        return held[0] if held is not None else None

    def lost(self, sandbox_id: SandboxId) -> None:
        """Its pod is gone."""
        for boxes in self._ready.values():
            boxes.pop(sandbox_id, None)

    async def give_way(self) -> bool:
        """Somebody waits for room: all that is warm goes. Whether there was any."""
        names = [name for boxes in self._ready.values() for name in boxes]
        making = list(self._making.values())
        self._ready.clear()
        for shape in self._wanted:
            self._not_before[shape] = time.monotonic() + PAUSE_S
        for _, task in making:
            task.cancel()
        if making:
            await asyncio.wait({task for _, task in making})
        await asyncio.gather(*(self._end(name) for name in names))
        return bool(names or making)

    async def aclose(self) -> None:
        """Idempotent: nothing warm outlives its owner."""
        self._closed = True
        await self.give_way()
        if self._removals:
            await asyncio.wait(self._removals)

    def _drop_idle(self) -> None:
        now = time.monotonic()
        for shape in [shape for shape, (_, at) in self._wanted.items() if now - at > IDLE_S]:
            del self._wanted[shape]
            for name in self._ready.pop(shape, {}):
                self._end_beside(name)
        for name in [name for name, (_, at) in self._claimed.items() if now - at > self._claim_s]:
            del self._claimed[name]
            self._end_beside(name)

    def _end_beside(self, sandbox_id: SandboxId) -> None:
        task = asyncio.create_task(self._end(sandbox_id))
        self._removals.add(task)
        task.add_done_callback(self._removals.discard)

    async def _fill(self, sandbox_id: SandboxId, shape: Shape, spec: SandboxSpec) -> None:
        try:
            client = await self._make(sandbox_id, spec)
            self._ready.setdefault(shape, {})[sandbox_id] = client
        except (TiltyardError, TimeoutError) as error:
            self._not_before[shape] = time.monotonic() + PAUSE_S
            log.warning("no warm box: %s", error)
        finally:
            del self._making[sandbox_id]

    async def _end(self, sandbox_id: SandboxId) -> None:
        with suppress(TiltyardError):  # the sweeper finds it by name
            await self._remove(sandbox_id)
