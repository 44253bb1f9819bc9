"""The grader itself: a fresh box, the agent's changes in it, the plan's children, a verdict."""

import asyncio
import random
import secrets
from collections.abc import Sequence
from dataclasses import replace

from orchestrator.errors import GraderError, SandboxDead
from orchestrator.graders.tests import box as boxes
from orchestrator.graders.tests.delta import Inspection, Rules, inspect, is_plain, test_roots, to_judge
from orchestrator.graders.tests.plan import Plan, draw, expected_ids, spec_of, suite
from orchestrator.graders.tests.verdict import judge
from orchestrator.interfaces import Bench, GraderBox
from orchestrator.models import FileChange, Finding, Grade, Task

ATTEMPTS = 2
"""A run that does not reach its end is tried once more in a new box before it counts against the agent."""


class TestsGrader:
    """Hidden tests, one forked child per file, beside each at least one must-fail sibling (D8)."""

    __test__ = False  # not a test class, whatever its name begins with

    @property
    def name(self) -> str:
        return "tests"

    def check(self, task: Task) -> None:
        """Raises Misconfigured, with what to mend: ids outside the hidden files, no must-fail sibling to be had, and the like."""
        suite(task)

    async def grade(self, bench: Bench) -> Grade:
        """Score 1 if every expected test passed and was seen to be able to fail, else 0.

        Raises GraderError where we failed, Misconfigured as `check`, and lets through what the bench's box raises.
        """
        task = bench.task
        if bench.evidence.truncated:
            return failure("too many changed files to be carried into a fresh repository", ())
        chance = random.Random(secrets.randbits(128))  # noqa: S311 - seeded from the system's secure source
        plan = await asyncio.to_thread(lambda: draw(task, suite(task), chance))
        return await run_plan(bench, plan)


async def run_plan(bench: Bench, plan: Plan) -> Grade:
    """Grade by this plan; see `TestsGrader.grade`."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            grade = await _attempt(bench, plan)
        except SandboxDead:
            if attempt == ATTEMPTS:
                raise
            continue
        if grade is not None:
            return grade
    return failure(
        "the test run did not reach its end, twice", (Finding(code="run_incomplete", detail="test run ended early"),)
    )


async def _attempt(bench: Bench, plan: Plan) -> Grade | None:
    """None: the run did not reach its end."""
    spec = spec_of(bench.task)
    async with bench.fresh_box() as box:
        await _install(box, plan, bench.task)
        inspection = await carry_over(bench, box)
        if inspection.attack:
            return Grade(
                score=0.0, passed=False, reason=inspection.attack, findings=inspection.findings, violation=True
            )
        if inspection.refused:
            return failure(inspection.refused, inspection.findings)
        run = await boxes.run_tests(box, plan)
    if not run.complete:
        return None
    grade = await asyncio.to_thread(judge, spec, plan, run.reports)
    return replace(grade, findings=(*inspection.findings, *grade.findings))


async def _install(box: GraderBox, plan: Plan, task: Task) -> None:
    """Raises GraderError, also for a box that dies: nothing of the agent's is in it yet."""
    try:
        await boxes.install(box, plan, task.limits)
    except SandboxDead as error:
        raise GraderError(f"the grading box died before it was used: {error.message}") from error


async def carry_over(bench: Bench, box: GraderBox) -> Inspection:
    """Inspect the delta and, if it may be graded, put it into the box and rebuild. Raises GraderError."""
    spec = spec_of(bench.task)
    changes = bench.evidence.changes
    _refuse_malformed(changes)
    rules = rules_of(bench.task)
    judged = to_judge(changes, rules)
    contents = {change.path: await _content(bench, change) for change in judged}
    bases = await boxes.read_bases(box, [change.path for change in judged if change.kind == "modified"])
    inspection = inspect(changes, rules, contents, bases)
    if inspection.attack or inspection.refused:
        return inspection
    changed = [(change, await _content(bench, change)) for change in inspection.carried]
    try:
        await boxes.apply(box, changed, inspection.deleted)
        if spec.rebuild:
            await boxes.rebuild(box, spec.rebuild, spec.timeout_s)
    except boxes.NotApplied as reason:
        return replace(inspection, refused=str(reason))
    return inspection


def rules_of(task: Task) -> Rules:
    spec = spec_of(task)
    hidden = frozenset(file.path for file in spec.hidden)
    return Rules(tests=hidden | test_roots({*hidden, *expected_ids(spec)}), roots=frozenset(spec.import_roots))


async def _content(bench: Bench, change: FileChange) -> bytes:
    """Raises GraderError where the stored bytes are not those that the delta named."""
    data = await bench.blob(change)
    if len(data) != change.size_bytes:
        raise GraderError("the stored content of a changed file has not the size that the delta names")
    return data


def _refuse_malformed(changes: Sequence[FileChange]) -> None:
    """A delta names each file once, and a file that is there has no file above it.

    What is no file may be written as one is: a name need not be text. Raises GraderError.
    """
    paths = [change.path for change in changes if change.type == "file"]
    present = {change.path for change in changes if change.kind != "deleted" and change.type == "file"}
    parents = {"/".join(parts[:count]) for parts in map(_parts, present) for count in range(1, len(parts))}
    if len(set(paths)) != len(paths) or present & parents:
        raise GraderError("the stored delta contradicts itself")
    lost = [
        change.path for change in changes if change.kind != "deleted" and change.type == "file" and change.blob is None
    ]
    if lost and is_plain(lost[0]):
        raise GraderError("the stored delta lacks the content of a changed file")


def _parts(path: str) -> list[str]:
    return path.split("/")


def failure(reason: str, findings: tuple[Finding, ...]) -> Grade:
    """An honest failure: worth the floor, no violation."""
    return Grade(
        score=0.0, passed=False, reason=reason, sub_scores={"fail_to_pass": 0.0, "pass_to_pass": 0.0}, findings=findings
    )
