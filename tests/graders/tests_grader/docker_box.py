"""A grading box of the docker backend, as the grader sees it."""

import itertools
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from orchestrator.backends.docker.backend import DockerBackend
from orchestrator.graders.tests.box import _tar
from orchestrator.interfaces import Sandbox, SandboxSpec
from orchestrator.models import (
    CallKey,
    Epoch,
    Evidence,
    FileChange,
    JobId,
    OpId,
    PendingCall,
    RolloutKey,
    SandboxId,
    Task,
    TraceId,
)
from orchestrator.operations import Operation, OperationResult, Put

START_S = 60.0
SLACK_S = 120.0


@dataclass(slots=True)
class DockerBox:
    sandbox: Sandbox
    _numbers: "itertools.count[int]" = field(default_factory=itertools.count)

    async def run(self, op: Operation) -> OperationResult:
        key = CallKey(f"grade-{next(self._numbers)}")
        header = PendingCall(key=key, sequence=1, tool="grade", arguments={}, operations=0)
        return await self.sandbox.run(
            op,
            op_id=OpId(call=key, number=0),
            deadline=time.monotonic() + SLACK_S,
            call=None if isinstance(op, Put) else header,
        )


@asynccontextmanager
async def docker_box(backend: DockerBackend, task: Task, files: Mapping[str, str]) -> AsyncIterator[DockerBox]:
    """A box whose workspace holds `files`; destroyed at the end."""
    name = SandboxId(f"g-{secrets.token_hex(6)}")
    spec = SandboxSpec(image=task.image, template=None, limits=task.limits, grader=True)
    sandbox = await backend.create(name, spec, deadline=time.monotonic() + START_S)
    try:
        await sandbox.lease(RolloutKey(job=JobId("j"), trace_id=TraceId(name)), Epoch(1))
        box = DockerBox(sandbox)
        await box.run(Put(path=".", tar=_tar({path: (0o644, text.encode()) for path, text in files.items()})))
        yield box
    finally:
        await sandbox.aclose()
        await backend.destroy(name)


@dataclass(slots=True)
class DockerBench:
    """`orchestrator.interfaces.Bench` over docker boxes."""

    task: Task
    evidence: Evidence
    files: Mapping[str, str]
    blobs: Mapping[str, bytes]
    backend: DockerBackend

    @asynccontextmanager
    async def fresh_box(self) -> AsyncIterator[DockerBox]:
        async with docker_box(self.backend, self.task, self.files) as box:
            yield box

    async def blob(self, change: FileChange) -> bytes:
        assert change.blob is not None
        return self.blobs[change.blob]
