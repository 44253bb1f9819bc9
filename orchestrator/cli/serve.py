"""`tiltyard serve`."""

import gc

import uvloop

from orchestrator import failpoints
from orchestrator.cli.wiring import gateway
from orchestrator.settings import Settings
from orchestrator.telemetry import SecretRegistry, configure_logging
from tool_gateway.serving import serve

GARBAGE_THRESHOLDS = (20_000, 20, 50)
"""Of the three generations. With the defaults (700, 10, 10) collections were a third of a call's processor time under load."""


def run(settings: Settings) -> None:
    """Until SIGTERM or SIGINT; boxes of live rollouts are left for the next start. Raises Misconfigured, EngineUnavailable, StoreError."""
    configure_logging(SecretRegistry(), level=settings.log_level)
    failpoints.arm(settings.failpoints)
    uvloop.run(_serve(settings))


async def _serve(settings: Settings) -> None:
    async with gateway(settings) as app:
        _settle_garbage()
        await serve(app, settings.listen_host, settings.listen_port, announce=_announce)


def _settle_garbage() -> None:
    """What was made at the start lives as long as the server: full collections need not walk it again and again.

    A call makes some hundred objects, nearly all of which die with it by their reference counts: the younger ones are walked less often, too.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GARBAGE_THRESHOLDS)


def _announce(url: str) -> None:
    print(f"tiltyard is serving on {url}", flush=True)
