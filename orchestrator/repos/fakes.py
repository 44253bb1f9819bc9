"""In-memory images and set-up, for tests and for backends without an engine."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.errors import Misconfigured
from orchestrator.models import DEFAULT_WORKDIR, Network


@dataclass(slots=True)
class FakeImages:
    """Knows the references it was given, and every id it ever gave out."""

    known: Mapping[str, str] = field(default_factory=lambda: {"base": "sha256:" + "b" * 64})
    asked: list[str] = field(default_factory=list)

    async def image_id(self, reference: str) -> str:
        self.asked.append(reference)
        if reference in self.known:
            return self.known[reference]
        if reference.startswith("sha256:"):
            return reference
        raise Misconfigured(f"image {reference!r} is not on this machine: build or load it")


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
