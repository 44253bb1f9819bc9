"""What operators see: JSON log lines with secrets taken out, and a small closed set of metrics.

A log line is one event name with fields; nothing is formatted into prose, so redaction can look at every value on its own. Field names that
speak of credentials are masked whatever they hold; registered secrets are masked wherever they occur, in tracebacks too.
"""

import logging
import re
import sys
from collections.abc import Iterable, Mapping, MutableMapping
from typing import Final, TextIO

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from orchestrator.interfaces import HostLoad

REDACTED: Final = "[redacted]"
MAX_FIELD_CHARS: Final = 4_000
"""Longer fields are cut: what a box or a caller sent may end up in a field and must not fill the disk."""
MIN_SECRET_CHARS: Final = 8
"""Shorter values are not registered: masking every "a" would tell more than it hides."""
_TELLTALE = re.compile(r"(?i)authorization|cookie|password|passwd|secret|token|api_?key|bearer|credential")
_BEARER = re.compile(r"(?i)\bbearer\s+[A-Za-z0-9._~+/=-]{8,}")

EventFields = MutableMapping[str, object]


class SecretRegistry:
    """Values that must never leave in a log line. Filled at start by whoever reads a secret; append-only."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._secrets: set[str] = set()
        self._pattern: re.Pattern[str] | None = None
        self.add(*secrets)

    def add(self, *secrets: str) -> None:
        self._secrets.update(secret for secret in secrets if len(secret) >= MIN_SECRET_CHARS)
        ordered = sorted(self._secrets, key=len, reverse=True)  # a secret that holds another one is masked whole
        self._pattern = re.compile("|".join(map(re.escape, ordered))) if ordered else None

    def mask(self, text: str) -> str:
        """`text` without registered secrets and without bearer tokens, known or not."""
        if self._pattern is not None:
            text = self._pattern.sub(REDACTED, text)
        return _BEARER.sub(f"Bearer {REDACTED}", text)

    def clean(self, name: str, value: object) -> object:
        """What may be logged under `name`: masked, cut, and made of plain JSON values."""
        if _TELLTALE.search(name):
            return REDACTED
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, Mapping):
            return {self.mask(str(key)): self.clean(str(key), inner) for key, inner in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [self.clean(name, inner) for inner in value]
        text = self.mask(str(value))
        return text if len(text) <= MAX_FIELD_CHARS else f"{text[:MAX_FIELD_CHARS]}... ({len(text)} characters)"

    def __call__(self, logger: object, method: str, fields: EventFields) -> EventFields:
        """As a structlog processor."""
        return {name: self.clean(name, value) for name, value in fields.items()}


def _as_renderer(secrets: SecretRegistry) -> list[structlog.typing.Processor]:
    """The common end of every log line. The order matters: tracebacks become text first, then everything is masked."""
    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        secrets,
    ]


def configure_logging(secrets: SecretRegistry, *, level: str = "info", stream: TextIO | None = None) -> None:
    """Send structlog's and the standard library's records to `stream` (stderr) as one JSON object a line. For a process's `main`, once."""
    number = logging.getLevelNamesMapping()[level.upper()]
    shared = _as_renderer(secrets)
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.JSONRenderer(),
        ],
    )
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(number)


OUTCOMES: Final = ("ok", "model_error", "caller_error", "capacity", "infra_error")
"""How a tool call ended, by blame (D7)."""
GRADES: Final = ("scored", "agent_fault", "integrity_violation", "caller_error", "capacity", "infra_error")
AUTH_FAILURES: Final = ("missing", "malformed", "unknown", "expired", "scope", "job", "peer")
_SECONDS: Final = (0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 180.0, 540.0)
"""From the agent's own 1.2 ms to the nine minutes after which a call is told to come back."""


class Metrics:
    """One process's metrics, in a registry of their own. Every label's values are a closed set; ids never become labels."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own = self.registry
        self._requests = Counter("tiltyard_http_requests", "Requests", ["route", "status"], registry=own)
        self._calls = Counter("tiltyard_calls", "Tool calls", ["outcome"], registry=own)
        self._grades = Counter("tiltyard_grades", "Grades", ["outcome"], registry=own)
        self._auth = Counter("tiltyard_auth_failures", "Refused credentials: alarm on these", ["kind"], registry=own)
        self._tainted = Counter("tiltyard_rollouts_tainted", "Rollouts never to be scored", registry=own)
        self._findings = Counter("tiltyard_forged_handles", "Task handles that did not verify", registry=own)
        self._call_s = Histogram("tiltyard_call_seconds", "Time a tool call took", registry=own, buckets=_SECONDS)
        self._grade_s = Histogram("tiltyard_grade_seconds", "Time a grade took", registry=own, buckets=_SECONDS)
        self._live = Gauge("tiltyard_rollouts_live", "Rollouts with a box", registry=own)
        self._queued = Gauge("tiltyard_rollouts_queued", "Rollouts waiting for a box", registry=own)
        self._grading = Gauge("tiltyard_rollouts_grading", "Grades that run", registry=own)
        self._hosts = Gauge("tiltyard_hosts", "Hosts", ["state"], registry=own)
        # Children are looked up once: `labels()` on the way of a call costs more than the count itself.
        self._call_by = {outcome: self._calls.labels(outcome) for outcome in OUTCOMES}
        self._grade_by = {outcome: self._grades.labels(outcome) for outcome in GRADES}
        self._auth_by = {kind: self._auth.labels(kind) for kind in AUTH_FAILURES}
        self._request_by: dict[tuple[str, int], Counter] = {}

    def request(self, route: str, status: int) -> None:
        """`route` is a template of the application ("unmatched" for any other path), so its values are closed too."""
        key = (route, status // 100)
        child = self._request_by.get(key)
        if child is None:
            child = self._request_by[key] = self._requests.labels(route, f"{status // 100}xx")
        child.inc()

    def call(self, outcome: str, seconds: float) -> None:
        self._call_by[outcome].inc()
        self._call_s.observe(seconds)

    def grade(self, outcome: str, seconds: float) -> None:
        self._grade_by[outcome].inc()
        self._grade_s.observe(seconds)

    def auth_failure(self, kind: str) -> None:
        self._auth_by[kind].inc()

    def tainted(self) -> None:
        self._tainted.inc()

    def forged_handle(self) -> None:
        self._findings.inc()

    def hosts(self, loads: Iterable[HostLoad], unreachable: int) -> None:
        """Set the gauges from what the hosts say now."""
        known = list(loads)
        self._live.set(sum(load.live for load in known))
        self._queued.set(sum(load.queued for load in known))
        self._grading.set(sum(load.grading for load in known))
        self._hosts.labels("serving").set(sum(not load.draining for load in known))
        self._hosts.labels("draining").set(sum(load.draining for load in known))
        self._hosts.labels("unreachable").set(unreachable)

    def text(self) -> bytes:
        """In Prometheus's text form."""
        return generate_latest(self.registry)
