"""A box seen through its agent, whose silence is explained by the engine."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from orchestrator.errors import AgentProtocolError, SandboxDead, SandboxLost
from orchestrator.interfaces import Lease, Sandbox
from orchestrator.models import CallKey, Epoch, OpId, PendingCall, RolloutKey, SandboxId
from orchestrator.operations import Operation, OperationResult

T = TypeVar("T")
Verdict = Callable[[], Awaitable[SandboxDead | SandboxLost | None]]
"""What the engine knows of a box that does not answer: None while it still runs."""


class DockerSandbox:
    """Implements `orchestrator.interfaces.Sandbox` over the agent's client.

    Where the client says lost, the engine is asked whose doing it was: a box that its own commands ended is SandboxDead.
    """

    def __init__(self, agent: Sandbox, verdict: Verdict) -> None:
        self._agent = agent
        self._verdict = verdict

    @property
    def id(self) -> SandboxId:
        return self._agent.id

    async def lease(self, rollout: RolloutKey, epoch: Epoch) -> Lease:
        return await self._explained(self._agent.lease(rollout, epoch))

    async def run(
        self, op: Operation, *, op_id: OpId, deadline: float, call: PendingCall | None = None
    ) -> OperationResult:
        return await self._explained(self._agent.run(op, op_id=op_id, deadline=deadline, call=call))

    async def acknowledge(self, calls: Sequence[CallKey]) -> None:
        await self._explained(self._agent.acknowledge(calls))

    async def aclose(self) -> None:
        await self._agent.aclose()

    async def _explained(self, request: Awaitable[T]) -> T:
        try:
            return await request
        except AgentProtocolError:
            raise
        except SandboxLost as lost:
            verdict = await self._verdict()
            if verdict is None:
                raise
            raise verdict from lost
