"""One tool call, from its request to the reply that is recorded."""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from orchestrator import failpoints
from orchestrator.errors import AgentProtocolError, SandboxLost
from orchestrator.hosts.events import Call, Verdict
from orchestrator.interfaces import SHARED, Order, Sandbox, Tool
from orchestrator.models import (
    Arguments,
    BoxEnd,
    CallRecord,
    CallRequest,
    OpId,
    PendingCall,
    RolloutKey,
    Task,
    ToolReply,
    canonical_json,
)
from orchestrator.operations import Exec, Note, NoteResult, Operation, OperationResult, Session
from orchestrator.tools.arguments import parse
from orchestrator.tools.registry import unknown

_DEATHS: Mapping[BoxEnd, str] = {
    BoxEnd.OVER_DISK: "has been ended: it took more disk than its limit.",
}


def dead_reply(end: BoxEnd | None) -> ToolReply:
    how = _DEATHS.get(end or BoxEnd.AGENT_KILLED, "has died: it ran out of memory or was brought down by a command.")
    return ToolReply(
        text=f"Error: the sandbox of this rollout {how} No further tool call can run in it.", is_error=True
    )


def exhausted_reply(budget: int) -> ToolReply:
    return ToolReply(
        text=f"Error: all {budget} tool calls of this task are used up; this call did not run. Give your final answer now.",
        is_error=True,
    )


def last_reply(reply: ToolReply, budget: int) -> ToolReply:
    """`reply`, with the word that it was the last."""
    note = f"[This was the last of {budget} tool calls; no further call will run. Give your final answer now.]"
    return ToolReply(text=f"{reply.text}\n\n{note}" if reply.text else note, is_error=reply.is_error)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """The model's mistake, found before anything ran. It is recorded and charged: a model that only errs must end, too."""

    reply: ToolReply


@dataclass(frozen=True, slots=True, kw_only=True)
class Runnable:
    tool: Tool
    arguments: Arguments


Plan = Rejected | Runnable


def plan(tool_name: str, arguments_text: str, task: Task, tools: Callable[[str], Tool]) -> Plan:
    """What a call comes to, from its text alone."""
    if tool_name not in task.tools:
        return Rejected(reply=unknown(tool_name, task))
    tool = tools(tool_name)
    arguments = parse(tool, arguments_text)
    return Rejected(reply=arguments) if isinstance(arguments, ToolReply) else Runnable(tool=tool, arguments=arguments)


def order_of(planned: Plan) -> Order:
    """How the call stands to the rollout's others; a rejected one is in nobody's way."""
    return planned.tool.order(planned.arguments) if isinstance(planned, Runnable) else SHARED


class Entry:
    """A call that this host knows by its key. `done` ends with the reply, or with the error that all who wait for it get."""

    __slots__ = ("done", "plan", "request", "task")

    def __init__(self, request: CallRequest, plan: Plan) -> None:
        self.request = request
        self.plan = plan
        self.done: asyncio.Future[ToolReply] = asyncio.get_running_loop().create_future()
        self.done.add_done_callback(_seen)
        self.task: asyncio.Task[None] | None = None

    def finish(self, reply: ToolReply) -> None:
        if not self.done.done():
            self.done.set_result(reply)

    def fail(self, error: BaseException) -> None:
        if not self.done.done():
            self.done.set_exception(error)


def _seen(done: asyncio.Future[ToolReply]) -> None:
    """A failure that nobody waits for any more was logged where it arose."""
    if not done.cancelled():
        done.exception()


def rejoined(pending: PendingCall, rollout: RolloutKey) -> CallRequest:
    """The request of a call that only the box remembers. The trainer's call_id is not in its journal."""
    return CallRequest(
        rollout=rollout,
        key=pending.key,
        call_id="",
        tool=pending.tool,
        arguments_text=canonical_json(dict(pending.arguments)),
    )


async def reply_to(
    entry: Entry, call: Call, *, sandbox: Sandbox | None, died: BoxEnd | None, task: Task, slack_s: float
) -> ToolReply:
    """Run the call, or say why it does not run. Raises what the sandbox raises; SandboxLost when it does not answer in time."""
    if call.verdict is Verdict.DEAD:
        return dead_reply(died)
    if call.verdict is Verdict.EXHAUSTED:
        return exhausted_reply(task.max_calls)
    match entry.plan:
        case Rejected(reply=reply):
            pass
        case Runnable(tool=tool, arguments=arguments):
            assert sandbox is not None  # the lease starts such a call only while it has a box
            header = PendingCall(
                key=call.key, sequence=call.sequence, tool=tool.name, arguments=arguments, operations=0
            )
            failpoints.hit("before_dispatch")
            reply = await tool.run(Context(sandbox=sandbox, task=task, header=header, slack_s=slack_s), arguments)
    return last_reply(reply, task.max_calls) if call.last else reply


def record_of(entry: Entry, call: Call, reply: ToolReply, *, started_at: float) -> CallRecord:
    request = entry.request
    return CallRecord(
        rollout=request.rollout,
        sequence=call.sequence,
        key=request.key,
        call_id=request.call_id,
        tool=request.tool,
        arguments_text=request.arguments_text,
        reply=reply,
        started_at=started_at,
        finished_at=time.time(),
        charged=call.verdict is Verdict.RUN,
    )


def span_s(op: Operation) -> float:
    """How long an operation may take by its own word."""
    return op.timeout_s if isinstance(op, Exec | Session) else 0.0


class Context:
    """`orchestrator.interfaces.CallContext`: numbers the call's operations; the call's header goes with the first."""

    __slots__ = ("_header", "_next", "_sandbox", "_slack_s", "_task")

    def __init__(self, *, sandbox: Sandbox, task: Task, header: PendingCall, slack_s: float) -> None:
        self._sandbox = sandbox
        self._task = task
        self._header = header
        self._slack_s = slack_s
        self._next = 0

    @property
    def task(self) -> Task:
        return self._task

    async def run(self, op: Operation) -> OperationResult:
        number, self._next = self._next, self._next + 1
        try:
            result = await self._sandbox.run(
                op,
                op_id=OpId(call=self._header.key, number=number),
                deadline=time.monotonic() + span_s(op) + self._slack_s,
                call=self._header if number == 0 else None,
            )
        except TimeoutError as error:
            raise SandboxLost("the sandbox did not answer within an operation's time") from error
        failpoints.hit("after_effect")
        return result

    async def once(self, value: bytes) -> bytes:
        result = await self.run(Note(data=value))
        if not isinstance(result, NoteResult):
            raise AgentProtocolError("the sandbox did not keep a note")
        return result.data
