"""Ways to pods' agents through the API server, for hosts that have no route to pods' addresses, such as a laptop.

Each connection is a websocket of its own, in the form that `kubectl port-forward` had first (subprotocol v4.channel.k8s.io): the first byte of
a message is its channel, 0 for data and 1 for an error in words, and each channel begins with the port's number.
"""

import asyncio
import logging
import shutil
import socket
import tempfile
from collections import defaultdict
from contextlib import AbstractAsyncContextManager, suppress
from pathlib import Path
from typing import cast

import aiohttp
from kubernetes.aio import client as k8s
from kubernetes.aio.client.exceptions import ApiException
from kubernetes.aio.stream import WsApiClient

from orchestrator.backends.kubernetes.settings import AGENT_PORT

log = logging.getLogger(__name__)

OPEN_S = 15.0
PAUSE_S = 0.3
"""Before a connection that could not be made is closed: whoever waits for a fresh box would ask the API server without a pause."""
PART_BYTES = 64 * 1024
DATA, ERROR = 0, 1
BACKLOG = 64


class Forwards:
    """Owner of its sockets and connections: `aclose`. A unix socket per pod, in a folder that nobody else may enter."""

    def __init__(self, configuration: k8s.Configuration, namespace: str) -> None:
        self._client = WsApiClient(configuration)
        self._core = k8s.CoreV1Api(self._client)
        self._namespace = namespace
        self._folder = Path(tempfile.mkdtemp(prefix="ty-forward-"))
        self._listening: dict[str, asyncio.Task[None]] = {}
        self._connections: defaultdict[str, set[asyncio.Task[None]]] = defaultdict(set)

    def connector(self, pod: str) -> aiohttp.BaseConnector:
        """For a session that is to reach this pod's agent, whatever address it names."""
        path = self._folder / pod
        if pod not in self._listening:
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            listener.bind(str(path))
            listener.listen(BACKLOG)
            self._listening[pod] = asyncio.create_task(self._accept(pod, listener), name=f"forward to {pod}")
        return aiohttp.UnixConnector(path=str(path), limit=0)

    async def forget(self, pod: str) -> None:
        """End what leads to this pod. Idempotent."""
        tasks = [task for task in (self._listening.pop(pod, None), *self._connections.pop(pod, ())) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        (self._folder / pod).unlink(missing_ok=True)

    async def aclose(self) -> None:
        """Idempotent."""
        for pod in list(self._listening):
            await self.forget(pod)
        await self._client.close()
        await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)

    async def _accept(self, pod: str, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with listener:
            while True:
                near, _ = await loop.sock_accept(listener)
                task = asyncio.create_task(self._serve(pod, near))
                self._connections[pod].add(task)
                task.add_done_callback(self._connections[pod].discard)

    async def _serve(self, pod: str, near: socket.socket) -> None:
        reader, writer = await asyncio.open_unix_connection(sock=near)
        try:
            async with asyncio.timeout(OPEN_S) as limit:
                opening = await self._core.connect_get_namespaced_pod_portforward_without_preload_content(
                    pod, self._namespace, ports=str(AGENT_PORT)
                )
                # What the package's websocket client gives here is one, whatever its types say.
                async with cast("AbstractAsyncContextManager[aiohttp.ClientWebSocketResponse]", opening) as far:
                    limit.reschedule(None)
                    await _joined(reader, writer, far)
        except (aiohttp.ClientError, ApiException, OSError) as error:
            log.debug("no way to pod %s through the API server: %s", pod, error)
            await asyncio.sleep(PAUSE_S)
        finally:
            writer.close()


async def _joined(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, far: aiohttp.ClientWebSocketResponse
) -> None:
    """Until either side ends."""
    ways = {asyncio.create_task(_up(reader, far)), asyncio.create_task(_down(far, writer))}
    try:
        done, _ = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in ways:
            way.cancel()
        await asyncio.wait(ways)
    for way in done:
        with suppress(ConnectionError):
            way.result()


async def _up(reader: asyncio.StreamReader, far: aiohttp.ClientWebSocketResponse) -> None:
    while part := await reader.read(PART_BYTES):
        await far.send_bytes(bytes([DATA]) + part)


async def _down(far: aiohttp.ClientWebSocketResponse, writer: asyncio.StreamWriter) -> None:
    begun: set[int] = set()
    async for message in far:
        if message.type is not aiohttp.WSMsgType.BINARY or not message.data:
            continue
        channel, body = message.data[0], message.data[1:]
        if channel not in begun:  # the port's number
            begun.add(channel)
        elif channel == DATA:
            writer.write(body)
            await writer.drain()
        else:
            raise ConnectionAbortedError(body[:200].decode("utf-8", "replace"))
