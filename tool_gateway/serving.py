"""Run the gateway until it is told to stop. The sockets are bound first, so that the address is known and a taken port is said plainly."""

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Iterator

import uvicorn
from fastapi import FastAPI

from orchestrator.errors import Misconfigured
from tool_gateway.server import uvicorn_config

App = FastAPI
"""What is served, by a name that does not need the library."""
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class _Server(uvicorn.Server):
    """uvicorn raises a caught signal again when it has stopped, which would end the process before its boxes are handed over."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def listen(host: str, port: int) -> socket.socket:
    """Raises Misconfigured when the address cannot be had."""
    try:
        sock = socket.create_server((host, port), backlog=4096, reuse_port=False)
        # Connections inherit it. asyncio sets it only on sockets that name their protocol; without it each reply waits for a delayed ACK (40 ms).
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock
    except OSError as error:
        raise Misconfigured(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another with --port or --host"
        ) from error


async def serve(app: FastAPI, host: str, port: int, *, announce: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT, then finish what runs. `announce` gets the URL once connections are taken. Raises Misconfigured."""
    with listen(host, port) as sock:
        server = _Server(uvicorn_config(app, host, port))
        loop = asyncio.get_running_loop()
        for number in STOP_SIGNALS:
            loop.add_signal_handler(number, setattr, server, "should_exit", True)
        try:
            announce(f"http://{host}:{sock.getsockname()[1]}")
            await server.serve(sockets=[sock])
        finally:
            for number in STOP_SIGNALS:
                loop.remove_signal_handler(number)
