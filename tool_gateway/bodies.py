"""Request bodies, which anybody may send: counted while they stream, bounded in time, depth and kind of numbers."""

import asyncio
import json
import math
from typing import Final, NoReturn

from starlette.requests import Request

from orchestrator.errors import CallerError, TooLarge, TooSlow, UnsupportedEncoding
from orchestrator.models import JsonValue

MAX_BODY_BYTES: Final = 1024 * 1024 + 64 * 1024
"""Trainers send at most 1 MB (read as 1 MiB), with a little slack for what they count otherwise."""
DRAIN_BYTES: Final = 8 * 1024 * 1024
"""How much of a body that is too large is read and dropped, so that an ordinary client gets to see the 413 and not a reset connection."""
BODY_DEADLINE_S: Final = 30.0
"""1 MB in 30 s is 35 kB/s: slower than any trainer, fast enough to keep tricklers from piling up."""
MAX_DEPTH: Final = 64
"""Nesting of JSON values; trainers' envelopes with a tool schema inside reach about 12."""


async def read_body(request: Request, *, deadline_s: float = BODY_DEADLINE_S) -> bytes:
    """The whole body. Raises TooLarge, TooSlow, UnsupportedEncoding; starlette's ClientDisconnect when the client went away."""
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedEncoding("compressed bodies are not accepted; send the JSON as it is")
    try:
        async with asyncio.timeout(deadline_s):
            return await _collect(request)
    except TimeoutError:
        raise TooSlow(f"the body did not arrive within {deadline_s:g} s") from None


async def _collect(request: Request) -> bytes:
    """What the client declares as length is not believed: bytes are counted as they come."""
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > DRAIN_BYTES:
            break
        if size <= MAX_BODY_BYTES:
            chunks.append(chunk)
        else:
            chunks.clear()
    if size > MAX_BODY_BYTES:
        raise TooLarge(
            f"the body is larger than {MAX_BODY_BYTES} bytes; send less, for example without large fields in `item`"
        )
    return b"".join(chunks)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:32]} is out of range")
    return value


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite)


def parse_json(text: str) -> JsonValue:
    """Strict JSON: no NaN or Infinity (spelled or by overflow), no nesting over MAX_DEPTH. Raises ValueError, with what is wrong."""
    try:
        value: JsonValue = _DECODER.decode(text)
    except RecursionError:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels") from None
    if text.count("{") + text.count("[") > MAX_DEPTH and _deeper_than(value, MAX_DEPTH):
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
    return value


def _deeper_than(value: JsonValue, limit: int) -> bool:
    level: list[JsonValue] = [value]
    for _ in range(limit):
        level = [child for parent in level for child in _children(parent)]
        if not level:
            return False
    return any(isinstance(child, dict | list) for child in level)


def _children(value: JsonValue) -> list[JsonValue]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def parse_object(data: bytes) -> dict[str, JsonValue]:
    """A body as one JSON object. Raises CallerError (400), with what is wrong in words."""
    try:
        value = parse_json(data.decode("utf-8"))
    except UnicodeDecodeError:
        raise CallerError("the body is not UTF-8") from None
    except ValueError as error:
        raise CallerError(f"the body is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise CallerError("the body must be a JSON object")
    return value


async def read_object(request: Request) -> dict[str, JsonValue]:
    """The body as one JSON object. Raises as read_body and parse_object do."""
    return parse_object(await read_body(request))
