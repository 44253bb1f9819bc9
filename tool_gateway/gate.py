"""The first step of every route: who asks, may they, for which job. Refusals raise the alarm metric and never touch a rollout."""

import time
from collections.abc import Callable

import structlog
from starlette.requests import Request

from orchestrator.errors import UnknownJob
from orchestrator.models import Job
from tool_gateway.auth import AuthFailure, Principal, Refused, Scope, ScopeRefused
from tool_gateway.deps import GatewayDeps
from tool_gateway.routing import choose_job

LOG_PERIOD_S = 10.0
"""Refusals are counted one by one and logged at most this often per kind, so that a guesser cannot fill the disk."""


class Gate:
    def __init__(self, deps: GatewayDeps, *, now: Callable[[], float] = time.monotonic) -> None:
        self._deps = deps
        self._now = now
        self._logged_at: dict[AuthFailure, float] = {}
        self._log = structlog.get_logger("tiltyard.gateway")

    def admit(self, request: Request) -> None:
        """For routes without a token. Raises ScopeRefused."""
        try:
            self._deps.auth.admit(request)
        except ScopeRefused as refusal:
            self._alarm(refusal.kind, request)
            raise

    def principal(self, request: Request, scope: Scope) -> Principal:
        """Raises Refused, ScopeRefused."""
        try:
            principal = self._deps.auth.identify(request)
            principal.require(scope)
        except (Refused, ScopeRefused) as refusal:
            self._alarm(refusal.kind, request)
            raise
        return principal

    def job(self, request: Request, scope: Scope) -> Job:
        """Raises Refused, ScopeRefused, UnknownJob, CallerError."""
        return self.job_of(self.principal(request, scope), request)

    def job_of(self, principal: Principal, request: Request) -> Job:
        """Raises UnknownJob, CallerError."""
        try:
            return choose_job(principal, self._deps.jobs, request.path_params.get("job"))
        except UnknownJob:
            self._alarm(AuthFailure.JOB, request)
            raise

    def _alarm(self, kind: AuthFailure, request: Request) -> None:
        self._deps.metrics.auth_failure(kind.value)
        now = self._now()
        if now - self._logged_at.get(kind, -LOG_PERIOD_S) < LOG_PERIOD_S:
            return
        self._logged_at[kind] = now
        peer = request.client.host if request.client else "unknown"
        self._log.warning("request_refused", kind=kind.value, peer=peer, path=request.url.path)
