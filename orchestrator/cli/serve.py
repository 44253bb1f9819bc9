"""`tiltyard serve`."""

import uvloop

from orchestrator import failpoints
from orchestrator.cli.wiring import gateway
from orchestrator.settings import Settings
from orchestrator.telemetry import SecretRegistry, configure_logging
from tool_gateway.serving import serve


def run(settings: Settings) -> None:
    """Until SIGTERM or SIGINT; boxes of live rollouts are left for the next start. Raises Misconfigured, EngineUnavailable, StoreError."""
    configure_logging(SecretRegistry(), level=settings.log_level)
    failpoints.arm(settings.failpoints)
    uvloop.run(_serve(settings))


async def _serve(settings: Settings) -> None:
    async with gateway(settings) as app:
        await serve(app, settings.listen_host, settings.listen_port, announce=_announce)


def _announce(url: str) -> None:
    print(f"tiltyard is serving on {url}", flush=True)
