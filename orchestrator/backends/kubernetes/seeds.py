"""How sealed templates come into boxes on machines that do not see this one's disk: streamed once per pod, or inside of the task's image."""

import asyncio
import os
import tarfile
import tempfile
from pathlib import Path
from typing import Protocol

from orchestrator.agent.client import AgentClient
from orchestrator.backends.kubernetes.registry.client import Registry, RegistrySettings
from orchestrator.backends.kubernetes.registry.references import parse_repository
from orchestrator.backends.kubernetes.registry.task_images import task_image
from orchestrator.backends.kubernetes.settings import KubernetesSettings
from orchestrator.errors import Misconfigured
from orchestrator.interfaces import Template
from orchestrator.repos.locks import NamedLocks
from orchestrator.repos.threads import finish

KEPT = 16
"""Tars kept per host; the longest unused go first. Each is as large as its tree."""


class Delivery(Protocol):
    """Raises Misconfigured, RepositoryError, OSError; `seed` what `AgentClient.seed` does."""

    async def image(self, base: str, template: Template, workdir: str) -> str:
        """What a pod is made from, all else done that must be done before there is one; simultaneous callers wait for one."""

    async def seed(self, client: AgentClient, template: Template, deadline: float) -> None:
        """Fill the workspace of a fresh box."""

    async def aclose(self) -> None:
        """Idempotent."""


def delivery(settings: KubernetesSettings) -> Delivery:
    """Into images where a repository for them is set."""
    return InImages(settings) if settings.task_images else Streamed(settings.state_dir / f"seeds-{settings.host_id}")


class InImages:
    """A template is one more layer of its task's image, made once for all hosts, and brought by the nodes' own caches."""

    def __init__(self, settings: KubernetesSettings) -> None:
        """Raises Misconfigured where that is no repository."""
        self._repository = parse_repository(settings.task_images).name
        self._registry = Registry(RegistrySettings(insecure=settings.insecure_registries))

    async def image(self, base: str, template: Template, workdir: str) -> str:
        return await task_image(self._registry, base, template, workdir=workdir, repository=self._repository)

    async def seed(self, client: AgentClient, template: Template, deadline: float) -> None:
        await client.seed(None, deadline=deadline)

    async def aclose(self) -> None:
        await self._registry.aclose()


class Streamed:
    """A template is a tar on this host's disk, made once. `folder` is this host's alone."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._locks = NamedLocks()

    async def image(self, base: str, template: Template, workdir: str) -> str:
        await self._tar(template)
        return base

    async def seed(self, client: AgentClient, template: Template, deadline: float) -> None:
        path = await self._tar(template)  # it may have been the longest unused one while its pod started
        with await asyncio.to_thread(path.open, "rb") as tar:
            await client.seed(tar, deadline=deadline)

    async def aclose(self) -> None:
        """Nothing is open."""

    async def _tar(self, template: Template) -> Path:
        path = self._folder / f"{template.key}.tar"
        async with self._locks[template.key]:
            await finish(None, _make, template, path)
        return path


def _make(template: Template, path: Path) -> None:
    if path.exists():
        os.utime(path)
        return
    if len(template.lowers) != 1:
        raise Misconfigured("the kubernetes backend runs no set-up commands: build them into the task's image")
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".making-", delete=False) as file:
        try:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
                for name in sorted(os.listdir(template.lowers[0])):
                    tar.add(Path(template.lowers[0], name), arcname=name, filter=_nobody)
            file.flush()
            os.rename(file.name, path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise
    tars = sorted(path.parent.glob("*.tar"), key=lambda tar: tar.stat().st_mtime, reverse=True)
    for old in tars[KEPT:]:
        old.unlink(missing_ok=True)


def _nobody(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """Owners are the box's: whoever unpacks it there owns it. A hard link would need the other file first; each is a file of its own."""
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry
