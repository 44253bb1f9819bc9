"""The routes that trainers call: tools and grades. Statuses by blame (D7), and the taint that keeps a misconfigured rollout from being scored."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final

import structlog
from starlette.requests import Request
from starlette.responses import Response

from orchestrator.errors import CallerError, CapacityError, SandboxDead, StillRunning, TiltyardError, UnknownTask
from orchestrator.models import GradeRequest, Job, RolloutKey, Task, TaskId, ToolReply
from tool_gateway import rft
from tool_gateway.auth import Principal, Scope
from tool_gateway.bodies import read_object
from tool_gateway.deps import GatewayDeps
from tool_gateway.gate import Gate
from tool_gateway.handles import Handles
from tool_gateway.responses import json_bytes
from tool_gateway.routing import ModelMistake, Sources, choose_task

BACKSTOP_S: Final = 20.0
"""A host answers within the time it was given; one that does not is answered for this much later, still under the trainer's ten minutes."""
REMEMBERED: Final = 65_536
"""Rollouts whose task is kept at hand: four steps of 16,000. A binding's task never changes, so forgetting only costs a read."""


class TrainerRoutes:
    """Holds no truth: the cache of tasks is of values that never change."""

    def __init__(self, deps: GatewayDeps, gate: Gate, handles: Handles) -> None:
        self._deps = deps
        self._gate = gate
        self._handles = handles
        self._tasks: OrderedDict[RolloutKey, TaskId] = OrderedDict()
        self._warned: OrderedDict[RolloutKey, None] = OrderedDict()
        self._log = structlog.get_logger("tiltyard.gateway")

    async def tool(self, request: Request) -> Response:
        """POST /tools, /tools/{name}, /tools/{name}/{again}."""
        params = request.path_params

        async def serve(job: Job, rollout: RolloutKey, envelope: rft.Envelope) -> tuple[Response, str]:
            call = rft.tool_call(envelope, params.get("again") or params.get("name"))
            reply = await self._reply(job, rollout, call)
            return json_bytes(rft.render_output(call, reply.text)), "model_error" if reply.is_error else "ok"

        return await self._serve(request, Scope.TOOLS, serve, self._deps.metrics.call)

    async def grade(self, request: Request) -> Response:
        """POST /grade."""

        async def serve(job: Job, rollout: RolloutKey, envelope: rft.Envelope) -> tuple[Response, str]:
            grade = rft.grade_call(envelope)
            task = await self._graded_task(job, rollout, grade)
            host = await self._deps.cluster.host_for(rollout)
            wanted = GradeRequest(rollout=rollout, final_answer=grade.final_answer)
            async with _backstop(self._deps.grade_timeout_s):
                reward = await host.grade(wanted, task, timeout_s=self._deps.grade_timeout_s)
            return json_bytes(rft.render_score(reward, task.reward)), reward.outcome.value

        return await self._serve(request, Scope.GRADE, serve, self._deps.metrics.grade)

    async def _serve(
        self,
        request: Request,
        scope: Scope,
        serve: Callable[[Job, RolloutKey, rft.Envelope], Awaitable[tuple[Response, str]]],
        count: Callable[[str, float], None],
    ) -> Response:
        """Who asks, which rollout, then `serve`; whatever comes of it is counted by blame."""
        started = time.perf_counter()
        principal = self._gate.principal(request, scope)
        outcome = "infra_error"
        try:
            job = await self._job(principal, request)
            envelope = await read_object(request)
            rollout = RolloutKey(job=job.id, trace_id=rft.trace_id(envelope))
            async with self._tainting(rollout):
                response, outcome = await serve(job, rollout, envelope)
        except TiltyardError as error:
            outcome = _blame(error)
            raise
        finally:
            count(outcome, time.perf_counter() - started)
        return response

    async def _job(self, principal: Principal, request: Request) -> Job:
        """Raises UnknownJob, CallerError.

        A wrong job in the URL of a tool and the right one in the grader's would have a rollout scored that never got to a tool. The token is
        valid, so its rollout of that trace_id is marked wherever it may be.
        """
        try:
            return self._gate.job_of(principal, request)
        except CallerError as error:
            with suppress(CallerError):  # without a trace_id there is nothing to mark
                trace_id = rft.trace_id(await read_object(request))
                for job in filter(principal.may_use, self._deps.jobs):
                    await self._taint(RolloutKey(job=job, trace_id=trace_id), error)
            raise

    @asynccontextmanager
    async def _tainting(self, rollout: RolloutKey) -> AsyncIterator[None]:
        """A caller's mistake goes out as a 4xx, which trainers show to the model and go on: so this rollout is never scored."""
        try:
            yield
        except CallerError as error:
            await self._taint(rollout, error)
            raise

    async def _taint(self, rollout: RolloutKey, error: CallerError) -> None:
        await self._deps.store.taint(rollout, f"{error.reason}: {error.message}")
        self._deps.metrics.tainted()
        self._log.warning("rollout_tainted", rollout=str(rollout), reason=error.reason, message=error.message)

    async def _reply(self, job: Job, rollout: RolloutKey, call: rft.ToolCall) -> ToolReply:
        claimed = None if call.handle is None else self._handles.verify(job.id, call.handle)
        sources = Sources(bound=await self._bound(rollout), named=call.task, handle=call.handle, claimed=claimed)
        task = choose_task(job, sources)
        if isinstance(task, ModelMistake):
            await self._note(rollout, task)
            return ToolReply(text=task.text, is_error=True)
        host = await self._deps.cluster.host_for(rollout)
        try:
            async with _backstop(self._deps.call_timeout_s):
                reply = await host.call(rft.call_request(rollout, call), task, timeout_s=self._deps.call_timeout_s)
        except SandboxDead as dead:
            reply = ToolReply(text=f"Error: {dead.message}", is_error=True)
        self._remember(rollout, task.id)
        return reply

    async def _graded_task(self, job: Job, rollout: RolloutKey, grade: rft.GradeCall) -> Task:
        """Raises CallerErrors; among them UnknownTask when neither an earlier call nor the row says which task it is."""
        task = choose_task(job, Sources(bound=await self._bound(rollout), named=grade.task))
        if isinstance(task, ModelMistake):
            raise UnknownTask(
                "no call of this rollout was seen and item.task_id is missing: add task_id to the dataset's rows"
            )
        return task

    async def _bound(self, rollout: RolloutKey) -> TaskId | None:
        known = self._tasks.get(rollout)
        if known is not None:
            return known
        binding = await self._deps.store.binding(rollout)
        if binding is None:
            return None
        self._remember(rollout, binding.task)
        return binding.task

    def _remember(self, rollout: RolloutKey, task: TaskId) -> None:
        self._tasks[rollout] = task
        if len(self._tasks) > REMEMBERED:
            self._tasks.popitem(last=False)

    async def _note(self, rollout: RolloutKey, mistake: ModelMistake) -> None:
        """A finding once per rollout: how often a model tries must not decide how much is stored."""
        if mistake.finding is None or rollout in self._warned:
            return
        self._warned[rollout] = None
        if len(self._warned) > REMEMBERED:
            self._warned.popitem(last=False)
        self._deps.metrics.forged_handle()
        await self._deps.store.add_finding(rollout, mistake.finding.code, mistake.finding.detail)


@asynccontextmanager
async def _backstop(timeout_s: float) -> AsyncIterator[None]:
    """Raises StillRunning when a host breaks its word on time. What the host runs is its own and is not ended by this."""
    try:
        async with asyncio.timeout(timeout_s + BACKSTOP_S):
            yield
    except TimeoutError:
        raise StillRunning("the work goes on; ask again to join it") from None


def _blame(error: TiltyardError) -> str:
    if isinstance(error, CallerError):
        return "caller_error"
    return "capacity" if isinstance(error, CapacityError) else "infra_error"
