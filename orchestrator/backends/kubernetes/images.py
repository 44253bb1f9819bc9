"""Images as a cluster has them: by reference, pulled by its nodes. No files of theirs are read here, and no set-up runs."""

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, TypeVar

from orchestrator.errors import Misconfigured
from orchestrator.models import DEFAULT_WORKDIR, Network

T = TypeVar("T")


class ClusterImages:
    """Implements `orchestrator.repos.images.Images` and `SetupRunner`; refuses what needs an engine."""

    async def image_id(self, reference: str) -> str:
        """The reference itself: a node resolves it when it pulls."""
        return reference

    async def read_folder(self, image: str, path: str, read: Callable[[BinaryIO], T], *, timeout_s: float) -> T:
        raise Misconfigured(
            f"the kubernetes backend reads no files out of images, so none at {path}: name a repo, or serve with docker"
        )

    async def run_setup(
        self,
        *,
        image: str,
        commands: tuple[str, ...],
        tree: Path,
        upper: Path,
        tag: str,
        network: Network,
        timeout_s: float,
        workdir: str = DEFAULT_WORKDIR,
    ) -> str:
        raise Misconfigured("the kubernetes backend runs no set-up commands: build them into the task's image")
