"""Proving a task on its gold answer."""

from dataclasses import replace

import pytest

from orchestrator.errors import GraderError, Misconfigured
from orchestrator.graders.tests import TestsGrader as Grader
from orchestrator.graders.tests.calibration import calibrate, calibrated
from orchestrator.models import HiddenFile, Task
from tests.graders.tests_grader.library import GOLD, SPEC, TASK, bench
from tests.needs import needs

pytestmark = [pytest.mark.anyio, needs("root")]

LIKELY = """
import random

from tally.core import median


def test_it():
    for value in range(2):
        if value == 5:
            assert median([1, 2]) == 9
        assert median([4, 2]) == 3


def test_flaky():
    assert random.SystemRandom().random() < {share}
"""


def likely(share: float, **changes: object) -> Task:
    """A task whose literals may, or may not, be reached."""
    spec = replace(
        SPEC,
        hidden=(HiddenFile(path="tests/test_l.py", text=LIKELY.format(share=share)),),
        fail_to_pass=("tests/test_l.py::test_it",),
        pass_to_pass=("tests/test_l.py::test_flaky",),
        **changes,  # type: ignore[arg-type]
    )
    return replace(TASK, tests=spec)


async def test_a_good_task_is_proven_and_graded_by_what_was_proven() -> None:
    found = await calibrate(bench(GOLD), pool=4)
    assert (found.problems, found.useless) == ((), ())
    assert {path: len(mutants) for path, mutants in found.proven.items()} == {
        "tests/test_core.py": 4,
        "tests/test_words.py": 4,
    }
    task = calibrated(TASK, found)
    assert task.tests is not None
    assert len(task.tests.written_mutants) == 8
    Grader().check(task)
    assert (await Grader().grade(bench(GOLD, task))).passed
    assert not (await Grader().grade(bench({}, task))).passed


async def test_likely_siblings_count_once_they_are_proven() -> None:
    task = likely(1.0)
    with pytest.raises(Misconfigured, match="written_mutants"):
        Grader().check(task)
    found = await calibrate(bench(GOLD, task))
    assert found.problems == ()
    assert found.useless, "what stands behind the branch that is never taken"
    assert found.proven["tests/test_l.py"]
    assert all("9 ->" not in mutant.how for mutant in found.proven["tests/test_l.py"])
    proven = calibrated(task, found)
    Grader().check(proven)
    assert (await Grader().grade(bench(GOLD, proven))).passed


async def test_what_does_not_pass_on_the_gold_answer_is_named_with_its_output() -> None:
    found = await calibrate(bench(GOLD, likely(0.0)))
    assert any("test_flaky failed on the gold answer" in problem for problem in found.problems)
    assert "SystemRandom" in found.output["tests/test_l.py"]


async def test_a_gold_answer_that_steers_the_tests_is_refused() -> None:
    with pytest.raises(GraderError, match="gold answer"):
        await calibrate(bench({**GOLD, "sitecustomize.py": ""}))
