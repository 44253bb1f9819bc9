"""One fake box: the agent's lease, journal and dispatch, without the wire between.

Kept faithful to docs/agent-protocol.md: operations run once per id and are replayed; an acknowledged call leaves a tombstone; an older epoch, another
rollout and, after a freeze, whatever is new are refused.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from orchestrator.backends.fake import files, moves
from orchestrator.backends.fake.faults import DiesLater, died
from orchestrator.backends.fake.machine import UID_COUNT, Machine
from orchestrator.backends.fake.places import Places
from orchestrator.backends.fake.process import CommandResult
from orchestrator.backends.fake.sessions import Sessions
from orchestrator.backends.fake.tree import Dir, File, Refusal, Tree
from orchestrator.errors import AgentProtocolError, ReplayDiverged, RolloutClosed, SandboxDead, SandboxLost, StaleLease
from orchestrator.interfaces import Lease, SandboxSpec
from orchestrator.models import CallKey, Epoch, OpId, PendingCall, RolloutKey, SandboxId
from orchestrator.operations import (
    Delta,
    Edit,
    Exec,
    Failure,
    FailureCode,
    Freeze,
    FreezeResult,
    Get,
    Glob,
    List,
    Note,
    NoteResult,
    Operation,
    OperationResult,
    Put,
    Read,
    Search,
    Session,
    Write,
)

MIB = 1024 * 1024
Done = OperationResult | asyncio.Future[CommandResult]
HOST_OWN = (Put, Get, Delta, Freeze)
"""Operations that are not journaled."""


@dataclass(slots=True, eq=False)
class _Call:
    header: PendingCall
    operations: "dict[int, _Kept]" = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class _Kept:
    op: Operation
    done: Done


class FakeBox:
    """State of one box. It has no task of its own: only commands that wait have one each."""

    __slots__ = (
        "_base",
        "_calls",
        "_deaths",
        "_frozen",
        "_lease",
        "_machine",
        "_sessions",
        "_tombstones",
        "_tree",
        "_uid_base",
        "begun",
        "boot_id",
        "created_at",
        "end",
        "id",
        "places",
        "spec",
    )

    def __init__(
        self,
        sandbox_id: SandboxId,
        spec: SandboxSpec,
        *,
        boot_id: str,
        created_at: float,
        uid_base: int,
        base: Dir | None,
        deaths: Sequence[DiesLater] = (),
    ) -> None:
        self.id = sandbox_id
        self.spec = spec
        self.boot_id = boot_id
        self.created_at = created_at
        self.begun = 0
        self.end: SandboxLost | SandboxDead | None = None
        self.places = Places(tuple(part for part in spec.workdir.split("/") if part))
        self._base = base
        self._uid_base = uid_base
        self._deaths = tuple(deaths)
        self._lease: tuple[RolloutKey, Epoch] | None = None
        self._frozen = False
        self._calls: dict[CallKey, _Call] = {}
        self._tombstones: set[CallKey] = set()
        self._tree: Tree | None = None
        self._machine: Machine | None = None
        self._sessions: Sessions | None = None

    # Life

    def reach(self) -> None:
        """Raises SandboxLost, SandboxDead."""
        if self.end is None and (order := died(self._deaths, self.begun)) is not None:
            self.kill(dead=order.dead)
        if self.end is not None:
            raise type(self.end)(self.end.message)

    def kill(self, *, dead: bool) -> None:
        """The box is gone at once, by the model's doing (`dead`) or not."""
        if self.end is not None:
            return
        self.end = (
            SandboxDead("the box died of what ran in it")
            if dead
            else SandboxLost(f"box {self.id} is gone; its rollout cannot go on")
        )
        if self._machine is not None:
            for process in list(self._machine.processes.values()):
                if process.task is not None:
                    process.task.cancel()

    async def destroy(self) -> None:
        self.kill(dead=False)
        if self._machine is not None:
            await self._machine.end()
        self._tree, self._machine, self._sessions = None, None, None

    async def quiet(self) -> None:
        """Return when no process is left."""
        if self._machine is not None:
            await self._machine.quiet()

    # Lease

    @property
    def frozen(self) -> bool:
        return self._frozen

    def lease(self, rollout: RolloutKey, epoch: Epoch) -> Lease:
        """Raises StaleLease, SandboxLost (leased to another rollout)."""
        if self._lease is not None:
            self._fence(rollout, epoch)
        self._lease = (rollout, epoch)
        return Lease(boot_id=self.boot_id, epoch=epoch, frozen=self._frozen, pending=self.pending())

    def pending(self) -> tuple[PendingCall, ...]:
        return tuple(replace(call.header, operations=len(call.operations)) for call in self._calls.values())

    def _fence(self, rollout: RolloutKey, epoch: Epoch) -> None:
        if self._lease is None:
            raise SandboxLost("the box has not been leased")
        if self._lease[0] != rollout:
            raise SandboxLost("the box is leased to another rollout")
        if epoch < self._lease[1]:
            raise StaleLease("a newer epoch holds the box's lease")

    def acknowledge(self, rollout: RolloutKey, epoch: Epoch, calls: Sequence[CallKey]) -> None:
        """Raises StaleLease."""
        self._fence(rollout, epoch)
        for key in calls:
            self._calls.pop(key, None)
            self._tombstones.add(key)

    # Operations

    def begin(
        self, rollout: RolloutKey, epoch: Epoch, op: Operation, op_id: OpId, call: PendingCall | None, extra_s: float
    ) -> Done:
        """Run, join or replay; a future where the operation still runs. Raises StaleLease, ReplayDiverged, SandboxError."""
        self._fence(rollout, epoch)
        if isinstance(op, HOST_OWN):
            return self._own(op)
        kept = self.kept(op_id)
        if kept is not None:
            if not _same(kept.op, op):
                raise ReplayDiverged(f"operation {op_id} came with another body than the first time")
            return kept.done
        entry = self._entry(op_id, call)
        self.begun += 1
        entry.operations[op_id.number] = _Kept(op, done := self._run(op, extra_s))
        return done

    def kept(self, op_id: OpId) -> _Kept | None:
        """What is known of an operation; its result once there is one."""
        entry = self._calls.get(op_id.call)
        kept = entry.operations.get(op_id.number) if entry else None
        if kept and isinstance(kept.done, asyncio.Future) and _settled(kept.done):
            kept.done = kept.done.result()
        return kept

    def _entry(self, op_id: OpId, call: PendingCall | None) -> _Call:
        """Where a new operation is journaled. Raises ReplayDiverged, SandboxError."""
        if op_id.call in self._tombstones:
            raise ReplayDiverged(f"call {op_id.call} was acknowledged: its operations never run again")
        if self._frozen:
            raise RolloutClosed("the box is frozen: nothing new runs in it")
        entry = self._calls.get(op_id.call)
        known = len(entry.operations) if entry else 0
        if op_id.number != known:
            raise AgentProtocolError(f"operation {known} of the call comes next, not {op_id.number}")
        if entry is None and call is not None:
            entry = self._calls[op_id.call] = _Call(call)
        assert entry is not None
        return entry

    def _run(self, op: Operation, extra_s: float) -> Done:
        if isinstance(op, Note):
            return NoteResult(data=op.data)
        if isinstance(op, Exec):
            return _forbidden(op, self.spec) or self.machine().start(op, extra_s=extra_s)
        if isinstance(op, Session):
            return self.sessions().start(op, extra_s=extra_s)
        try:
            return _file_operation(self.tree(), self.places, op)
        except Refusal as refusal:
            return refusal.failure

    def _own(self, op: Put | Get | Delta | Freeze) -> OperationResult:
        if isinstance(op, Freeze):
            self._frozen = True
            return FreezeResult(killed=self._machine.kill_all() if self._machine else 0)
        try:
            return _move(self.tree(), self.places, op)
        except Refusal as refusal:
            return refusal.failure

    # Parts that an idle box does not have

    def tree(self) -> Tree:
        if self._tree is None:
            limits = self.spec.limits
            self._tree = Tree(capacity_bytes=limits.disk_mib * MIB, capacity_nodes=limits.inodes)
            _furnish(self._tree, self.places, self._base)
        return self._tree

    def machine(self) -> Machine:
        if self._machine is None:
            self._machine = Machine(self.tree(), self.places, self._uid_base)
        return self._machine

    def sessions(self) -> Sessions:
        if self._sessions is None:
            self._sessions = Sessions(self.machine())
        return self._sessions


def _furnish(tree: Tree, places: Places, base: Dir | None) -> None:
    tree.mount(
        ("etc", "passwd"), File.of(b"root:x:0:0:root:/root:/bin/sh\nagent:x:1000000:1000000::/home/agent:/bin/sh\n")
    )
    for place in (places.home, places.tmp):
        tree.mount(place, Dir(owner=tree))
    tree.mount(places.workspace, base or Dir(owner=tree))


def _settled(future: "asyncio.Future[CommandResult]") -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


def _same(first: Operation, again: Operation) -> bool:
    """Time-outs apart, and whatever a note holds apart, the same operation."""
    if isinstance(first, Note) and isinstance(again, Note):
        return True
    if isinstance(first, Exec) and isinstance(again, Exec):
        return replace(first, timeout_s=0.0) == replace(again, timeout_s=0.0)
    if isinstance(first, Session) and isinstance(again, Session):
        return replace(first, timeout_s=0.0) == replace(again, timeout_s=0.0)
    return first == again


FileOperation = Read | Write | Edit | List | Glob | Search
_FILE_OPERATIONS: dict[type, Callable[..., OperationResult]] = {
    Read: files.read,
    Write: files.write,
    Edit: files.edit,
    List: files.list_folder,
    Glob: files.glob,
    Search: files.search,
}


def _forbidden(op: Exec, spec: SandboxSpec) -> Failure | None:
    if op.principal == "trusted":
        refusal = None if spec.grader else "this box runs no trusted commands"
    else:
        refusal = None if op.principal < UID_COUNT else f"this box has {UID_COUNT} principals"
    return Failure(code=FailureCode.PERMISSION, message=refusal) if refusal else None


def _file_operation(tree: Tree, places: Places, op: Operation) -> OperationResult:
    return _FILE_OPERATIONS[type(op)](tree, places, op)


def _move(tree: Tree, places: Places, op: Put | Get | Delta) -> OperationResult:
    match op:
        case Put():
            return moves.put(tree, places, op)
        case Get():
            return moves.get(tree, places, op)
        case Delta():
            return moves.delta(tree, places, op)
