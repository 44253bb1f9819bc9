"""The grader over a real box: honest work in, reward out."""

import pytest

from orchestrator.graders.tests import TestsGrader as Grader
from tests.graders.tests_grader.library import GOLD, bench
from tests.needs import needs

pytestmark = [pytest.mark.anyio, needs("root")]


async def test_the_gold_answer_passes() -> None:
    grade = await Grader().grade(bench(GOLD))
    assert (grade.score, grade.passed, grade.violation) == (1.0, True, False), grade
    assert grade.sub_scores == {"fail_to_pass": 1.0, "pass_to_pass": 1.0}
