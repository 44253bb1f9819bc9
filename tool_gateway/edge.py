"""The outermost layer of the application: security headers, the count of requests, and the last net for exceptions."""

import uuid
from typing import Final

import structlog
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.telemetry import Metrics
from tool_gateway.responses import error_reply

SECURITY_HEADERS: Final = (
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)


class Edge:
    """Plain ASGI: it costs a call two dictionaries, not two tasks."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics
        self._log = structlog.get_logger("tiltyard.gateway")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # A trailing slash in a job's server_url is a typing error that a redirect would turn into a lost rollout.
        scope["path"] = scope["path"].rstrip("/") or "/"
        status = 0

        async def sender(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *SECURITY_HEADERS]
            await send(message)

        try:
            await self._app(scope, receive, sender)
        except ClientDisconnect:
            status = status or 499  # nobody is there to answer; the class is what is counted
        except Exception as error:
            if status:
                raise
            await self._unexpected(error, scope, receive, sender)
        finally:
            self._metrics.request(_template(scope), status or 500)

    async def _unexpected(self, error: Exception, scope: Scope, receive: Receive, send: Send) -> None:
        """A fault of ours that has no name: the caller gets an id, the log gets the traceback under it."""
        incident = uuid.uuid4().hex
        self._log.error("unexpected_error", incident=incident, route=_template(scope), exc_info=error)
        reply = error_reply(500, "internal", f"an error of ours; its log entry is {incident}")
        await reply(scope, receive, send)


def _template(scope: Scope) -> str:
    """The route's path as it was declared, never what a caller wrote."""
    return getattr(scope.get("route"), "path", "unmatched")
