"""A real API server behind a proxy that floods, cuts and loses: live rollouts take no notice, and nothing is made twice."""

import asyncio
import json
import ssl
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from tests.e2e.harness import MENDED
from tests.kubernetes.cluster import NAMESPACE, Cluster
from tests.kubernetes.rollouts import a_call, is_lost_and_never_scored, no_pods, pod_of, served, status_of, trainer
from tests.needs import needs

pytestmark = [pytest.mark.anyio, needs("kubernetes", "root"), pytest.mark.cluster, pytest.mark.timeout(200)]

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "content-encoding", "host"}
PODS = "/pods"


@dataclass(slots=True, kw_only=True)
class Proxy:
    """Passes everything on as it is, but for the faults that are left in its counters."""

    target: str
    session: aiohttp.ClientSession
    refuse: Counter[str] = field(default_factory=Counter)
    """Method -> how many requests for pods are told 429 instead."""
    lose: Counter[str] = field(default_factory=Counter)
    """Method -> how many requests for pods are done and never answered."""
    seen: Counter[str] = field(default_factory=Counter)
    watches: list[web.Request] = field(default_factory=list)
    url: str = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        about_pods = PODS in request.path
        self.seen[request.method] += about_pods
        if about_pods and self.refuse[request.method] > 0:
            self.refuse[request.method] -= 1
            return web.json_response({"reason": "TooManyRequests", "message": "later"}, status=429)
        headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP}
        async with self.session.request(
            request.method, self.target + request.path_qs, headers=headers, data=await request.read()
        ) as reply:
            if about_pods and self.lose[request.method] > 0:
                self.lose[request.method] -= 1
                await reply.read()
                _cut(request)
            return await self._pass_on(request, reply)

    async def _pass_on(self, request: web.Request, reply: aiohttp.ClientResponse) -> web.StreamResponse:
        kept = {name: value for name, value in reply.headers.items() if name.lower() not in HOP_BY_HOP}
        answer = web.StreamResponse(status=reply.status, headers=kept)
        await answer.prepare(request)
        if "watch=" in request.query_string:
            self.watches.append(request)
        with suppress(ConnectionError):
            async for part in reply.content.iter_any():
                await answer.write(part)
        return answer

    def cut_watches(self) -> int:
        """How many were open."""
        watches, self.watches = self.watches, []
        for request in watches:
            _cut(request)
        return len(watches)


def _cut(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()


@asynccontextmanager
async def proxied(cluster: Cluster, folder: Path) -> AsyncIterator[tuple[Proxy, Path]]:
    """The proxy, and a kubeconfig that leads through it."""
    config = json.loads(cluster.kubeconfig.read_text())
    target = config["clusters"][0]["cluster"]
    trust = ssl.create_default_context()
    trust.check_hostname, trust.verify_mode = (
        False,
        ssl.CERT_NONE,
    )  # loopback; the host's own token is all that it shows
    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trust, limit=0), auto_decompress=False)
    proxy = Proxy(target=target["server"], session=session)
    app = web.Application(client_max_size=1 << 24)
    app.router.add_route("*", "/{tail:.*}", proxy.handle)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        proxy.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        config["clusters"][0]["cluster"] = {"server": proxy.url}
        path = folder / "proxied.kubeconfig"
        path.write_text(json.dumps(config))
        yield proxy, path
    finally:
        await runner.cleanup()
        await session.close()


async def test_floods_cuts_and_lost_replies_cost_no_rollout(cluster: Cluster, tmp_path: Path) -> None:
    async with (
        proxied(cluster, tmp_path) as (proxy, kubeconfig),
        served(cluster, tmp_path, KUBECONFIG=str(kubeconfig)) as server,
        trainer(server, "t-1") as one,
    ):
        proxy.refuse["POST"], proxy.lose["POST"] = 2, 1
        await one.call("c1", "shell", command="echo one > log")
        pod = pod_of(cluster)
        assert proxy.seen["POST"] >= 3, proxy.seen
        assert proxy.refuse["POST"] == proxy.lose["POST"] == 0
        for number in range(3):
            assert proxy.cut_watches() >= 1, "the watch to be open, or again"
            assert await one.call(f"d{number}", "shell", command="cat log") == "one\n"
            async with trainer(server, f"t-cut-{number}", "calc-files") as other:
                assert await other.call("c1", "shell", command="echo new") == "new\n"
                assert await other.grade() == 0.0
        assert pod in cluster.pods()
        proxy.refuse["DELETE"], proxy.lose["DELETE"], proxy.refuse["GET"] = 2, 1, 2
        proxy.cut_watches()
        await one.call("c9", "write_file", path="calc.py", content=MENDED)
        assert await one.grade() == 1.0
        await no_pods(cluster)
        assert proxy.refuse["DELETE"] == proxy.lose["DELETE"] == 0


async def test_a_pod_that_ends_while_the_watch_is_cut_is_noticed(cluster: Cluster, tmp_path: Path) -> None:
    """What ended while nobody watched is in the next list, or is not: the call that waits for it is told."""
    async with (
        proxied(cluster, tmp_path) as (proxy, kubeconfig),
        served(cluster, tmp_path, KUBECONFIG=str(kubeconfig)) as server,
        trainer(server, "t-1") as one,
    ):
        await one.call("c1", "shell", command="true")
        calling = asyncio.create_task(status_of(server, "/tools", a_call("t-1", "sleep 100")))
        await asyncio.sleep(1.0)
        proxy.refuse["GET"] = 3
        proxy.cut_watches()
        cluster.kubectl("delete", "pod", pod_of(cluster), "-n", NAMESPACE, "--grace-period=0", "--force")
        await is_lost_and_never_scored(server, "t-1", calling)
        await no_pods(cluster)
