"""What is asked of the API server, against one that answers by script: floods, faults, replies that get lost."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from kubernetes.aio import client as k8s

from orchestrator.backends.kubernetes.api import Api, Refused
from orchestrator.backends.kubernetes.settings import KubernetesSettings
from orchestrator.errors import EngineUnavailable, Misconfigured

pytestmark = pytest.mark.anyio

SETTINGS = KubernetesSettings(deployment="d", host_id="h", state_dir=Path("/nowhere"), request_timeout_s=3.0)
POD = k8s.V1Pod(metadata=k8s.V1ObjectMeta(name="tiltyard-a", labels={"tiltyard.dev/sandbox": "a"}))
STORED = {"metadata": {"name": "tiltyard-a", "labels": {"tiltyard.dev/sandbox": "a"}}}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def api_over(handler: Handler) -> AsyncIterator[Api]:
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    api = Api(k8s.ApiClient(configuration=k8s.Configuration(host=f"http://127.0.0.1:{port}")), SETTINGS)
    try:
        yield api
    finally:
        await api.aclose()
        await runner.cleanup()


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_server_under_load_is_asked_again(status: int) -> None:
    asked = []

    async def handler(request: web.Request) -> web.Response:
        asked.append(request.method)
        if len(asked) < 3:
            return web.json_response({"reason": "TooManyRequests", "message": "later"}, status=status)
        return web.json_response(STORED)

    async with api_over(handler) as api:
        assert await api.create_pod(POD, deadline=time.monotonic() + 10) == STORED
    assert len(asked) == 3


async def test_it_gives_up_at_its_deadline() -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.json_response({"reason": "TooManyRequests", "message": "later"}, status=429)

    began = time.monotonic()
    async with api_over(handler) as api:
        with pytest.raises(EngineUnavailable, match="429"):
            await api.create_pod(POD, deadline=time.monotonic() + 1)
    assert time.monotonic() - began < 3


@pytest.mark.parametrize("ours", [True, False])
async def test_a_create_whose_reply_was_lost_is_found_by_its_name(ours: bool) -> None:
    """Never a second one; and one of that name that is somebody else's is not taken for ours."""
    made: list[str] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        if request.method == "GET":
            found = STORED if ours else {"metadata": {"name": "tiltyard-a", "labels": {"app": "other"}}}
            return web.json_response(found)
        made.append(request.method)
        if len(made) == 1:
            assert request.transport is not None
            request.transport.abort()  # stored, and nobody hears of it
            return web.Response()
        return web.json_response({"reason": "AlreadyExists", "message": "exists"}, status=409)

    async with api_over(handler) as api:
        if ours:
            assert await api.create_pod(POD, deadline=time.monotonic() + 10) == STORED
        else:
            with pytest.raises(Refused, match="not this box"):
                await api.create_pod(POD, deadline=time.monotonic() + 10)
    assert len(made) == 2


async def test_a_name_that_is_taken_at_once_is_refused() -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.json_response({"reason": "AlreadyExists", "message": "exists"}, status=409)

    async with api_over(handler) as api:
        with pytest.raises(Refused):
            await api.create_pod(POD, deadline=time.monotonic() + 10)


async def test_what_is_gone_is_gone() -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.json_response({"reason": "NotFound", "message": "no"}, status=404)

    async with api_over(handler) as api:
        await api.delete_pod("tiltyard-a")
        assert await api.read_pod("tiltyard-a") is None


async def test_an_error_in_a_watch_is_a_refusal() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b'{"type":"ERROR","object":{"code":410,"reason":"Expired","message":"too old"}}\n')
        return response

    async with api_over(handler) as api:
        with pytest.raises(Refused) as error:
            async for _ in api.watch_pods("x=y", "1"):
                pass
    assert error.value.status == 410


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1",
        "[]",
        "3",
        "clusters: 3",
        "current-context: a\ncontexts: [3]\nclusters: []",
        "apiVersion: v1\nkind: Config",
    ],
)
async def test_a_broken_kubeconfig_is_named(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "config"
    file.write_text(text)
    monkeypatch.setenv("KUBECONFIG", str(file))
    with pytest.raises(Misconfigured, match="no cluster to serve on"):
        await Api.open(SETTINGS)
