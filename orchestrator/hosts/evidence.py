"""What leaves a box at the end: gathered by the host from a frozen box, checked, never what the box says of itself."""

import asyncio
import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count

from orchestrator.egress import attempts
from orchestrator.errors import (
    AgentProtocolError,
    SandboxDead,
    SandboxLost,
    SandboxOutOfMemory,
    SandboxOverDisk,
    StartFailed,
)
from orchestrator.hosts.opening import template_of
from orchestrator.hosts.parts import Parts
from orchestrator.hosts.plain_tar import regular_members
from orchestrator.hosts.rollout import Rollout
from orchestrator.interfaces import Blobs, EgressControl, Sandbox
from orchestrator.models import BoxEnd, CallKey, CallRecord, Evidence, FileChange, Finding, OpId
from orchestrator.operations import (
    Change,
    Delta,
    DeltaResult,
    Failure,
    Freeze,
    Get,
    GetResult,
    Operation,
    OperationResult,
)
from orchestrator.tools.submit import submitted

OWN_OPERATION_S = 300.0
"""For one of the host's own operations: a delta of a large tree under gVisor takes seconds."""
AFTER_FREEZE_S = 5.0
"""For calls to end whose commands the freeze has killed."""
TAR_BLOCK_BYTES = 2_048
"""What a tar adds to a file, long names included, rounded up."""
MAX_PATHS_PER_GET = 1_000
BLOBS_AT_ONCE = 8
"""Being put: each waits for the disk, which takes several waits at once for little more than one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What came out of the box's tree."""

    changes: tuple[FileChange, ...] = ()
    truncated: bool = False
    findings: tuple[Finding, ...] = ()


async def gather(parts: Parts, rollout: Rollout) -> Evidence:
    """The evidence of a rollout in GATHERING. May be repeated.

    Running calls have `settle_s` to end; then everything in the box is killed. Raises SandboxLost (AgentProtocolError when what the box says
    of a file does not fit its content), StoreError, and StartFailed when a box was asked for and none ever started: a failure of ours is not
    to be graded as if the model had done nothing.
    """
    end, taken = await _box_evidence(parts, rollout)
    records = await parts.store.calls(rollout.key)
    stored = await parts.store.findings(rollout.key)
    return Evidence(
        rollout=rollout.key,
        task=rollout.task.id,
        changes=taken.changes,
        truncated=taken.truncated,
        final_answer=rollout.final_answer,
        submitted=submitted(records),
        calls=_charged(records),
        box_end=end,
        findings=(*(Finding(code=code, detail=detail) for code, detail in stored), *taken.findings),
        gathered_at=time.time(),
    )


def _charged(records: Sequence[CallRecord]) -> int:
    return sum(record.charged for record in records)


async def _box_evidence(parts: Parts, rollout: Rollout) -> tuple[BoxEnd, Taken]:
    await _quiet(rollout, parts.settings.settle_s)
    if rollout.state.died is not None:
        return rollout.state.died, Taken(findings=await _last_attempts(parts, rollout))
    if rollout.sandbox is None:
        if rollout.binding.sandbox is not None:
            raise StartFailed("this rollout asked for a box and none could be started: it is not scored")
        return BoxEnd.NEVER_OPENED, Taken()
    try:
        tried = await _cut(parts, rollout)
        taken = await _from_box(parts, rollout, Own(rollout.sandbox, rollout.task.workdir))
        return BoxEnd.ALIVE, replace(taken, findings=(*taken.findings, *tried))
    except SandboxDead as error:
        return end_of(error), Taken(findings=await _last_attempts(parts, rollout))


async def _cut(parts: Parts, rollout: Rollout) -> tuple[Finding, ...]:
    """The box's network is gone from here on; what it tried. Raises SandboxLost, EngineUnavailable.

    An adopted box is asked in any case: its task may have had another network when it was made.
    """
    sandbox_id = rollout.binding.sandbox
    connected = bool(rollout.task.network.allow) or rollout.adopted is not None
    if sandbox_id is None or not connected or not isinstance(parts.backend, EgressControl):
        return ()
    return attempts.findings(await parts.backend.cut(sandbox_id))


async def _last_attempts(parts: Parts, rollout: Rollout) -> tuple[Finding, ...]:
    """Of a box that died by the model's doing: its reward is the floor, also where its network is gone with all that it noted."""
    try:
        return await _cut(parts, rollout)
    except SandboxLost as error:
        return (Finding(code="network_unknown", detail=error.message),)


async def _quiet(rollout: Rollout, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await rollout.quiet.wait()
    except TimeoutError:
        return


def end_of(error: SandboxDead) -> BoxEnd:
    match error:
        case SandboxOutOfMemory():
            return BoxEnd.DIED_OF_MEMORY
        case SandboxOverDisk():
            return BoxEnd.OVER_DISK
    return BoxEnd.AGENT_KILLED


class Own:
    """The host's own operations on a box; they are not journaled and may be repeated."""

    def __init__(self, sandbox: Sandbox, workdir: str) -> None:
        self._sandbox = sandbox
        self.workdir = workdir
        self._numbers = count()

    async def run(self, op: Operation) -> OperationResult:
        """Raises SandboxLost when the box does not answer in time."""
        op_id = OpId(call=CallKey("host"), number=next(self._numbers))
        try:
            return await self._sandbox.run(op, op_id=op_id, deadline=time.monotonic() + OWN_OPERATION_S)
        except TimeoutError as error:
            raise SandboxLost(f"the box did not answer within {OWN_OPERATION_S:g} s") from error


async def _from_box(parts: Parts, rollout: Rollout, own: Own) -> Taken:
    template = await template_of(parts, rollout)
    await own.run(Freeze())
    await _quiet(rollout, AFTER_FREEZE_S)
    delta = await own.run(Delta(root=own.workdir, manifest=template.manifest))
    if isinstance(delta, Failure):  # the workspace itself was made unreadable: the model's doing
        return Taken(truncated=True, findings=(Finding(code="delta_refused", detail=delta.message),))
    if not isinstance(delta, DeltaResult):
        raise AgentProtocolError("the box answered a delta with something else")
    return await carry(parts, own, delta)


async def carry(parts: Parts, own: Own, delta: DeltaResult) -> Taken:
    """The changed regular files' content, put into blobs, up to `max_evidence_bytes`."""
    wanted, left_out = within_budget(delta.changes, parts.settings.max_evidence_bytes)
    blobs: dict[str, str] = {}
    unreadable: list[str] = []
    for chunk in chunks(wanted, parts.settings.evidence_chunk_bytes):
        await _fetch(parts, own, chunk, blobs, unreadable)
    findings = [Finding(code="delta_truncated", detail=f"{len(delta.changes)} changes are listed, more exist")]
    findings = findings if delta.truncated else []
    findings += [Finding(code="too_large_to_carry", detail=path) for path in left_out[:20]]
    findings += [Finding(code="unreadable", detail=path) for path in unreadable[:20]]
    return Taken(
        changes=tuple(_file_change(change, blobs.get(change.path)) for change in delta.changes),
        truncated=bool(delta.truncated or left_out or unreadable),
        findings=tuple(findings),
    )


def within_budget(changes: Sequence[Change], budget_bytes: int) -> tuple[list[Change], list[str]]:
    """The files whose content is carried, in order, and the paths of those that no longer fit or that the agent had no time to hash. Pure."""
    wanted: list[Change] = []
    left_out: list[str] = []
    for change in changes:
        if change.kind == "deleted" or change.type != "file":
            continue
        if change.sha256 is None or change.size_bytes > budget_bytes:
            left_out.append(change.path)
            continue
        budget_bytes -= change.size_bytes
        wanted.append(change)
    return wanted, left_out


def chunks(changes: Sequence[Change], chunk_bytes: int) -> Iterator[list[Change]]:
    """Groups that fit `chunk_bytes` each; a file larger than that goes alone. Pure."""
    group: list[Change] = []
    size = 0
    for change in changes:
        if group and (size + change.size_bytes > chunk_bytes or len(group) >= MAX_PATHS_PER_GET):
            yield group
            group, size = [], 0
        group.append(change)
        size += change.size_bytes
    if group:
        yield group


async def _fetch(parts: Parts, own: Own, chunk: Sequence[Change], blobs: dict[str, str], unreadable: list[str]) -> None:
    """Content of `chunk` into `blobs` by path. Where the box refuses, halves are tried: one bad file costs only itself."""
    size = sum(change.size_bytes for change in chunk)
    op = Get(
        root=own.workdir,
        paths=tuple(change.path for change in chunk),
        max_bytes=size + TAR_BLOCK_BYTES * (len(chunk) + 10),
    )
    result = await own.run(op)
    if isinstance(result, Failure):
        if len(chunk) == 1:
            unreadable.append(chunk[0].path)
            return
        half = len(chunk) // 2
        await _fetch(parts, own, chunk[:half], blobs, unreadable)
        await _fetch(parts, own, chunk[half:], blobs, unreadable)
        return
    if not isinstance(result, GetResult):
        raise AgentProtocolError("the box answered a get with something else")
    files = await asyncio.to_thread(unpack, result.tar, chunk)
    blobs |= await keep_all(parts.blobs, files)


async def keep_all(blobs: Blobs, files: Mapping[str, bytes]) -> dict[str, str]:
    """Path -> digest, when all are kept. Raises StoreError; what is being put then ends first."""
    names: dict[str, str] = {}
    waiting = iter(files.items())

    async def work() -> None:
        for path, data in waiting:
            names[path] = await blobs.put(data)

    ended = await asyncio.gather(*(work() for _ in range(BLOBS_AT_ONCE)), return_exceptions=True)
    for failure in ended:
        if failure is not None:
            raise failure
    return names


def unpack(tar: bytes, chunk: Sequence[Change]) -> Mapping[str, bytes]:
    """Path -> content, exactly the files of `chunk`, each with the hash that the delta named. Blocking: run it in a thread.

    The box is frozen, so nothing can have changed in between. Raises AgentProtocolError for anything else.
    """
    expected = {change.path: change for change in chunk}
    files: dict[str, bytes] = {}
    try:
        for name, data in regular_members(tar):
            change = expected.get(name)
            if change is None or len(data) != change.size_bytes or name in files:
                raise AgentProtocolError("the box sent a file that was not asked for")
            files[name] = data
    except ValueError as error:
        raise AgentProtocolError("the box sent a damaged archive") from error
    for path, change in expected.items():
        if path not in files or hashlib.sha256(files[path]).hexdigest() != change.sha256:
            raise AgentProtocolError("the box sent other content than its delta names")
    return files


def _file_change(change: Change, blob: str | None) -> FileChange:
    return FileChange(
        path=change.path,
        kind=change.kind,
        type=change.type,
        mode=change.mode,
        size_bytes=change.size_bytes,
        blob=blob,
    )
