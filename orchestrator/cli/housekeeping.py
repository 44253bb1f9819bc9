"""The disk of a served deployment: what killed builds left goes at the start, and the cache is kept under its cap."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import structlog

from orchestrator.errors import TiltyardError
from orchestrator.repos.folders import templates_in_use
from orchestrator.repos.templates import TemplateCache
from orchestrator.settings import Settings

PERIOD_S = 600.0
"""Between two looks at the cache: a template takes seconds to minutes to build, so it cannot overrun its cap by much."""

log = structlog.get_logger(__name__)


@asynccontextmanager
async def kept_tidy(settings: Settings, templates: TemplateCache) -> AsyncIterator[None]:
    """Sweep, then prune in the background while the body runs."""
    await templates.sweep()
    pruning = asyncio.create_task(_prune(settings, templates), name="prune the cache")
    try:
        yield
    finally:
        pruning.cancel()
        with suppress(asyncio.CancelledError):
            await pruning


async def _prune(settings: Settings, templates: TemplateCache) -> None:
    while True:
        try:
            in_use = await asyncio.to_thread(templates_in_use, settings.state_dir)
            removed = await templates.prune(settings.cache_limit_mib * 2**20, in_use)
        except (TiltyardError, OSError) as error:
            log.warning("prune_failed", error=str(error))
        else:
            if removed:
                log.info("cache_pruned", entries=len(removed))
        await asyncio.sleep(PERIOD_S)
