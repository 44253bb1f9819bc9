"""Every forgery is tried for real, over real uids and processes; none is worth more than an honest failure, and its honest twin is not hurt."""

import pytest

from orchestrator.graders.tests import TestsGrader as Grader
from tests.graders.tests_grader.forgeries import IN_PROCESS, PLANTED, Forgery
from tests.graders.tests_grader.library import bench
from tests.needs import needs

pytestmark = [pytest.mark.anyio, needs("root")]

FORGERIES = [pytest.param(forgery, id=forgery.name) for forgery in (*IN_PROCESS, *PLANTED)]


@pytest.mark.parametrize("forgery", FORGERIES)
async def test_a_forgery_earns_nothing(forgery: Forgery) -> None:
    grade = await Grader().grade(bench(forgery.files))
    assert grade.score == 0.0
    assert not grade.passed
    assert grade.violation == forgery.violation, grade


@pytest.mark.parametrize("forgery", FORGERIES)
async def test_its_honest_twin_passes(forgery: Forgery) -> None:
    grade = await Grader().grade(bench(forgery.twin))
    assert grade.passed, grade
    assert grade.score == 1.0
    assert not grade.violation
