"""A live box for tests: leased, with one call per command."""

import itertools
import secrets
import time
from dataclasses import dataclass, field

from orchestrator.interfaces import Sandbox
from orchestrator.models import CallKey, Epoch, JobId, OpId, PendingCall, RolloutKey, TraceId
from orchestrator.operations import Exec, ExecResult, Operation, OperationResult


@dataclass
class Box:
    """`sh` runs a command and gives its result; `text` its output, and fails the test for another status than 0."""

    sandbox: Sandbox
    _numbers: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1))
    _prefix: str = field(default_factory=lambda: secrets.token_hex(4))
    """Another `Box` over the same sandbox makes other calls."""

    async def lease(self, epoch: int = 1) -> None:
        rollout = RolloutKey(job=JobId("job"), trace_id=TraceId(f"trace-{self.sandbox.id}"))
        await self.sandbox.lease(rollout, Epoch(epoch))

    async def run(self, op: Operation, *, timeout_s: float = 30.0) -> OperationResult:
        number = next(self._numbers)
        key = CallKey(f"{self._prefix}-{number}")
        header = PendingCall(key=key, sequence=number, tool="shell", arguments={}, operations=1)
        return await self.sandbox.run(
            op, op_id=OpId(call=key, number=0), deadline=time.monotonic() + timeout_s, call=header
        )

    async def sh(self, command: str, *, timeout_s: float = 20.0, output_limit_bytes: int = 262_144) -> ExecResult:
        op = Exec(argv=("sh", "-c", command), timeout_s=timeout_s, output_limit_bytes=output_limit_bytes)
        result = await self.run(op, timeout_s=timeout_s + 10)
        assert isinstance(result, ExecResult), result
        return result

    async def text(self, command: str, *, timeout_s: float = 20.0) -> str:
        result = await self.sh(command, timeout_s=timeout_s)
        assert result.exit_code == 0, (result.exit_code, result.stdout)
        assert result.stdout.cut_bytes == 0
        return result.stdout.head.decode()
