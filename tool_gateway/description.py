"""The OpenAPI description: the handlers take raw requests, so what they accept and answer is written down here, once per route."""

from typing import Any, Final

from orchestrator.models import JsonValue
from tool_gateway.rft import MAX_ID_CHARS, TRACE_ID
from tool_gateway.rollouts import MAX_LISTED, OpenRollout

Fragment = dict[str, Any]
"""A piece of OpenAPI, as FastAPI takes it."""

_STRING: Final[Fragment] = {"type": "string"}
_TRACE_ID: Final[Fragment] = {"type": "string", "pattern": f"^{TRACE_ID.pattern}$"}
_ID: Final[Fragment] = {"type": ["string", "null"], "maxLength": MAX_ID_CHARS}
_ITEM: Final[Fragment] = {"type": ["object", "null"], "properties": {"task_id": {"type": ["string", "null"]}}}

TOOL_CALL: Final[Fragment] = {
    "type": "object",
    "required": ["trace_id"],
    "properties": {
        "type": {},
        "id": _ID,
        "call_id": _ID,
        "name": {"type": ["string", "null"]},
        "arguments": {"description": "A JSON object, or one encoded as a string."},
        "trace_id": _TRACE_ID,
        "item": _ITEM,
    },
}
TOOL_OUTPUT: Final[Fragment] = {
    "type": "object",
    "required": ["type", "call_id", "id", "output"],
    "properties": {"type": {"const": "function_call_output"}, "call_id": _STRING, "id": _STRING, "output": _STRING},
    "additionalProperties": False,
}
GRADE_CALL: Final[Fragment] = {
    "type": "object",
    "required": ["trace_id"],
    "properties": {"sample": {"type": ["object", "null"]}, "item": _ITEM, "trace_id": _TRACE_ID},
}
SCORE: Final[Fragment] = {
    "type": "object",
    "required": ["score"],
    "properties": {"score": {"type": "number"}},
    "additionalProperties": False,
}
ERROR: Final[Fragment] = {
    "type": "object",
    "required": ["error", "message"],
    "properties": {"error": _STRING, "message": _STRING},
    "additionalProperties": False,
}
_ROLLOUT: Final[Fragment] = {"type": "object", "required": ["job", "trace_id", "task_id", "state"]}


def _one(name: str, inner: Fragment) -> Fragment:
    return {"type": "object", "required": [name], "properties": {name: inner}, "additionalProperties": False}


ROLLOUT: Final = _one("rollout", _ROLLOUT)
ROLLOUTS: Final = _one("rollouts", {"type": "array", "items": _ROLLOUT})
TOOLS: Final = _one("tools", {"type": "array", "items": {"type": "object", "required": ["type", "function"]}})
STATUS: Final = _one("status", _STRING)
OPEN_ROLLOUT: Final[Fragment] = OpenRollout.model_json_schema()
LIMIT: Final[Fragment] = {
    "name": "limit",
    "in": "query",
    "required": False,
    "schema": {"type": "integer", "minimum": 1, "maximum": MAX_LISTED, "default": 100},
}
TASK_ID: Final[Fragment] = {"name": "task_id", "in": "query", "required": False, "schema": _STRING}


def _content(schema: Fragment, media_type: str = "application/json") -> Fragment:
    return {media_type: {"schema": schema}}


def operation(
    path: str,
    *,
    body: Fragment | None = None,
    query: tuple[Fragment, ...] = (),
    secured: bool = True,
) -> Fragment:
    """What FastAPI cannot see of an operation: path and query parameters, body, security."""
    names = [part.strip("{}") for part in path.split("/") if part.startswith("{")]
    in_path = [{"name": name, "in": "path", "required": True, "schema": _STRING} for name in names]
    described: Fragment = {"parameters": [*in_path, *query], "security": [{"bearer": []}] if secured else []}
    if body is not None:
        described["requestBody"] = {"required": True, "content": _content(body)}
    return described


ERROR_STATUSES: Final = (400, 401, 403, 404, 408, 409, 413, 415, 422, 500, 503)


def responses(
    status: int, schema: Fragment | None, *, media_type: str = "application/json"
) -> dict[int | str, Fragment]:
    """The reply that is meant, and every status an error may have."""
    errors: dict[int | str, Fragment] = {
        code: {"description": "See docs/http-api.md", "content": _content(ERROR)} for code in ERROR_STATUSES
    }
    good: Fragment = {"description": "Done"} | ({} if schema is None else {"content": _content(schema, media_type)})
    return {status: good, **errors}


def finish(description: Fragment) -> dict[str, JsonValue]:
    """The whole description, with the security scheme that every secured operation names."""
    components = description.setdefault("components", {})
    components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
    return description
