"""Replies: one shape for every error, no traceback in any."""

import json
from collections.abc import Mapping
from typing import Final

from starlette.responses import Response

from orchestrator.errors import TiltyardError
from orchestrator.models import JsonValue

RETRY_AFTER_S: Final = 2
"""Hint on 5xx: a grade or call that goes on is joined by the retry, so coming back soon costs little."""
_UNREAD_BODY: Final = frozenset({408, 413, 415})
"""The body may still be coming: what follows on the connection cannot be told from it."""
HTTP_REASONS: Final = {404: "not_found", 405: "method_not_allowed"}
"""Reasons of refusals that the router makes, beside those of orchestrator/errors.py."""


def json_bytes(body: bytes, status: int = 200) -> Response:
    return Response(body, status_code=status, media_type="application/json")


def json_value(value: JsonValue, status: int = 200) -> Response:
    return json_bytes(json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode(), status)


def error_reply(status: int, reason: str, message: str) -> Response:
    """`{"error": reason, "message": message}` with the headers that go with the status."""
    response = json_value({"error": reason, "message": message}, status)
    response.headers.update(_headers(status))
    return response


def _headers(status: int) -> Mapping[str, str]:
    if status == 401:
        return {"WWW-Authenticate": 'Bearer realm="tiltyard"'}
    if status >= 500:
        return {"Retry-After": str(RETRY_AFTER_S)}
    return {"Connection": "close"} if status in _UNREAD_BODY else {}


def for_error(error: TiltyardError) -> Response:
    """An exception's reply. One whose status is no error (a dead box, met where there is no text to answer with) is a 500."""
    status = error.status if error.status >= 400 else 500
    return error_reply(status, error.reason, error.message)
