"""The routes of operation: health, readiness, metrics, the interface description."""

import asyncio

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response

from orchestrator.errors import TiltyardError
from orchestrator.interfaces import Host, HostLoad
from tool_gateway.auth import Scope
from tool_gateway.deps import GatewayDeps
from tool_gateway.gate import Gate
from tool_gateway.responses import error_reply, json_value

LOAD_TIMEOUT_S = 5.0
"""A host that does not say its load within this is counted as unreachable; scrapes come every 15 s or so."""


class ServiceRoutes:
    def __init__(self, deps: GatewayDeps, gate: Gate) -> None:
        self._deps = deps
        self._gate = gate

    async def healthz(self, request: Request) -> Response:
        """GET /healthz: this process answers. Says nothing about hosts: a restart would not mend those."""
        self._gate.admit(request)
        return json_value({"status": "ok"})

    async def readyz(self, request: Request) -> Response:
        """GET /readyz: send requests here, or not (503, with the reason)."""
        self._gate.admit(request)
        try:
            await self._deps.ready()
        except TiltyardError as error:
            return error_reply(503, error.reason, error.message)
        return json_value({"status": "ready"})

    async def metrics(self, request: Request) -> Response:
        """GET /metrics, in Prometheus's text form."""
        self._gate.principal(request, Scope.METRICS)
        hosts = await self._deps.cluster.hosts()
        loads = await asyncio.gather(*(_load(host) for host in hosts))
        known = [load for load in loads if load is not None]
        self._deps.metrics.hosts(known, unreachable=len(loads) - len(known))
        return Response(self._deps.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    async def openapi(self, request: Request) -> Response:
        """GET /openapi.json."""
        self._gate.principal(request, Scope.ADMIN)
        return json_value(request.app.openapi())


async def _load(host: Host) -> HostLoad | None:
    try:
        async with asyncio.timeout(LOAD_TIMEOUT_S):
            return await host.load()
    except (TiltyardError, TimeoutError):
        return None
