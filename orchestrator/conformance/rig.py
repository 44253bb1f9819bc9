"""What checks work with: boxes of the backend under test, made, leased, used and ended."""

import asyncio
import io
import secrets
import tarfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import cache
from typing import TypeVar

from orchestrator.agent.binary import probe_binary
from orchestrator.conformance import expect
from orchestrator.interfaces import Sandbox, SandboxBackend, SandboxSpec
from orchestrator.models import CallKey, Epoch, JobId, OpId, PendingCall, RolloutKey, SandboxId, TraceId
from orchestrator.operations import (
    Exec,
    ExecResult,
    Manifest,
    Note,
    Operation,
    OperationResult,
    Put,
    PutResult,
    Read,
    ReadResult,
    Write,
    WriteResult,
)

Outcome = TypeVar("Outcome")

START_S = 60.0
OPERATION_S = 20.0
PROBE = "/tmp/tiltyard-probe"  # noqa: S108  (in the box)
SLACK_S = 10.0
"""Over a command's own time-out before its reply is missed."""


@cache
def _packed_probe() -> bytes:
    """The probe for this machine's boxes, as a tar. Raises Misconfigured where it is not built."""
    data = probe_binary().read_bytes()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo(PROBE.rpartition("/")[2])
        info.size, info.mode = len(data), 0o755
        archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


class Box:
    """One leased box, with an operation per line. `dir` is a folder of the workspace that one check has to itself."""

    def __init__(self, sandbox: Sandbox, rollout: RolloutKey, epoch: Epoch) -> None:
        self.sandbox = sandbox
        self.rollout = rollout
        self.epoch = epoch
        self.dir = "."
        self._sequence = 0
        self._has_probe = False

    @property
    def id(self) -> SandboxId:
        return self.sandbox.id

    def path(self, name: str) -> str:
        """`name` in this check's folder, relative to the workspace."""
        return name if self.dir == "." else f"{self.dir}/{name}"

    def header(self, tool: str = "check") -> PendingCall:
        """A call that nobody else makes."""
        self._sequence += 1
        key = CallKey(secrets.token_hex(16))
        return PendingCall(key=key, sequence=self._sequence, tool=tool, arguments={}, operations=0)

    async def run(self, op: Operation, *, timeout_s: float = OPERATION_S) -> OperationResult:
        """`op` as the only operation of a new call."""
        return await self.send(op, self.header(), timeout_s=timeout_s)

    async def send(
        self, op: Operation, call: PendingCall, number: int = 0, *, timeout_s: float = OPERATION_S
    ) -> OperationResult:
        """`op` as operation `number` of `call`."""
        return await self.sandbox.run(
            op,
            op_id=OpId(call=call.key, number=number),
            deadline=time.monotonic() + timeout_s,
            call=None if number else call,
        )

    async def exec(self, op: Exec) -> ExecResult:
        return expect.kind(await self.run(op, timeout_s=op.timeout_s + SLACK_S), ExecResult)

    def shell_op(
        self,
        script: str,
        *,
        timeout_s: float = OPERATION_S,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        limit: int = 65_536,
        merge: bool = True,
        events: bool = False,
    ) -> Exec:
        """`sh -c script` in this check's folder."""
        return Exec(
            argv=("sh", "-c", script),
            timeout_s=timeout_s,
            cwd=self.dir,
            env=env or {},
            stdin=stdin,
            output_limit_bytes=limit,
            merge_stderr=merge,
            events=events,
        )

    async def sh(
        self, script: str, *, timeout_s: float = OPERATION_S, stdin: bytes = b"", limit: int = 65_536
    ) -> ExecResult:
        return await self.exec(self.shell_op(script, timeout_s=timeout_s, stdin=stdin, limit=limit))

    async def text(self, script: str, *, timeout_s: float = OPERATION_S, stdin: bytes = b"") -> str:
        """The output of a script that must succeed."""
        result = expect.succeeded(await self.sh(script, timeout_s=timeout_s, stdin=stdin), f"sh -c {script!r}")
        return result.stdout.head.decode("utf-8", "replace")

    def probe_op(self, *arguments: object, timeout_s: float = OPERATION_S, limit: int = 524_288) -> Exec:
        """The probe with these arguments, in this check's folder; `probe` must have put it into the box."""
        argv = (PROBE, *map(str, arguments))
        return Exec(argv=argv, timeout_s=timeout_s, cwd=self.dir, output_limit_bytes=limit)

    async def probe(self, *arguments: object, timeout_s: float = OPERATION_S) -> ExecResult:
        """How the probe ended; it is put into the box first where that has not been done."""
        await self.bring_probe()
        return await self.exec(self.probe_op(*arguments, timeout_s=timeout_s))

    async def facts(self, *arguments: object, timeout_s: float = OPERATION_S) -> list[list[str]]:
        """What the probe printed: fields of each line. It must have succeeded."""
        result = expect.succeeded(await self.probe(*arguments, timeout_s=timeout_s), f"probe {arguments[0]}")
        return [line.split("\t") for line in result.stdout.head.decode("utf-8", "replace").splitlines()]

    async def bring_probe(self) -> None:
        if not self._has_probe:
            put = Put(path="/tmp", tar=await asyncio.to_thread(_packed_probe))  # noqa: S108  (in the box)
            expect.kind(await self.run(put), PutResult)
            self._has_probe = True

    async def write(self, name: str, data: bytes, *, mode: int | None = None) -> WriteResult:
        return expect.kind(await self.run(Write(path=self.path(name), data=data, mode=mode)), WriteResult)

    async def read(self, name: str) -> bytes:
        return expect.kind(await self.run(Read(path=self.path(name))), ReadResult).data

    async def alive(self) -> None:
        """The agent answers, and commands start."""
        note = await self.run(Note(data=b"alive"))
        expect.equal(getattr(note, "data", note), b"alive", "a note, to see whether the agent answers")
        expect.equal(await self.text("echo up"), "up\n", "a command after what was done to the box")


class Rig:
    """Boxes for checks. One is shared by checks that do no harm; the others ask for their own."""

    def __init__(self, backend: SandboxBackend, spec: SandboxSpec) -> None:
        self.backend = backend
        self.spec = spec
        self.made: set[SandboxId] = set()
        self._token = secrets.token_hex(4)
        self._shared: Box | None = None
        self._stack = AsyncExitStack()
        self._folders = 0

    @property
    def manifest(self) -> Manifest:
        """What a fresh box's workspace holds."""
        return self.spec.template.manifest if self.spec.template else {}

    def new_id(self) -> SandboxId:
        """An id that no box has; it is remembered, so that what is left behind shows."""
        sandbox_id = SandboxId(f"conformance-{self._token}-{len(self.made) + 1}")
        self.made.add(sandbox_id)
        return sandbox_id

    async def box(self) -> Box:
        """The shared box, with a new folder."""
        if self._shared is None:
            self._shared = await self._stack.enter_async_context(self.own_box())
        self._folders += 1
        folder = f"check-{self._folders}"
        self._shared.dir = "."
        await self._shared.text(f"mkdir {folder}")
        self._shared.dir = folder
        return self._shared

    async def discard(self) -> None:
        """End the shared box; the next check gets a new one."""
        self._shared = None
        await self._stack.aclose()

    @asynccontextmanager
    async def own_box(self, spec: SandboxSpec | None = None) -> AsyncIterator[Box]:
        """A fresh box, ended afterwards."""
        sandbox_id = self.new_id()
        try:
            sandbox = await self.backend.create(sandbox_id, spec or self.spec, deadline=time.monotonic() + START_S)
            try:
                yield await leased(sandbox)
            finally:
                await sandbox.aclose()
        finally:
            await self.backend.destroy(sandbox_id)

    def limited(self, **limits: int | float) -> SandboxSpec:
        """The suite's spec with other limits."""
        return replace(self.spec, limits=replace(self.spec.limits, **limits))  # type: ignore[arg-type]

    async def listed(self) -> set[SandboxId]:
        """Boxes of this suite that the backend has."""
        return {box.id for box in await self.backend.owned()} & self.made

    async def aclose(self) -> list[SandboxId]:
        """End every box that is left; which of them the backend still has afterwards."""
        await self.discard()
        leftovers = await self.listed()
        for sandbox_id in leftovers:
            await self.backend.destroy(sandbox_id)
        return sorted(leftovers)


async def leased(sandbox: Sandbox, epoch: int = 1, rollout: RolloutKey | None = None) -> Box:
    """Take the box's lease, for a rollout of its own unless one is given."""
    rollout = rollout or RolloutKey(job=JobId("conformance"), trace_id=TraceId(sandbox.id))
    await sandbox.lease(rollout, Epoch(epoch))
    return Box(sandbox, rollout, Epoch(epoch))


async def until(condition: Callable[[], Awaitable[bool]], what: str, *, within_s: float = 5.0) -> None:
    """Wait until `condition()` holds. Raises Broken."""
    give_up = time.monotonic() + within_s
    while not await condition():
        expect.that(time.monotonic() < give_up, f"{what} within {within_s:g} s")
        await asyncio.sleep(0.05)


@asynccontextmanager
async def beside(work: Coroutine[object, object, Outcome]) -> AsyncIterator["asyncio.Task[Outcome]"]:
    """`work` as a task, ended with the body, however that ends."""
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
