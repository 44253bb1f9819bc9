"""The HTTP server's limits: what uvicorn leaves open and a public port must not.

uvicorn has no deadline for receiving a request, and its parser no bound on headers: one connection that trickles a byte a second would be held for
as long as its sender likes. Both are bounded here, below the application, since there is no request yet that it could refuse.
"""

import asyncio
from enum import Enum
from typing import Any, Final

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tool_gateway.bodies import BODY_DEADLINE_S

MAX_HEAD_BYTES: Final = 32 * 1024
"""Request line and headers. Trainers send under 2 KiB."""
MAX_HEADERS: Final = 100
HEAD_DEADLINE_S: Final = 15.0
"""From the first byte of a request (or from connecting) to the end of its headers."""
RECEIVE_SLACK_S: Final = 5.0
"""Beyond the body's own deadline, which the application answers in words; this one closes the connection."""
KEEP_ALIVE_S: Final = 75
"""Longer than trainers' connection pools keep idle connections, so that it is they who close: a request sent into a closing connection is lost."""
MAX_CONNECTIONS: Final = 20_000


class _HeadTooLarge(Exception):
    """Ends the parser's callback; the protocol answers 431."""


class _Phase(Enum):
    """What is being received."""

    NOTHING = 1
    HEAD = 2
    BODY = 3


class BoundedProtocol(HttpToolsProtocol):
    """HTTP/1.1 with an absolute deadline for receiving a request, and bounded headers."""

    head_deadline_s: float = HEAD_DEADLINE_S
    receive_deadline_s: float = BODY_DEADLINE_S + RECEIVE_SLACK_S

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._deadline: asyncio.TimerHandle | None = None
        self._phase = _Phase.NOTHING
        self._read_bytes = 0  # since the head began, in whole reads
        self._head_bytes = 0  # of the fields that are complete
        self._too_large = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._arm(self.head_deadline_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._phase is _Phase.HEAD:
            self._read_bytes += len(data)
            if self._read_bytes > MAX_HEAD_BYTES:  # one endless field, which the parser keeps to itself
                self._too_large = True
                self.send_400_response("")
        elif self._deadline is None and self._quiet():
            self._arm(self.head_deadline_s)  # bytes that begin no request have just stopped the keep-alive timer

    def on_message_begin(self) -> None:
        self._phase = _Phase.HEAD
        self._read_bytes = self._head_bytes = 0
        self._arm(self.head_deadline_s)
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._count(len(name) + len(value) + 4)

    def on_headers_complete(self) -> None:
        self._phase = _Phase.BODY
        self._arm(self.receive_deadline_s)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._phase = _Phase.NOTHING
        self._disarm()
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """What the parser refuses, as the rest of the gateway says it."""
        if self._too_large:
            self._refuse(b"431 Request Header Fields Too Large", b"headers_too_large", b"the headers are too large")
        else:
            self._refuse(b"400 Bad Request", b"bad_request", b"this is not HTTP/1.1")

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES or len(self.headers) > MAX_HEADERS:
            self._too_large = True
            raise _HeadTooLarge

    def _quiet(self) -> bool:
        """No request is being served."""
        return not self.pipeline and (self.cycle is None or self.cycle.response_complete)

    def _refuse(self, status: bytes, reason: bytes, message: bytes) -> None:
        if self.transport.is_closing():
            return
        body = b'{"error":"%b","message":"%b"}' % (reason, message)
        head = b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
        self.transport.write(head % (status, len(body)) + body)
        self.transport.close()

    def _arm(self, seconds: float) -> None:
        self._disarm()
        self._deadline = self.loop.call_later(seconds, self._too_slow)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_slow(self) -> None:
        if self.pipeline or (self._phase is _Phase.HEAD and not self._quiet()):
            self._arm(
                self.receive_deadline_s
            )  # an earlier request on this connection is still served: its reply comes first
            return
        if self._phase is _Phase.HEAD:
            self._refuse(b"408 Request Timeout", b"too_slow", b"the request did not arrive in time")
        self.transport.close()


def uvicorn_config(app: FastAPI, host: str, port: int, *, graceful_shutdown_s: int = 30) -> uvicorn.Config:
    """For `uvicorn.Server`. Logging is left as the process has it; forwarded headers are not believed."""
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        http=BoundedProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=graceful_shutdown_s,
        limit_concurrency=MAX_CONNECTIONS,
        backlog=4096,
    )
