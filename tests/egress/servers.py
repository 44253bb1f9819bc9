"""Servers of this machine, seen to answer others before a box is shown not to reach them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from tests.egress.internet import Internet, docker


async def _greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nConnection: close\r\n\r\nhost saw\n")
    await writer.drain()
    writer.close()
    await writer.wait_closed()


@asynccontextmanager
async def host_servers(internet: Internet) -> AsyncIterator[int]:
    """On every address (the port is yielded), and on this machine's address in the internet, port 80."""
    async with AsyncExitStack() as stack:
        wide = await stack.enter_async_context(await asyncio.start_server(_greet, "0.0.0.0", 0))
        await stack.enter_async_context(await asyncio.start_server(_greet, internet.gateway, 80))
        port = int(wide.sockets[0].getsockname()[1])
        for reached in (port, 80):
            script = f"import socket; print(socket.create_connection(('{internet.gateway}', {reached}), 5).recv(20))"
            seen = await asyncio.to_thread(docker, "exec", f"{internet.name}-web", "python3", "-c", script)
            assert "200 OK" in seen
        yield port
