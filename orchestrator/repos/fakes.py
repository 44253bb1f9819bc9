"""In-memory images and set-up, for tests and for backends without an engine."""

import hashlib
import io
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, TypeVar

import anyio.to_thread

from orchestrator.errors import Misconfigured
from orchestrator.models import DEFAULT_WORKDIR, Network

T = TypeVar("T")


@dataclass(slots=True)
class FakeImages:
    """Knows the references it was given, and every id it ever gave out."""

    known: Mapping[str, str] = field(default_factory=lambda: {"base": "sha256:" + "b" * 64})
    root: Path | None = None
    """The files of every image; None: they have none."""
    asked: list[str] = field(default_factory=list)

    async def image_id(self, reference: str) -> str:
        self.asked.append(reference)
        if reference in self.known:
            return self.known[reference]
        if reference.startswith("sha256:"):
            return reference
        raise Misconfigured(f"image {reference!r} is not on this machine: build or load it")

    async def read_folder(self, image: str, path: str, read: Callable[[BinaryIO], T], *, timeout_s: float) -> T:
        folder = None if self.root is None else self.root / path.strip("/")
        if folder is None or not folder.is_dir():
            raise Misconfigured(f"the image has no folder {path}")
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w") as archive:
            archive.add(folder, arcname=folder.name if path.strip("/") else ".")
        stream.seek(0)
        return await anyio.to_thread.run_sync(read, stream)


@dataclass(frozen=True, slots=True, kw_only=True)
class SetupCall:
    image: str
    commands: tuple[str, ...]
    tag: str
    network: Network
    timeout_s: float
    workdir: str = DEFAULT_WORKDIR


@dataclass(slots=True)
class FakeSetup:
    """Runs no command: `effect(tree, upper)` does to `upper` what commands would have left there (in an overlay's own form)."""

    effect: Callable[[Path, Path], None] = lambda tree, upper: None
    calls: list[SetupCall] = field(default_factory=list)

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
        self.calls.append(
            SetupCall(image=image, commands=commands, tag=tag, network=network, timeout_s=timeout_s, workdir=workdir)
        )
        self.effect(tree, upper)
        return "sha256:" + hashlib.sha256(tag.encode()).hexdigest()
