"""The trainers' wire shapes (OpenAI and Foundry agent RFT): envelopes to values, values to replies. Pure.

Envelopes tolerate keys we do not know, and never map them to anything. The checks are by hand: on the way of every call they cost a tenth of a
model validation, and each can say what is wrong in the trainer's terms.
"""

import json
import math
import re
import uuid
from dataclasses import dataclass
from typing import Final

from orchestrator.errors import BadEnvelope, CallerError, GraderError
from orchestrator.models import (
    CallKey,
    CallRequest,
    JsonValue,
    Reward,
    RewardRange,
    RolloutKey,
    TraceId,
    call_key,
    canonical_json,
)
from tool_gateway.bodies import parse_json
from tool_gateway.handles import ARGUMENT

TRACE_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
MAX_ID_CHARS: Final = 256
MAX_TOOL_NAME_CHARS: Final = 256
"""A longer name is the model's invention; it is cut, and the reply says that there is no such tool."""
MAX_OUTPUT_BYTES: Final = 768 * 1024
"""Of a reply's JSON; trainers show a larger one than 1 MB to the model as an error. Hosts keep far below it."""
MAX_ANSWER_CHARS: Final = 256 * 1024
_PREFIX: Final = "functions."

Envelope = dict[str, JsonValue]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A tool call as the trainer sent it. `arguments_text` is canonical JSON where it parses; `handle` was taken out of it."""

    id: str
    call_id: str
    tool: str
    arguments_text: str
    handle: JsonValue
    task: str | None
    """`item.task_id`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GradeCall:
    final_answer: str
    task: str | None
    """`item.task_id`."""


def trace_id(envelope: Envelope) -> TraceId:
    """Raises CallerError (400)."""
    value = envelope.get("trace_id")
    if value is None:
        raise CallerError("trace_id is missing: it tells which rollout this request belongs to")
    if not isinstance(value, str) or not TRACE_ID.fullmatch(value):
        raise CallerError("trace_id must be 1 to 128 characters out of A-Z a-z 0-9 _ . : -")
    return TraceId(value)


def tool_call(envelope: Envelope, path_name: str | None) -> ToolCall:
    """`path_name` is the URL's last segment, used where the body names no tool. Raises BadEnvelope (422)."""
    name = _text(envelope, "name") or path_name or ""
    if not name:
        raise BadEnvelope("no tool is named: set `name` in the body, or call /tools/NAME")
    arguments_text, handle = _arguments(envelope.get("arguments"))
    return ToolCall(
        id=_text(envelope, "id"),
        call_id=_text(envelope, "call_id"),
        tool=well_formed(name.removeprefix(_PREFIX)[:MAX_TOOL_NAME_CHARS]),
        arguments_text=arguments_text,
        handle=handle,
        task=_item_task(envelope),
    )


def _text(envelope: Envelope, field: str) -> str:
    value = envelope.get(field)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadEnvelope(f"{field} must be a string")
    if field != "name" and len(value) > MAX_ID_CHARS:
        raise BadEnvelope(f"{field} is longer than {MAX_ID_CHARS} characters")
    return well_formed(value)


def _arguments(raw: JsonValue) -> tuple[str, JsonValue]:
    """(text for the host, task handle). What does not parse goes on as it is: the tool's reply tells the model."""
    value = raw
    if isinstance(raw, str):
        try:
            value = parse_json(raw or "{}")
        except ValueError:
            return well_formed(raw), None
    if value is None:
        value = {}
    handle = value.pop(ARGUMENT, None) if isinstance(value, dict) else None
    return well_formed(canonical_json(value)), handle


def _item_task(envelope: Envelope) -> str | None:
    item = envelope.get("item")
    if item is None:
        return None
    if not isinstance(item, dict):
        raise BadEnvelope("item must be an object (the dataset row) or absent")
    task = item.get("task_id")
    if task is not None and not isinstance(task, str):
        raise BadEnvelope("item.task_id must be a string")
    return task


def well_formed(text: str) -> str:
    """`text` with lone surrogates (which JSON can spell and UTF-8 cannot) as U+FFFD, as other JSON decoders have it."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def call_request(rollout: RolloutKey, call: ToolCall) -> CallRequest:
    """With a call_id a repeated call has the same key and is merged; without one every request is a call of its own."""
    shared = call_key(rollout, call.call_id, call.tool, call.arguments_text) if call.call_id else None
    key = shared or CallKey(uuid.uuid4().hex)
    return CallRequest(
        rollout=rollout, key=key, call_id=call.call_id, tool=call.tool, arguments_text=call.arguments_text
    )


def grade_call(envelope: Envelope) -> GradeCall:
    """Raises BadEnvelope (422)."""
    sample = envelope.get("sample")
    if sample is not None and not isinstance(sample, dict):
        raise BadEnvelope("sample must be an object")
    return GradeCall(final_answer=final_answer(sample or {}), task=_item_task(envelope))


def final_answer(sample: Envelope) -> str:
    """The model's last text: output_text, else output[].content, else choices[0].message.content; "" for an unfinished rollout.

    item.messages is never looked at, although some published graders do: it is the dataset row, so an assistant message in it is the
    dataset's, and may well be the answer.
    """
    candidates = (
        sample.get("output_text"),
        _output_content(sample.get("output")),
        _choice_content(sample.get("choices")),
    )
    text = next((candidate for candidate in candidates if isinstance(candidate, str) and candidate), "")
    return well_formed(text[-MAX_ANSWER_CHARS:])


def _output_content(output: JsonValue) -> str:
    if not isinstance(output, list):
        return ""
    messages = [part for part in output if isinstance(part, dict) and part.get("type", "message") == "message"]
    return "".join(_content_text(message.get("content")) for message in messages)


def _choice_content(choices: JsonValue) -> str:
    first = choices[0] if isinstance(choices, list) and choices else None
    message = first.get("message") if isinstance(first, dict) else None
    return _content_text(message.get("content")) if isinstance(message, dict) else ""


def _content_text(content: JsonValue) -> str:
    """A message's content: a string, or parts of which some hold text."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = [part.get("text") for part in parts if isinstance(part, dict)]
    return "".join(text for text in texts if isinstance(text, str))


def render_output(call: ToolCall, text: str) -> bytes:
    """The reply to a tool call, within MAX_OUTPUT_BYTES. The same call and text give the same bytes."""
    body = _render(call, text)
    if len(body) <= MAX_OUTPUT_BYTES:
        return body
    side = MAX_OUTPUT_BYTES // 16  # a character takes at most 6 bytes of JSON, so two sides of a sixteenth always fit
    cut = len(text) - 2 * side
    return _render(call, f"{text[:side]}\n[... {cut} characters left out ...]\n{text[-side:]}")


def _render(call: ToolCall, text: str) -> bytes:
    reply = {"type": "function_call_output", "call_id": call.call_id, "id": call.id, "output": well_formed(text)}
    return json.dumps(reply, ensure_ascii=False, separators=(",", ":")).encode()


def render_score(reward: Reward, allowed: RewardRange) -> bytes:
    """Exactly `{"score": float}`. Raises GraderError for what is no finite score within the task's range: never shown to a trainer."""
    score = reward.score
    if score is None or not math.isfinite(score) or not allowed.low <= score <= allowed.high:
        raise GraderError("this rollout has no score that could be given out; it counts as failed on our side")
    return json.dumps({"score": float(score)}).encode()
