"""The native routes: open, list, show and end rollouts, and the tools for a dataset row.

Closed schemas: a 4xx here goes to a program that can mend its request, not to a model.
"""

import re
import uuid
from collections.abc import Mapping
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from orchestrator.errors import BadEnvelope, TaskConflict, UnknownRollout
from orchestrator.interfaces import RolloutSummary
from orchestrator.models import Binding, CallRecord, Job, JsonValue, Reward, RolloutKey, Task, TraceId
from tool_gateway.auth import Scope
from tool_gateway.bodies import read_object
from tool_gateway.deps import FunctionSchema, GatewayDeps
from tool_gateway.gate import Gate
from tool_gateway.handles import ARGUMENT, Handles
from tool_gateway.responses import json_value
from tool_gateway.rft import TRACE_ID
from tool_gateway.routing import named_task

MAX_LISTED: Final = 1000


class OpenRollout(BaseModel):
    """Body of POST /rollouts. Without a trace_id the gateway makes one."""

    model_config = ConfigDict(extra="forbid", strict=True)

    task_id: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    trace_id: Annotated[str, StringConstraints(pattern=f"^{TRACE_ID.pattern}$")] | None = None


class RolloutRoutes:
    def __init__(self, deps: GatewayDeps, gate: Gate, handles: Handles) -> None:
        self._deps = deps
        self._gate = gate
        self._handles = handles

    async def open(self, request: Request) -> Response:
        """POST /rollouts: bind a trace_id to a task and give it a box. Idempotent."""
        job = self._gate.job(request, Scope.ROLLOUTS)
        body = _validated(await read_object(request))
        task = named_task(job, body.task_id)
        rollout = RolloutKey(job=job.id, trace_id=TraceId(body.trace_id or f"trace_{uuid.uuid4().hex}"))
        host = await self._deps.cluster.host_for(rollout)
        try:
            binding = await host.open(rollout, task, timeout_s=self._deps.call_timeout_s)
        except TaskConflict as conflict:
            await self._deps.store.taint(rollout, f"{conflict.reason}: {conflict.message}")
            self._deps.metrics.tainted()
            raise
        return json_value({"rollout": binding_view(binding)}, 201)

    async def list(self, request: Request) -> Response:
        """GET /rollouts?limit=: the job's latest."""
        job = self._gate.job(request, Scope.ROLLOUTS)
        limit = _limit(request.query_params.get("limit", "100"))
        summaries = await self._deps.store.rollouts(job.id, limit)
        return json_value({"rollouts": [summary_view(summary) for summary in summaries]})

    async def show(self, request: Request) -> Response:
        """GET /rollouts/{trace_id}."""
        binding = await self._own(request)
        store, rollout = self._deps.store, binding.rollout
        calls = await store.calls(rollout)
        summary = RolloutSummary(binding=binding, calls=len(calls), reward=await store.reward(rollout))
        findings: list[JsonValue] = [{"code": code, "detail": detail} for code, detail in await store.findings(rollout)]
        view = summary_view(summary) | {"call_list": [call_view(call) for call in calls], "findings": findings}
        return json_value({"rollout": view})

    async def release(self, request: Request) -> Response:
        """DELETE /rollouts/{trace_id}: end it without a grade. Idempotent."""
        binding = await self._own(request)
        host = await self._deps.cluster.host_for(binding.rollout)
        await host.release(binding.rollout)
        return Response(status_code=204)

    async def _own(self, request: Request) -> Binding:
        """Raises UnknownRollout for what does not exist under this token's job, whatever the reason."""
        job = self._gate.job(request, Scope.ROLLOUTS)
        trace_id = request.path_params["trace_id"]
        if TRACE_ID.fullmatch(trace_id):
            binding = await self._deps.store.binding(RolloutKey(job=job.id, trace_id=TraceId(trace_id)))
            if binding is not None:
                return binding
        raise UnknownRollout("this job has no such rollout")

    async def tools(self, request: Request) -> Response:
        """GET /tools?task_id=: the `tools` of a dataset row; with a signed task handle in each schema when the job has several tasks."""
        job = self._gate.job(request, Scope.ROLLOUTS)
        task = _row_task(job, request.query_params.get("task_id"))
        schemas = list(self._deps.schemas(task))
        if len(job.tasks) > 1:
            handle = self._handles.make(job.id, task.id)
            schemas = [with_handle(schema, handle) for schema in schemas]
        return json_value({"tools": [{"type": "function", "function": dict(schema)} for schema in schemas]})


def _validated(body: Mapping[str, JsonValue]) -> OpenRollout:
    try:
        return OpenRollout.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise BadEnvelope(f"{where}: {first['msg']}"[:500]) from None


def _limit(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,4}", text) or not 1 <= int(text) <= MAX_LISTED:
        raise BadEnvelope(f"limit must be a number from 1 to {MAX_LISTED}")
    return int(text)


def _row_task(job: Job, task_id: str | None) -> Task:
    if task_id is not None:
        return named_task(job, task_id)
    if len(job.tasks) != 1:
        raise BadEnvelope("this job has several tasks: say which row it is for, ?task_id=...")
    return next(iter(job.tasks.values()))


def with_handle(schema: FunctionSchema, handle: str) -> FunctionSchema:
    """`schema` with a required argument that can only be `handle`."""
    parameters = schema["parameters"]
    assert isinstance(parameters, dict)
    properties, required = parameters.get("properties", {}), parameters.get("required", [])
    assert isinstance(properties, dict)
    assert isinstance(required, list)
    own: JsonValue = {"type": "string", "const": handle, "description": "Always pass exactly this value."}
    return {
        **schema,
        "parameters": {**parameters, "properties": {**properties, ARGUMENT: own}, "required": [*required, ARGUMENT]},
    }


def binding_view(binding: Binding) -> dict[str, JsonValue]:
    return {
        "job": binding.rollout.job,
        "trace_id": binding.rollout.trace_id,
        "task_id": binding.task,
        "state": binding.state.value,
        "reason": binding.reason,
        "tainted": binding.tainted,
        "host": binding.host,
        "created_at": binding.created_at,
        "touched_at": binding.touched_at,
    }


def summary_view(summary: RolloutSummary) -> dict[str, JsonValue]:
    reward = None if summary.reward is None else reward_view(summary.reward)
    return binding_view(summary.binding) | {"calls": summary.calls, "reward": reward}


def reward_view(reward: Reward) -> dict[str, JsonValue]:
    return {
        "outcome": reward.outcome.value,
        "score": reward.score,
        "reason": reward.reason,
        "sub_scores": dict(reward.sub_scores),
        "findings": [{"code": finding.code, "detail": finding.detail} for finding in reward.findings],
        "graded_at": reward.graded_at,
    }


def call_view(call: CallRecord) -> JsonValue:
    return {
        "sequence": call.sequence,
        "tool": call.tool,
        "is_error": call.reply.is_error,
        "charged": call.charged,
        "started_at": call.started_at,
        "finished_at": call.finished_at,
    }
