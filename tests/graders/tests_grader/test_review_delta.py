"""What a model can put into a delta, or into a grading box, is its own to answer for; what happens before that is ours."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import cast

import pytest

from orchestrator.errors import GraderError, SandboxDead
from orchestrator.graders.tests.grader import TestsGrader as Grader
from orchestrator.interfaces import Bench, GraderBox
from orchestrator.models import Evidence, FileChange, Task
from orchestrator.operations import Operation, OperationResult, Put, PutResult
from tests.graders.tests_grader.library import GOLD, TASK, bench

pytestmark = pytest.mark.anyio


async def test_a_name_that_is_written_like_one_that_is_no_text_does_not_spare_the_floor() -> None:
    """The agent writes the byte 0xff of a name as four characters, which are a name themselves."""
    twins = tuple(
        FileChange(path=r"\xff", kind="added", type=kind, size_bytes=1, blob=blob)
        for kind, blob in (("other", None), ("file", "x"))
    )
    ready = bench({})
    ready.blobs = {"x": b"1"}
    ready.evidence = replace(ready.evidence, changes=twins)
    grade = await Grader().grade(ready)
    assert (grade.score, grade.violation) == (0.0, False)
    ready = bench(GOLD)
    ready.blobs = {**ready.blobs, "x": b"1"}
    ready.evidence = replace(ready.evidence, changes=(*ready.evidence.changes, *twins))
    assert (await Grader().grade(ready)).passed


class DyingBox:
    """Dies at once: nothing of the agent's was in it."""

    async def run(self, op: Operation) -> OperationResult:
        if isinstance(op, Put):
            return PutResult(files=1, size_bytes=1)
        raise SandboxDead("out of memory")


class DyingBench:
    def __init__(self, task: Task, evidence: Evidence) -> None:
        self.task = task
        self.evidence = evidence

    @asynccontextmanager
    async def fresh_box(self) -> AsyncIterator[GraderBox]:
        yield DyingBox()


async def test_a_grading_box_that_dies_before_anything_of_the_agents_is_in_it_is_our_failure() -> None:
    ready = DyingBench(TASK, bench({}).evidence)
    with pytest.raises(GraderError):
        await Grader().grade(cast(Bench, ready))
