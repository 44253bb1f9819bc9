"""The host's client for one in-box agent: `interfaces.Sandbox` over its unix socket or its port. Protocol: docs/agent-protocol.md."""

import asyncio
import json
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import assert_never
from urllib.parse import quote, urlencode

from orchestrator.agent import wire
from orchestrator.agent.fields import Fields, parse_json
from orchestrator.agent.health import Health, decode_health
from orchestrator.agent.transport import Reply, Stalled, Streamed, TcpEndpoint, Transport, Unreachable
from orchestrator.errors import (
    AgentProtocolError,
    ReplayDiverged,
    RolloutClosed,
    SandboxDead,
    SandboxError,
    SandboxLost,
    StaleLease,
    TiltyardError,
)
from orchestrator.interfaces import Lease
from orchestrator.models import CallKey, Epoch, OpId, PendingCall, RolloutKey, SandboxId
from orchestrator.operations import (
    Delta,
    Edit,
    Exec,
    Failure,
    FailureCode,
    Freeze,
    Get,
    GetResult,
    Glob,
    List,
    Note,
    Operation,
    OperationResult,
    Put,
    Read,
    Search,
    Session,
    Write,
)

LONG_POLL_S = 30.0
GRACE_S = 15.0
"""How much longer than its own wait a request may take before the agent counts as silent: a box that thrashes is slow."""
BLAME_S = 3.0
"""How long, once an operation's time is over, the cause of a silence is looked for."""
SHORT_S = 30.0
"""For requests that wait for nothing in the box."""
MAX_BODY_BYTES = 4 * 1024 * 1024
TAR_OVERHEAD_BYTES = 16 * 1024 * 1024
"""Headers and padding of a tar beyond its contents: 1.5 KiB for each of 10,000 files."""
DELTA_REPLY_BYTES = 64 * 1024 * 1024
SMALL_REPLY_BYTES = 8 * 1024 * 1024
READY_PAUSE_S, LONGEST_READY_PAUSE_S = 0.005, 0.25
READY_SHARE = 0.1
"""Between two looks for a fresh agent, of the time that was waited: a pod's image may take minutes to come."""
MAX_SOCKET_PATH = 107
"""What fits into sockaddr_un."""


def ready_pause_s(waited_s: float) -> float:
    """Until the next look for a fresh box's agent. Pure."""
    return min(max(READY_PAUSE_S, READY_SHARE * waited_s), LONGEST_READY_PAUSE_S)


class AgentClient:
    """One box. `explain_loss` is asked for the error to raise when the agent is silent, gone or another one than before.

    Cancelling a call never cancels the operation: it runs on in the box, and the same id joins it. May be shared by many tasks of one loop.
    """

    def __init__(
        self, sandbox_id: SandboxId, socket: Path | TcpEndpoint, *, explain_loss: Callable[[], Awaitable[TiltyardError]]
    ) -> None:
        """Raises ValueError for a socket path longer than the kernel takes."""
        if isinstance(socket, Path) and len(str(socket).encode()) > MAX_SOCKET_PATH:
            raise ValueError(f"a unix socket's path has at most {MAX_SOCKET_PATH} bytes: {socket}")
        self._id = sandbox_id
        self._transport = Transport(socket)
        self._explain_loss = explain_loss
        self._boot_id: str | None = None
        self._protocol = ""
        self._fence: dict[str, str] = {}

    @property
    def id(self) -> SandboxId:
        return self._id

    async def health(self) -> Health:
        """Raises what `explain_loss` returns, AgentProtocolError."""
        reply = await self._ask("GET", "/v1/health", timeout_s=SHORT_S)
        return decode_health(parse_json(reply.body))

    async def wait_ready(self, deadline: float) -> Health:
        """Wait until a fresh box's agent answers. Raises TimeoutError at `deadline`, AgentProtocolError, what `explain_loss` returns (closed)."""
        began = time.monotonic()
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("the box's agent did not answer in time")
            try:
                reply = await self._transport.send(
                    "GET", "/v1/health", headers={}, body=None, timeout_s=left, limit_bytes=SMALL_REPLY_BYTES
                )
            except (Unreachable, Stalled):
                if self._transport.closed:
                    raise await self._explain_loss() from None
                await asyncio.sleep(ready_pause_s(time.monotonic() - began))
                continue
            if reply.status != 200:
                raise await self._error(reply)
            return decode_health(parse_json(reply.body))

    async def lease(self, rollout: RolloutKey, epoch: Epoch) -> Lease:
        """See `interfaces.Sandbox`."""
        name = f"{quote(rollout.job, safe='')}/{quote(rollout.trace_id, safe='')}"
        body = json.dumps({"rollout": name, "epoch": epoch}).encode()
        reply = await self._ask(
            "POST", "/v1/lease", body=body, timeout_s=SHORT_S, limit_bytes=DELTA_REPLY_BYTES, epoch=epoch
        )
        lease = wire.decode_lease(parse_json(reply.body))
        if lease.epoch != epoch:
            raise AgentProtocolError("the lease is of another epoch than was asked for")
        self._boot_id = lease.boot_id
        self._fence = {"Tiltyard-Rollout": name, "Tiltyard-Epoch": str(epoch)}
        return lease

    async def seed(self, tar: Streamed | None, *, deadline: float) -> None:
        """Unpack an uncompressed tar (files, folders, symlinks), or what the box's own image holds (None), into the workspace of a box that nobody
        has yet.

        Raises TimeoutError, what `explain_loss` returns, AgentProtocolError (no valid token), SandboxError (refused: the box was leased, is too
        small for it, or the tar holds what it may not).
        """
        left = deadline - time.monotonic()
        try:
            reply = await self._transport.stream(
                "/v1/seed?path=." if tar is not None else "/v1/seed?path=.&from=image",
                tar if tar is not None else b"",
                timeout_s=max(0.0, left),
                limit_bytes=SMALL_REPLY_BYTES,
            )
        except Stalled:
            raise TimeoutError("the box did not take its repository in time") from None
        except Unreachable:
            raise await self._explain_loss() from None
        if reply.status == 200:
            return
        f = Fields(parse_json(reply.body), "the refusal")
        if f.text("error", 64) not in UNSEEDED:
            raise await self._error(reply)
        raise SandboxError(f"the box did not take its repository: {f.text('message')}")

    async def acknowledge(self, calls: Sequence[CallKey]) -> None:
        """See `interfaces.Sandbox`."""
        if calls:
            body = json.dumps({"calls": list(calls)}).encode()
            await self._ask("POST", "/v1/ack", body=body, timeout_s=SHORT_S, headers=self._fence)

    async def aclose(self) -> None:
        """Idempotent."""
        await self._transport.aclose()

    async def run(
        self, op: Operation, *, op_id: OpId, deadline: float, call: PendingCall | None = None
    ) -> OperationResult:
        """See `interfaces.Sandbox`. Raises RolloutClosed for a new operation in a frozen box. ValueError for values out of their range."""
        match op:
            case Exec() | Session() | Read() | Write() | Edit() | List() | Glob() | Search() | Note():
                return await self._journaled(op, op_id, deadline, call)
            case Put():
                return await self._put(op, deadline)
            case Get():
                return await self._get(op, deadline)
            case Delta():
                answer = await self._timed("POST", "/v1/delta", wire.encode_delta(op), deadline, DELTA_REPLY_BYTES)
                return _refused(answer) or wire.decode_delta(parse_json(answer.body), op)
            case Freeze():
                answer = await self._timed("POST", "/v1/freeze", None, deadline, SMALL_REPLY_BYTES)
                return wire.decode_freeze(parse_json(answer.body))
        assert_never(op)

    async def _journaled(
        self, op: wire.Journaled, op_id: OpId, deadline: float, call: PendingCall | None
    ) -> OperationResult:
        if (call is None) != (op_id.number != 0):
            raise ValueError("operation 0 of a call carries its header, and no other one does")
        if isinstance(op, Session) and self._protocol == "1":
            return NO_SESSIONS
        body = wire.encode_request(op, call)
        if len(body) > MAX_BODY_BYTES:
            return Failure(code=FailureCode.TOO_LARGE, message="an operation carries at most 4 MiB, as base64")
        try:
            return await self._run_or_join(op, op_id, body, deadline)
        except _JournalFull:
            if isinstance(op, Note):
                raise
            return JOURNAL_FULL

    async def _run_or_join(
        self, op: wire.Journaled, op_id: OpId, body: bytes | None, deadline: float
    ) -> OperationResult:
        method = "PUT"
        while (left := deadline - time.monotonic()) > 0:
            wait = math.floor(min(left, LONG_POLL_S) * 1000) / 1000
            path = f"/v1/ops/{op_id.call}/{op_id.number}?wait_s={wait}"
            try:
                reply = await self._send(
                    method, path, body, min(wait + GRACE_S, left + 1), SMALL_REPLY_BYTES, self._fence
                )
            except Stalled:
                if time.monotonic() < deadline:
                    raise await self._explain_loss() from None
                await self._blame_its_commands()
                break
            if (result := _finished(reply, op)) is not None:
                return result
            method, body = "GET", None  # it runs: no need to send it again
        raise TimeoutError("the operation goes on in the box")

    async def _blame_its_commands(self) -> None:
        """Of a box that is silent at a deadline. Raises SandboxDead when it is known at once that its commands silenced it."""
        with suppress(TimeoutError):
            async with asyncio.timeout(BLAME_S):
                loss = await self._explain_loss()
                if isinstance(loss, SandboxDead):
                    raise loss

    async def _put(self, op: Put, deadline: float) -> OperationResult:
        path = "/v1/put?" + urlencode({"path": op.path, "principal": op.principal})
        answer = await self._timed("PUT", path, op.tar, deadline, SMALL_REPLY_BYTES)
        return _refused(answer) or wire.decode_put(parse_json(answer.body))

    async def _get(self, op: Get, deadline: float) -> OperationResult:
        body = json.dumps({"root": op.root, "paths": list(op.paths), "max_bytes": op.max_bytes}).encode()
        answer = await self._timed("POST", "/v1/get", body, deadline, op.max_bytes + TAR_OVERHEAD_BYTES)
        return _refused(answer) or GetResult(tar=answer.body)

    async def _timed(self, method: str, path: str, body: bytes | None, deadline: float, limit_bytes: int) -> Reply:
        """One of the host's own operations. Raises TimeoutError at `deadline`: it may be sent again."""
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the time for this operation is over")
        try:
            return await self._send(method, path, body, left, limit_bytes, self._fence)
        except Stalled:
            raise TimeoutError("the box did not answer in time") from None

    async def _ask(
        self,
        method: str,
        path: str,
        *,
        timeout_s: float,
        body: bytes | None = None,
        limit_bytes: int = SMALL_REPLY_BYTES,
        headers: dict[str, str] | None = None,
        epoch: int | None = None,
    ) -> Reply:
        try:
            return await self._send(method, path, body, timeout_s, limit_bytes, headers or {}, epoch)
        except Stalled:
            raise await self._explain_loss() from None

    async def _send(
        self,
        method: str,
        path: str,
        body: bytes | None,
        timeout_s: float,
        limit_bytes: int,
        headers: dict[str, str],
        epoch: int | None = None,
    ) -> Reply:
        try:
            reply = await self._transport.send(
                method, path, headers=headers, body=body, timeout_s=timeout_s, limit_bytes=limit_bytes, epoch=epoch
            )
        except Unreachable:
            raise await self._explain_loss() from None
        if self._boot_id is not None and reply.boot_id != self._boot_id:
            raise await self._explain_loss()
        self._protocol = reply.protocol
        if reply.status not in (200, 202, 422):
            raise await self._error(reply)
        return reply

    async def _error(self, reply: Reply) -> TiltyardError:
        """What a refusal of the protocol is to the host."""
        f = Fields(parse_json(reply.body), "the error")
        code, message = f.text("error", 64), f.text("message")
        if code == "lost_boot":
            return await self._explain_loss()
        kind = ERRORS.get(code, AgentProtocolError)
        return kind(f"the box's agent refused: {message} ({code})")


NO_SESSIONS = Failure(
    code=FailureCode.CANNOT_START, message="this box is from before named sessions; run the command without one"
)

JOURNAL_FULL = Failure(
    code=FailureCode.NO_SPACE,
    message="the box remembers too much output of calls that still run; nothing was done: ask for less at once",
)
"""Told to the model, whose calls filled it. Nothing ran, and a replay after the host's death may run it: its effect comes at most once."""


class _JournalFull(SandboxError):
    pass


UNSEEDED = frozenset({"leased", "refused", "too_large", "bad_request"})
"""Codes of a seed that the box did not take. A tar that may not be is the template's fault, not the protocol's."""

ERRORS: dict[str, type[TiltyardError]] = {
    "stale_epoch": StaleLease,
    "other_rollout": SandboxLost,
    "not_leased": SandboxLost,
    "replay_diverged": ReplayDiverged,
    "tombstoned": ReplayDiverged,
    "frozen": RolloutClosed,
    "journal_full": _JournalFull,
    "busy": SandboxError,
    "internal": SandboxError,
    "journal": SandboxError,
}


def _finished(reply: Reply, op: wire.Journaled) -> OperationResult | None:
    """The result, or None while the operation runs."""
    f = Fields(parse_json(reply.body), "the reply")
    state = f.text("state", 16)
    if reply.status == 202 and state == "running":
        f.finish()
        return None
    if reply.status != 200 or state != "done":
        raise AgentProtocolError("the reply to an operation is neither a result nor a wait")
    result = f.take("result")
    f.finish()
    return wire.decode_result(result, op)


def _refused(reply: Reply) -> Failure | None:
    """A refusal of one of the host's own operations is a result, too."""
    if reply.status != 422:
        return None
    f = Fields(parse_json(reply.body), "the refusal")
    f.text("error", 64)
    failure = wire.decode_failure(f)
    f.finish()
    return failure
