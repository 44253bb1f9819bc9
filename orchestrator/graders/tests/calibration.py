"""Proof on the gold answer, before training: every expected id passes each time, and which must-fail siblings really fail.

A task whose files hold no surely altered literal can be graded once its likely siblings were proven here: `calibrated` writes them down.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace

from orchestrator.errors import GraderError
from orchestrator.graders.tests import box as boxes
from orchestrator.graders.tests.frames import Report
from orchestrator.graders.tests.grader import carry_over
from orchestrator.graders.tests.mutants import Mutant
from orchestrator.graders.tests.plan import POOL, Child, Plan, Suite, assemble, spec_of, suite
from orchestrator.graders.tests.verdict import fails_as_it_must, trouble_with
from orchestrator.interfaces import Bench
from orchestrator.models import HiddenFile, Task

OUTPUT_BYTES = 4096
"""Of the end of each child's output, for the author who asks why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """`problems`: why the task cannot be graded as it is; empty if it can. `proven`: siblings by file that failed as they must.

    `useless`: what the others alter. `output`: the end of a failed real run's output, by file.
    """

    ready: Suite
    proven: Mapping[str, tuple[Mutant, ...]]
    useless: tuple[str, ...]
    problems: tuple[str, ...]
    output: Mapping[str, str]


async def calibrate(bench: Bench, *, pool: int = POOL, repeats: int = 2) -> Calibration:
    """Run every file `repeats` times and each sibling of its pool once; `bench.evidence` must be the gold answer's.

    Raises Misconfigured as `TestsGrader.check` (but likely siblings count, too), GraderError, and what the bench's box raises.
    """
    task = bench.task
    ready = suite(task, sound_only=False, pool=pool)
    plan = _plan(task, ready, repeats)
    async with bench.fresh_box() as box:
        await boxes.install(box, plan, task.limits, output_bytes=OUTPUT_BYTES)
        inspection = await carry_over(bench, box)
        if inspection.attack or inspection.refused:
            raise GraderError(f"the gold answer cannot be graded: {inspection.attack or inspection.refused}")
        run = await boxes.run_tests(box, plan)
    if not run.complete:
        raise GraderError("the test run did not reach its end")
    return _judged(ready, plan, run.reports)


def calibrated(task: Task, calibration: Calibration) -> Task:
    """The task with its files as they are run, and the proven siblings written down: a grade draws from them."""
    spec = spec_of(task)
    hidden = tuple(replace(file, text=calibration.ready.real[file.path]) for file in spec.hidden)
    written = tuple(
        HiddenFile(path=path, text=mutant.text) for path, mutants in calibration.proven.items() for mutant in mutants
    )
    return replace(task, tests=replace(spec, hidden=hidden, written_mutants=written))


def _plan(task: Task, ready: Suite, repeats: int) -> Plan:
    plan = assemble(task, ready, ready.pools, random.Random(0))  # noqa: S311 - nobody is to be surprised here
    real = [child for child in plan.children if child.must_fail is None]
    return replace(plan, children=(*plan.children, *real * (repeats - 1)))


def _judged(ready: Suite, plan: Plan, reports: Mapping[int, Report]) -> Calibration:
    proven: dict[str, list[Mutant]] = {path: [] for path in ready.pools}
    useless, problems, output = [], [], {}
    for number, child in enumerate(plan.children):
        report = reports[number]
        if child.must_fail is None:
            trouble = trouble_with(plan, child.target, report)
            if trouble:
                where = child.target or "the test command"
                problems.append(f"{where}: {trouble} on the gold answer")
                output[where] = report.output.decode("utf-8", "replace")
        elif fails_as_it_must(plan, child, report):
            path, mutant = _sibling(ready, child)
            proven[path].append(mutant)
        else:
            useless.append(f"{child.how} ({report.ending})")
    wanted = ready.spec.mutants
    problems += [
        f"{path}: {len(mutants)} siblings fail as they must, {wanted} are needed"
        for path, mutants in proven.items()
        if len(mutants) < wanted
    ]
    return Calibration(
        ready=ready,
        proven={path: tuple(mutants) for path, mutants in proven.items()},
        useless=tuple(useless),
        problems=tuple(dict.fromkeys(problems)),
        output=output,
    )


def _sibling(ready: Suite, child: Child) -> tuple[str, Mutant]:
    return next(
        (path, mutant)
        for path, pool in ready.pools.items()
        for mutant in pool
        if child.files.get(path) == mutant.text and (not child.target or child.target == path)
    )
