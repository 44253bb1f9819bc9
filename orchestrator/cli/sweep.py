"""`tiltyard sweep`: take away what a deployment that is not served left on this machine."""

import asyncio

from orchestrator.cli.identity import host_lock
from orchestrator.cli.wiring import engine, local_settings
from orchestrator.errors import EngineUnavailable
from orchestrator.settings import Settings


def run(settings: Settings, everything: bool) -> None:
    """Raises Misconfigured while the deployment is served, EngineUnavailable. The record, blobs and templates stay."""
    for name in deployments(settings) if everything else [settings.deployment]:
        removed = asyncio.run(_sweep(settings.model_copy(update={"deployment": name})))
        print(f"{name}: {removed} boxes removed")


def deployments(settings: Settings) -> list[str]:
    """Every deployment that has a folder below the state folder."""
    if not settings.state_dir.is_dir():
        return []
    return sorted(entry.name for entry in settings.state_dir.iterdir() if (entry / "boxes").is_dir())


async def _sweep(settings: Settings) -> int:
    with host_lock(settings.deployment_dir, settings.host_id):
        served_locally = await asyncio.to_thread(local_settings(settings).own_dir.is_dir)
        if settings.backend == "local" or not served_locally:
            return await _remove_all(settings)
        removed = await _remove_all(settings.model_copy(update={"backend": "local"}))
        try:
            return removed + await _remove_all(settings)
        except EngineUnavailable as error:
            print(
                f"{settings.deployment}: boxes of backend local are removed; an engine's were not looked for: {error.message}"
            )
            return removed


async def _remove_all(settings: Settings) -> int:
    async with engine(settings, starts_boxes=False) as made:
        owned = await made.backend.owned()
        for box in owned:
            await made.backend.destroy(box.id)
        await made.tidy()
        return len(owned)
