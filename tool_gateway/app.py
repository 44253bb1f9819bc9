"""The application: routes to handlers, exceptions to replies."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from orchestrator.errors import TiltyardError
from orchestrator.models import JsonValue
from tool_gateway import description as d
from tool_gateway.deps import GatewayDeps
from tool_gateway.edge import Edge
from tool_gateway.gate import Gate
from tool_gateway.handles import Handles
from tool_gateway.responses import HTTP_REASONS, error_reply, for_error
from tool_gateway.rollouts import RolloutRoutes
from tool_gateway.service import ServiceRoutes
from tool_gateway.trainer import TrainerRoutes

__all__ = ["GatewayDeps", "create_app"]

Endpoint = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Route:
    """One method on one path. `by_job`: it also stands under /jobs/{job}."""

    method: str
    path: str
    endpoint: Endpoint
    reply: d.Fragment | None
    status: int = 200
    body: d.Fragment | None = None
    query: tuple[d.Fragment, ...] = ()
    by_job: bool = True
    secured: bool = True
    media_type: str = "application/json"


def create_app(deps: GatewayDeps) -> FastAPI:
    """The gateway as an ASGI application. It owns nothing of `deps`. Raises Misconfigured for a handle secret that is too short."""
    gate = Gate(deps)
    handles = Handles(deps.handle_secret, deps.jobs)
    app = _Described(
        title="tiltyard",
        version="1",
        docs_url=None,  # its pages load scripts from elsewhere
        redoc_url=None,
        openapi_url=None,  # served by a route of our own, behind a scope
        redirect_slashes=False,
    )
    table = (
        *_trainer_routes(TrainerRoutes(deps, gate, handles)),
        *_native_routes(RolloutRoutes(deps, gate, handles)),
        *_service_routes(ServiceRoutes(deps, gate)),
    )
    for route in table:
        for prefix in ("", "/jobs/{job}") if route.by_job else ("",):
            _add(app, route, prefix + route.path)
    app.add_exception_handler(TiltyardError, _on_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_middleware(Edge, metrics=deps.metrics)
    return app


def _trainer_routes(routes: TrainerRoutes) -> list[_Route]:
    paths = ("/tools", "/tools/{name}", "/tools/{name}/{again}")
    return [
        *(
            _Route(method="POST", path=path, endpoint=routes.tool, body=d.TOOL_CALL, reply=d.TOOL_OUTPUT)
            for path in paths
        ),
        _Route(method="POST", path="/grade", endpoint=routes.grade, body=d.GRADE_CALL, reply=d.SCORE),
    ]


def _native_routes(routes: RolloutRoutes) -> list[_Route]:
    one = "/rollouts/{trace_id}"
    opened = d.OPEN_ROLLOUT
    return [
        _Route(method="POST", path="/rollouts", endpoint=routes.open, body=opened, reply=d.ROLLOUT, status=201),
        _Route(method="GET", path="/rollouts", endpoint=routes.list, query=(d.LIMIT,), reply=d.ROLLOUTS),
        _Route(method="GET", path=one, endpoint=routes.show, reply=d.ROLLOUT),
        _Route(method="DELETE", path=one, endpoint=routes.release, reply=None, status=204),
        _Route(method="GET", path="/tools", endpoint=routes.tools, query=(d.TASK_ID,), reply=d.TOOLS),
    ]


def _service_routes(routes: ServiceRoutes) -> list[_Route]:
    def get(path: str, endpoint: Endpoint, reply: d.Fragment, *, secured: bool, media_type: str) -> _Route:
        return _Route(
            method="GET",
            path=path,
            endpoint=endpoint,
            reply=reply,
            by_job=False,
            secured=secured,
            media_type=media_type,
        )

    json: Final = "application/json"
    return [
        get("/healthz", routes.healthz, d.STATUS, secured=False, media_type=json),
        get("/readyz", routes.readyz, d.STATUS, secured=False, media_type=json),
        get("/metrics", routes.metrics, {"type": "string"}, secured=True, media_type="text/plain"),
        get("/openapi.json", routes.openapi, {"type": "object"}, secured=True, media_type=json),
    ]


def _add(app: FastAPI, route: _Route, path: str) -> None:
    app.add_api_route(
        path,
        route.endpoint,
        methods=[route.method],
        status_code=route.status,
        response_model=None,
        response_class=Response,
        responses=d.responses(route.status, route.reply, media_type=route.media_type),
        openapi_extra=d.operation(path, body=route.body, query=route.query, secured=route.secured),
        operation_id=f"{route.method} {path}",
        summary=(route.endpoint.__doc__ or "").splitlines()[0],
    )


class _Described(FastAPI):
    """FastAPI whose description holds what our handlers read by hand."""

    def openapi(self) -> dict[str, JsonValue]:
        if self.openapi_schema is None:
            self.openapi_schema = d.finish(get_openapi(title=self.title, version=self.version, routes=self.routes))
        return self.openapi_schema


async def _on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, TiltyardError)
    return for_error(error)


async def _on_http_error(request: Request, error: Exception) -> Response:
    """What the router refuses: no such path, not this method."""
    assert isinstance(error, HTTPException)
    reason = HTTP_REASONS.get(error.status_code, "bad_request")
    reply = error_reply(
        error.status_code, reason, f"{HTTPStatus(error.status_code).phrase}: see docs/http-api.md for the routes"
    )
    if error.headers:
        reply.headers.update(error.headers)
    return reply
