"""`tiltyard sweep`: take away what a deployment that is not served left on this machine."""

import asyncio
from pathlib import Path

from orchestrator.cli.identity import host_lock, noted_backend
from orchestrator.cli.wiring import engine, local_settings
from orchestrator.errors import EngineUnavailable
from orchestrator.settings import Settings


def run(settings: Settings, everything: bool) -> None:
    """Raises Misconfigured while the deployment is served, EngineUnavailable. The record, blobs and templates stay."""
    for name in deployments(settings) if everything else [settings.deployment]:
        removed = asyncio.run(_sweep(settings.model_copy(update={"deployment": name}), everything))
        print(f"{name}: {removed} boxes removed")


def deployments(settings: Settings) -> list[str]:
    """Every deployment that has a folder below the state folder."""
    if not settings.state_dir.is_dir():
        return []
    return sorted(
        entry.name for entry in settings.state_dir.iterdir() if (entry / "boxes").is_dir() or _in_pods(settings, entry)
    )


def _in_pods(settings: Settings, folder: Path) -> bool:
    return settings.backend == "kubernetes" and noted_backend(folder) == "kubernetes"


async def _sweep(settings: Settings, everything: bool) -> int:
    """Of pods those that this host made, unless all is meant: another host may be serving the deployment."""
    with host_lock(settings.deployment_dir, settings.host_id):
        if settings.backend == "kubernetes":
            return await _remove_all(settings, of_all_hosts=everything)
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


async def _remove_all(settings: Settings, *, of_all_hosts: bool = True) -> int:
    async with engine(settings, starts_boxes=False) as made:
        owned = [box for box in await made.backend.owned() if of_all_hosts or box.host in (None, settings.host_id)]
        for box in owned:
            await made.backend.destroy(box.id)
        await made.tidy()
        return len(owned)
