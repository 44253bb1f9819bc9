"""Backends that break one promise each, over a sound fake: the suite must see every one of them."""

import asyncio
import secrets
import unicodedata
from collections.abc import Sequence
from dataclasses import replace

from orchestrator.backends.fake import FakeBackend
from orchestrator.errors import SandboxLost
from orchestrator.interfaces import Capacity, Lease, OwnedSandbox, Sandbox, SandboxBackend, SandboxSpec, Scope
from orchestrator.models import CallKey, Epoch, Network, OpId, PendingCall, RolloutKey, SandboxId
from orchestrator.operations import (
    Delta,
    DeltaResult,
    Exec,
    ExecResult,
    Failure,
    FailureCode,
    Freeze,
    FreezeResult,
    Operation,
    OperationResult,
    Put,
    PutResult,
    Read,
    ReadResult,
    Write,
    WriteResult,
)


class MutantSandbox:
    """Hands everything on; mutants override what they break."""

    def __init__(self, inner: Sandbox) -> None:
        self.inner = inner

    @property
    def id(self) -> SandboxId:
        return self.inner.id

    async def lease(self, rollout: RolloutKey, epoch: Epoch) -> Lease:
        return await self.inner.lease(rollout, epoch)

    async def run(
        self, op: Operation, *, op_id: OpId, deadline: float, call: PendingCall | None = None
    ) -> OperationResult:
        return await self.inner.run(op, op_id=op_id, deadline=deadline, call=call)

    async def acknowledge(self, calls: Sequence[CallKey]) -> None:
        await self.inner.acknowledge(calls)

    async def aclose(self) -> None:
        await self.inner.aclose()


class MutantBackend:
    """A backend, a fake one unless another is given, whose boxes are seen through `mutation`."""

    name = "mutant"
    scope = Scope.HOST

    def __init__(self, mutation: type[MutantSandbox] = MutantSandbox, inner: SandboxBackend | None = None) -> None:
        self.inner = inner or FakeBackend()
        self._mutation = mutation

    async def create(self, sandbox_id: SandboxId, spec: SandboxSpec, *, deadline: float) -> Sandbox:
        return self._mutation(await self.inner.create(sandbox_id, spec, deadline=deadline))

    async def attach(self, sandbox_id: SandboxId) -> Sandbox:
        return self._mutation(await self.inner.attach(sandbox_id))

    async def destroy(self, sandbox_id: SandboxId) -> None:
        await self.inner.destroy(sandbox_id)

    async def owned(self) -> Sequence[OwnedSandbox]:
        return await self.inner.owned()

    async def capacity(self) -> Capacity:
        return await self.inner.capacity()


class Forgetful(MutantSandbox):
    """Runs a retry again."""

    async def run(
        self, op: Operation, *, op_id: OpId, deadline: float, call: PendingCall | None = None
    ) -> OperationResult:
        key = CallKey(secrets.token_hex(8))
        header = PendingCall(key=key, sequence=1, tool="t", arguments={}, operations=0)
        return await self.inner.run(op, op_id=OpId(call=key, number=0), deadline=deadline, call=header)


class Unfenced(MutantSandbox):
    """Takes back a lease that it lost."""

    _held: tuple[RolloutKey, Epoch] | None = None

    async def lease(self, rollout: RolloutKey, epoch: Epoch) -> Lease:
        self._held = (rollout, epoch)
        return await self.inner.lease(rollout, Epoch(epoch + 100))

    async def run(
        self, op: Operation, *, op_id: OpId, deadline: float, call: PendingCall | None = None
    ) -> OperationResult:
        if self._held:
            await self.inner.lease(self._held[0], Epoch(10_000))
        return await self.inner.run(op, op_id=op_id, deadline=deadline, call=call)


class Thawed(MutantSandbox):
    """Says that it froze."""

    async def run(
        self, op: Operation, *, op_id: OpId, deadline: float, call: PendingCall | None = None
    ) -> OperationResult:
        if isinstance(op, Freeze):
            return FreezeResult(killed=1)
        return await self.inner.run(op, op_id=op_id, deadline=deadline, call=call)


class Merciful(MutantSandbox):
    """Reports a time-out and lets the processes live."""

    async def run(
        self, op: Operation, *, op_id: OpId, deadline: float, call: PendingCall | None = None
    ) -> OperationResult:
        if not isinstance(op, Exec):
            return await self.inner.run(op, op_id=op_id, deadline=deadline, call=call)
        patient = replace(op, timeout_s=60.0)
        soon = asyncio.get_running_loop().time() + op.timeout_s
        try:
            return await self.inner.run(patient, op_id=op_id, deadline=min(deadline, soon), call=call)
        except TimeoutError:
            return ExecResult(exit_code=None, signal="SIGKILL", timed_out=True)


class Careless(MutantSandbox):
    """Cuts output anywhere, leaks a variable, and reads and writes files by name, through links."""

    async def run(
        self, op: Operation, *, op_id: OpId, deadline: float, call: PendingCall | None = None
    ) -> OperationResult:
        if isinstance(op, Exec):
            leaky = replace(op, env={**op.env, "AWS_SECRET": "s3cret"}, output_limit_bytes=500_000)
            result = await self.inner.run(leaky, op_id=op_id, deadline=deadline, call=call)
            return _cut(result, op.output_limit_bytes) if isinstance(result, ExecResult) else result
        if isinstance(op, Read | Write):
            script = "cat" if isinstance(op, Read) else "cat > "
            stdin = b"" if isinstance(op, Read) else op.data
            byname = Exec(argv=("sh", "-c", f"{script} '{op.path}'"), stdin=stdin, timeout_s=5)
            done = await self.inner.run(byname, op_id=op_id, deadline=deadline, call=call)
            if isinstance(done, ExecResult) and done.exit_code == 0:
                return ReadResult(data=done.stdout.head, size_bytes=0, eof=True, sha256=None)
        return await self.inner.run(
            op, op_id=OpId(call=CallKey(f"{op_id.call}-again"), number=0), deadline=deadline, call=call
        )


def _cut(result: ExecResult, limit: int) -> ExecResult:
    whole = result.stdout.head
    if len(whole) <= limit:
        return result
    stdout = replace(result.stdout, head=whole[: limit - 1], cut_bytes=len(whole) - limit + 1)
    return replace(result, stdout=stdout)


class ShortSighted(MutantSandbox):
    """Takes a file of the same size for the same, and does not look at what git ignores; unpacks no tar."""

    async def run(
        self, op: Operation, *, op_id: OpId, deadline: float, call: PendingCall | None = None
    ) -> OperationResult:
        result = await self.inner.run(op, op_id=op_id, deadline=deadline, call=call)
        if isinstance(op, Delta) and isinstance(result, DeltaResult):
            sizes = {path: getattr(entry, "size_bytes", -1) for path, entry in op.manifest.items()}
            seen = [
                change
                for change in result.changes
                if sizes.get(change.path) != change.size_bytes and "hidden" not in change.path
            ]
            return replace(result, changes=seen)
        if isinstance(op, Put) and not isinstance(result, PutResult):
            return PutResult(files=1, size_bytes=1)
        return result


class ByName(MutantSandbox):
    """Reads and writes files by name, through whatever links there are at that moment."""

    async def run(
        self, op: Operation, *, op_id: OpId, deadline: float, call: PendingCall | None = None
    ) -> OperationResult:
        if not isinstance(op, Read | Write):
            return await self.inner.run(op, op_id=op_id, deadline=deadline, call=call)
        words = ("sh", "-c", 'cat "$0"', op.path) if isinstance(op, Read) else ("sh", "-c", 'cat > "$0"', op.path)
        stdin = b"" if isinstance(op, Read) else op.data
        done = await self.inner.run(
            Exec(argv=words, stdin=stdin, timeout_s=5), op_id=op_id, deadline=deadline, call=call
        )
        if not isinstance(done, ExecResult) or done.exit_code != 0:
            return Failure(code=FailureCode.NOT_FOUND, message="no such file")
        if isinstance(op, Write):
            return WriteResult(size_bytes=len(op.data), created=False, sha256="")
        return ReadResult(data=done.stdout.head, size_bytes=len(done.stdout.head), eof=True, sha256=None)


class Folding(MutantSandbox):
    """Takes names that look alike for the same."""

    async def run(
        self, op: Operation, *, op_id: OpId, deadline: float, call: PendingCall | None = None
    ) -> OperationResult:
        if isinstance(op, Read | Write):
            op = replace(op, path=unicodedata.normalize("NFC", op.path).lower())
        return await self.inner.run(op, op_id=op_id, deadline=deadline, call=call)


class Credulous(MutantSandbox):
    """Takes what a command prints for what the engine says."""

    async def run(
        self, op: Operation, *, op_id: OpId, deadline: float, call: PendingCall | None = None
    ) -> OperationResult:
        result = await self.inner.run(op, op_id=op_id, deadline=deadline, call=call)
        if isinstance(result, ExecResult) and b"No such container" in result.stdout.head:
            raise SandboxLost("the engine has no such container")
        return result


class Stuffed(MutantSandbox):
    """Cannot say what changed once its disk has been full."""

    _full = False

    async def run(
        self, op: Operation, *, op_id: OpId, deadline: float, call: PendingCall | None = None
    ) -> OperationResult:
        result = await self.inner.run(op, op_id=op_id, deadline=deadline, call=call)
        self._full |= isinstance(result, Failure) and result.code is FailureCode.NO_SPACE
        return DeltaResult(changes=(), truncated=True, files=0) if self._full and isinstance(op, Delta) else result


class Immortal(MutantBackend):
    """Its boxes cannot be destroyed."""

    async def destroy(self, sandbox_id: SandboxId) -> None:
        del sandbox_id


class Negligent(MutantBackend):
    """Ignores what it cannot honour, and makes boxes after their deadline."""

    async def create(self, sandbox_id: SandboxId, spec: SandboxSpec, *, deadline: float) -> Sandbox:
        late = asyncio.get_running_loop().time() + 10
        return await super().create(sandbox_id, replace(spec, network=Network()), deadline=max(deadline, late))
