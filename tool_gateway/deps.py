"""What the gateway is given. Wired together by the command line, or by a test."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from orchestrator.interfaces import Cluster, Store
from orchestrator.models import Job, JobId, JsonValue, Task
from orchestrator.telemetry import Metrics
from tool_gateway.auth import Auth

FunctionSchema = Mapping[str, JsonValue]
"""`{"name", "description", "parameters": <JSON schema of an object>}`: the `function` part of a dataset row's tool."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayDeps:
    """The gateway owns none of these: whoever made them closes them.

    The time-outs are the host's, in seconds: under the trainer's ten minutes, so that it hears from us that the work goes on.
    """

    cluster: Cluster
    store: Store
    jobs: Mapping[JobId, Job]
    auth: Auth
    handle_secret: bytes
    schemas: Callable[[Task], Sequence[FunctionSchema]]
    ready: Callable[[], Awaitable[None]]
    """Raises TiltyardError, with the reason, while requests should go elsewhere."""
    call_timeout_s: float = 540.0
    grade_timeout_s: float = 540.0
    metrics: Metrics = field(default_factory=Metrics)
