"""The suite over one of our own backends: the spec and the gaps that go with it."""

import asyncio
import hashlib
import os
import tempfile
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from orchestrator.conformance.gaps import DEFAULT_IMAGE, GAPS, subject
from orchestrator.conformance.model import Report, Result
from orchestrator.conformance.runner import run
from orchestrator.interfaces import SandboxBackend, SandboxSpec, Scope, Template
from orchestrator.models import Limits
from orchestrator.operations import ManifestFile

LIMITS = Limits(memory_mib=512, cpus=1.0, pids=128, disk_mib=128, inodes=20_000, open_files=1024)
SCHEDULED_CPUS = 0.6
"""Where a box is promised its processors for itself: three stand side by side, and a small node has two."""
FILES = {"README": b"a template for conformance\n", "sub/inner": b"inner\n"}


@asynccontextmanager
async def suite_spec(image: str = DEFAULT_IMAGE, *, cpus: float = LIMITS.cpus) -> AsyncIterator[SandboxSpec]:
    """What the suite's boxes are made from: `image` over a small template on this machine's disk."""
    with tempfile.TemporaryDirectory(prefix="tiltyard-conformance-") as folder:
        template = await asyncio.to_thread(_template, Path(folder), image)
        yield SandboxSpec(image=image, template=template, limits=replace(LIMITS, cpus=cpus))


def _template(folder: Path, image: str) -> Template:
    folder.chmod(0o755)
    manifest = {}
    for name, data in FILES.items():
        path = folder / "lower" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        manifest[name] = ManifestFile(mode=0o644, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    key = f"conformance-{os.getpid()}"
    return Template(key=key, lowers=(str(folder / "lower"),), manifest=manifest, owner_uid=os.geteuid(), image=image)


async def run_named(
    backend: SandboxBackend,
    *,
    image: str = DEFAULT_IMAGE,
    runtime: str = "",
    groups: Collection[str] = (),
    on_result: Callable[[Result], None] = lambda result: None,
) -> Report:
    """Every check (or those of `groups`) over `backend`, its known gaps taken from `GAPS` by subject.

    `runtime` is the one that `backend` was made with: it only names the subject.
    `on_result` is told of each as it ends. Raises Misconfigured for an unknown group.
    """
    async with suite_spec(image, cpus=SCHEDULED_CPUS if backend.scope is Scope.DEPLOYMENT else LIMITS.cpus) as spec:
        name = subject(backend.name, runtime=runtime, image=image)
        return await run(backend, spec=spec, gaps=GAPS.get(name, {}), on_result=on_result, groups=groups, subject=name)
