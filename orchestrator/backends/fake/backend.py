"""The `fake` backend: boxes in memory, quick and many, with faults to order.

It is for tests, for measuring everything above a box, and for trying tiltyard without an engine. Its boxes keep the agent's promises on leases,
journal and files. They isolate nothing and run no programs: commands are those of a small shell (`programs`), without a kernel below. So there is
no network, `/proc`, user, signal mask, memory or process limit to speak of; owners and times of files, hard links, file name patterns in the shell
and pipes that stream are not done. docs of each part say the rest; the conformance suite's gaps list what that fails.
"""

import asyncio
import secrets
import time
from collections.abc import Iterator, Sequence

from orchestrator.backends.fake.box import FakeBox
from orchestrator.backends.fake.faults import (
    BadStart,
    CreateReplyLost,
    DestroyFails,
    DiesLater,
    Faults,
    NeverStarts,
    SlowStart,
)
from orchestrator.backends.fake.machine import UID_COUNT
from orchestrator.backends.fake.sandbox import FakeSandbox
from orchestrator.backends.fake.tree import Bases, Dir
from orchestrator.errors import EngineUnavailable, Misconfigured, SandboxLost, StartFailed
from orchestrator.interfaces import Capacity, OwnedSandbox, Sandbox, SandboxSpec, Scope
from orchestrator.models import SandboxId

FIRST_UID = 1_000_000
DEFAULT_CAPACITY = Capacity(memory_mib=1024 * 1024, boxes=20_000, start_slots=64)


class FakeWorld:
    """The machine that fake boxes live on. It outlives hosts: give one world to the backend before a restart and to the one after."""

    def __init__(self) -> None:
        self.boxes: dict[SandboxId, FakeBox] = {}
        self.bases = Bases()
        self._uids = FIRST_UID

    def new_uids(self) -> int:
        """The first of a block of uids that no other box has."""
        self._uids += UID_COUNT
        return self._uids - UID_COUNT

    def kill(self, sandbox_id: SandboxId, *, dead: bool = False) -> None:
        """End a box behind everybody's back: by an operator, or (`dead`) by the model's doing."""
        self.boxes[sandbox_id].kill(dead=dead)

    async def aclose(self) -> None:
        """End every box and what runs in it."""
        boxes, self.boxes = list(self.boxes.values()), {}
        for box in boxes:
            await box.destroy()


class FakeBackend:
    """`orchestrator.interfaces.SandboxBackend` over a `FakeWorld`."""

    def __init__(
        self,
        faults: Faults = Faults(),  # noqa: B008  (a frozen value)
        capacity: Capacity = DEFAULT_CAPACITY,
        world: FakeWorld | None = None,
    ) -> None:
        self.world = world or FakeWorld()
        self.faults = faults
        self._capacity = capacity
        self._creates = 0
        self._destroys: dict[SandboxId, int] = {}
        self._strays = {stray.id: stray for stray in faults.strays}

    @property
    def name(self) -> str:
        return "fake"

    @property
    def scope(self) -> Scope:
        return Scope.HOST

    async def create(self, sandbox_id: SandboxId, spec: SandboxSpec, *, deadline: float) -> Sandbox:
        _honour(spec)
        self._creates += 1
        number = self._creates
        await self._start(number, sandbox_id, deadline)
        base = await self._base(spec)
        if sandbox_id in self.world.boxes:
            raise StartFailed(f"box {sandbox_id} exists already")
        box = FakeBox(
            sandbox_id,
            spec,
            boot_id=secrets.token_hex(8),
            created_at=time.time(),
            uid_base=self.world.new_uids(),
            base=base,
            deaths=[order for order in self._deaths() if order.meets(number, sandbox_id)],
        )
        self.world.boxes[sandbox_id] = box
        if self.faults.of(CreateReplyLost, number, sandbox_id):
            raise EngineUnavailable("the engine's answer to the start was lost (ordered fault)")
        return FakeSandbox(box, self.faults)

    def _deaths(self) -> Iterator[DiesLater]:
        return (order for order in self.faults.orders if isinstance(order, DiesLater))

    async def _start(self, number: int, sandbox_id: SandboxId, deadline: float) -> None:
        """What starting takes. Raises StartFailed."""
        left_s = max(0.0, deadline - time.monotonic())
        bad = self.faults.of(BadStart, number, sandbox_id)
        if bad:
            raise StartFailed(bad.message)
        slow = self.faults.of(SlowStart, number, sandbox_id)
        needed_s = slow.seconds if slow else 0.0
        if self.faults.of(NeverStarts, number, sandbox_id) or needed_s >= left_s:
            await asyncio.sleep(left_s)
            raise StartFailed(f"box {sandbox_id} did not answer in time")
        await asyncio.sleep(needed_s)

    async def _base(self, spec: SandboxSpec) -> Dir | None:
        """The template's tree, read by the first box over it. Raises StartFailed."""
        if spec.template is None:
            return None
        known = self.world.bases.known(spec.template.lowers)
        if known is not None:
            return known
        try:
            return await asyncio.to_thread(self.world.bases.load, spec.template.lowers)
        except OSError as error:
            raise StartFailed(f"template {spec.template.key} cannot be read: {error.strerror}") from error

    async def attach(self, sandbox_id: SandboxId) -> Sandbox:
        await asyncio.sleep(0)
        box = self.world.boxes.get(sandbox_id)
        if box is None:
            raise SandboxLost(f"box {sandbox_id} does not exist")
        box.reach()
        return FakeSandbox(box, self.faults)

    async def destroy(self, sandbox_id: SandboxId) -> None:
        await asyncio.sleep(0)
        if self.faults.orders:
            self._destroys[sandbox_id] = count = self._destroys.get(sandbox_id, 0) + 1
            if self.faults.of(DestroyFails, count, sandbox_id):
                raise EngineUnavailable("the engine did not remove the box (ordered fault)")
        self._strays.pop(sandbox_id, None)
        box = self.world.boxes.pop(sandbox_id, None)
        if box is not None:
            await box.destroy()

    async def owned(self) -> Sequence[OwnedSandbox]:
        await asyncio.sleep(0)
        boxes = [
            OwnedSandbox(id=box.id, created_at=box.created_at, running=box.end is None)
            for box in self.world.boxes.values()
        ]
        return [*boxes, *self._strays.values()]

    async def capacity(self) -> Capacity:
        return self._capacity


def _honour(spec: SandboxSpec) -> None:
    """Raises Misconfigured for what a fake box cannot be."""
    if spec.network.allow:
        raise Misconfigured(
            "a network allow-list: boxes of the fake backend have no network; leave it out, or serve on docker"
        )
    if not spec.workdir.startswith("/") or spec.workdir.strip("/") == "":
        raise Misconfigured(f"workdir {spec.workdir!r} must be an absolute path below /")
