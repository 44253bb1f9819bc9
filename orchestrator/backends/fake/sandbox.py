"""A host's view of a fake box: what a client of the agent would be, with the wire's faults to order."""

import asyncio
import time
from collections.abc import Sequence

from orchestrator.backends.fake.box import HOST_OWN, FakeBox
from orchestrator.backends.fake.faults import Faults, Lies, LostReply, ReplyLost, SlowExec
from orchestrator.backends.fake.process import CommandResult
from orchestrator.errors import AgentProtocolError, SandboxLost
from orchestrator.interfaces import Lease
from orchestrator.models import CallKey, Epoch, OpId, PendingCall, RolloutKey, SandboxId
from orchestrator.operations import Exec, Failure, FailureCode, Freeze, Operation, OperationResult, Session, Write

MAX_CARRIED_BYTES = 3 * 1024 * 1024
"""What of an operation fits into a body of 4 MiB as base64."""


class FakeSandbox:
    """`orchestrator.interfaces.Sandbox` over a box of a `FakeWorld`. Several may stand before one box; each has its own lease."""

    __slots__ = ("_box", "_closed", "_faults", "_held")

    def __init__(self, box: FakeBox, faults: Faults) -> None:
        self._box = box
        self._faults = faults
        self._held: tuple[RolloutKey, Epoch] | None = None
        self._closed = False

    @property
    def id(self) -> SandboxId:
        return self._box.id

    async def lease(self, rollout: RolloutKey, epoch: Epoch) -> Lease:
        await self._reach()
        lease = self._box.lease(rollout, epoch)
        self._held = (rollout, epoch)
        return lease

    async def run(
        self, op: Operation, *, op_id: OpId, deadline: float, call: PendingCall | None = None
    ) -> OperationResult:
        """See `Sandbox.run`. Raises also what was ordered: ReplyLost, AgentProtocolError."""
        if (call is None) != (op_id.number != 0) and not isinstance(op, HOST_OWN):
            raise ValueError("operation 0 of a call carries its header, and no other one does")
        if deadline <= time.monotonic():
            raise TimeoutError("the time for this operation is over")
        if _size_bytes(op) > MAX_CARRIED_BYTES:
            return Failure(code=FailureCode.TOO_LARGE, message="an operation carries at most 4 MiB, as base64")
        await self._reach()
        rollout, epoch = self._lease()
        before = self._box.begun
        slow = self._faults.of(SlowExec, before + 1, self.id)
        done = self._box.begin(rollout, epoch, op, op_id, call, slow.seconds if slow else 0.0)
        if self._box.begun > before:
            self._spoil(self._box.begun)
        if isinstance(op, Freeze):
            await self._box.quiet()
        return await self._answer(op_id, done, deadline) if isinstance(done, asyncio.Future) else done

    async def acknowledge(self, calls: Sequence[CallKey]) -> None:
        await self._reach()
        self._box.acknowledge(*self._lease(), calls)

    async def aclose(self) -> None:
        self._closed = True

    async def _reach(self) -> None:
        """As any request, an await. Raises SandboxLost, SandboxDead."""
        await asyncio.sleep(0)
        if self._closed:
            raise SandboxLost("this connection to the box was closed")
        self._box.reach()

    def _lease(self) -> tuple[RolloutKey, Epoch]:
        if self._held is None:
            raise SandboxLost("take the box's lease before its operations")
        return self._held

    def _spoil(self, operation: int) -> None:
        if self._faults.of(Lies, operation, self.id):
            raise AgentProtocolError("the box's reply is not of the closed schema (ordered fault)")
        if self._faults.of(LostReply, operation, self.id):
            raise ReplyLost("the connection to the box broke before its reply came (ordered fault)")

    async def _answer(self, op_id: OpId, running: "asyncio.Future[CommandResult]", deadline: float) -> OperationResult:
        """Wait for a running command, no longer than `deadline`; a cancelled caller leaves it running."""
        await asyncio.wait([running], timeout=max(0.0, deadline - time.monotonic()))
        if not running.done():
            raise TimeoutError(f"operation {op_id} still runs; the same id joins it")
        if running.cancelled():
            self._box.reach()
            raise SandboxLost(f"box {self.id} ended while a command ran in it")
        return running.result()


def _size_bytes(op: Operation) -> int:
    match op:
        case Exec():
            return len(op.stdin)
        case Session():
            return len(op.script)
        case Write():
            return len(op.data)
        case _:
            return 0
