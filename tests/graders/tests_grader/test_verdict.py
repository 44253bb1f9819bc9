"""From reports to a grade: every way not to pass, beside the one way to pass."""

import errno
from dataclasses import replace

import pytest

from orchestrator.errors import GraderError
from orchestrator.graders.tests.frames import Report
from orchestrator.graders.tests.plan import Child, Plan
from orchestrator.graders.tests.verdict import judge
from orchestrator.models import Grade
from orchestrator.models import TestsSpec as Spec

A, B = "tests/t.py::test_a", "tests/t.py::test_b[1]"
SPEC = Spec(hidden=(), fail_to_pass=(A,), pass_to_pass=(B,))
PLAN = Plan(
    children=(
        Child(target="tests/t.py", files={}, functions=(), must_fail=None),
        Child(target="tests/t.py", files={}, functions=(), must_fail=frozenset({A})),
    ),
    expected={"tests/t.py": (A, B)},
    always={},
    trees=frozenset(),
    hidden=frozenset(),
    interpreter="python3",
    arguments=(),
    argv=(),
    roots=(".",),
    timeout_s=1.0,
)
PASSING = Report(child=0, exit_code=0, ready=True, finished=0, outcomes=((A, "passed"), (B, "passed")))
FAILING = Report(child=1, exit_code=1, ready=True, finished=1, outcomes=((A, "failed"), (B, "passed")))


def graded(real: Report, sibling: Report = FAILING, plan: Plan = PLAN) -> Grade:
    return judge(SPEC, plan, {0: real, 1: sibling})


def test_a_pass() -> None:
    grade = graded(PASSING)
    assert (grade.score, grade.passed, grade.violation, grade.findings) == (1.0, True, False, ())
    assert grade.sub_scores == {"fail_to_pass": 1.0, "pass_to_pass": 1.0}


@pytest.mark.parametrize("outcome", ["failed", "error", "skipped", "xfailed", "xpassed"])
def test_only_passed_counts(outcome: str) -> None:
    grade = graded(replace(PASSING, outcomes=((A, outcome), (B, "passed"))))
    assert (grade.score, grade.violation) == (0.0, False)
    assert grade.sub_scores == {"fail_to_pass": 0.0, "pass_to_pass": 1.0}
    assert f"{A} {outcome}" in grade.reason


@pytest.mark.parametrize(
    ("outcome", "passes"), [("skipped", True), ("xfailed", True), ("passed", False), ("xpassed", False)]
)
def test_a_test_that_the_task_does_not_name_may_only_stand_aside(outcome: str, passes: bool) -> None:
    other = ("tests/t.py::test_b[2]", outcome)
    assert graded(replace(PASSING, outcomes=(*PASSING.outcomes, other))).passed is passes


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"outcomes": ((A, "passed"),)}, "missing"),
        ({"outcomes": ()}, "missing"),
        ({"outcomes": ((A, "passed"), (B, "passed"), (A, "passed"))}, "reported twice"),
        ({"outcomes": ((A, "passed"), (B, "passed"), ("tests/t.py::test_c", "passed"))}, "does not name"),
        ({"exit_code": 1}, "exited with 1"),
        ({"exit_code": -9}, "SIGKILL"),
        ({"exit_code": None, "timed_out": True}, "out of time"),
        ({"finished": 1}, "incomplete"),
        ({"cut": True}, "incomplete"),
        ({"collect_errors": ("tests/t.py",)}, "incomplete"),
        ({"clean": False}, "outlived"),
    ],
)
def test_what_is_not_a_pass(change: dict[str, object], words: str) -> None:
    grade = graded(replace(PASSING, **change))  # type: ignore[arg-type]
    assert (grade.score, grade.violation) == (0.0, False), grade
    assert words in grade.reason


@pytest.mark.parametrize(
    ("sibling", "code"),
    [
        (replace(PASSING, child=1), "sibling_passed"),
        (replace(FAILING, outcomes=((A, "passed"), (B, "failed"))), "sibling_passed"),
        (replace(PASSING, child=1, outcomes=()), "sibling_passed"),
        (replace(PASSING, child=1, finished=None), "early_exit"),
        (replace(FAILING, malformed=True), "events_forged"),
    ],
)
def test_a_sibling_that_does_not_fail_is_a_violation(sibling: Report, code: str) -> None:
    grade = graded(PASSING, sibling)
    assert (grade.score, grade.passed, grade.violation) == (0.0, False, True)
    assert code in {finding.code for finding in grade.findings}
    assert set(grade.sub_scores.values()) == {0.0}


@pytest.mark.parametrize(
    "sibling",
    [
        replace(FAILING, exit_code=None, timed_out=True),
        replace(FAILING, exit_code=-11),
        replace(FAILING, exit_code=2, finished=2, outcomes=(), collect_errors=("tests/t.py",)),
        replace(FAILING, outcomes=((A, "error"), (B, "passed"))),
        replace(FAILING, clean=False),
    ],
)
def test_a_sibling_that_breaks_is_no_pass_and_no_accusation(sibling: Report) -> None:
    grade = graded(PASSING, sibling)
    assert (grade.score, grade.violation) == (0.0, False), grade


def test_a_near_miss_that_computes_what_a_sibling_expects_is_honest() -> None:
    grade = graded(replace(FAILING, child=0), replace(PASSING, child=1))
    assert (grade.score, grade.violation) == (0.0, False)
    assert [finding.code for finding in grade.findings] == ["sibling_passed"]
    assert grade.sub_scores == {"fail_to_pass": 0.0, "pass_to_pass": 1.0}


def test_a_written_sibling_may_fail_anywhere() -> None:
    anywhere = replace(PLAN.children[1], must_fail=frozenset())
    plan = replace(PLAN, children=(PLAN.children[0], anywhere))
    assert graded(PASSING, replace(FAILING, outcomes=((A, "passed"), (B, "failed"))), plan).passed
    assert not graded(PASSING, replace(FAILING, outcomes=((A, "passed"), (B, "error"))), plan).passed


def test_a_child_that_could_not_start_is_ours_unless_the_code_used_everything_up() -> None:
    unborn = Report(child=1, exit_code=71, setup_errno=errno.EACCES)
    with pytest.raises(GraderError, match="could not be started"):
        graded(PASSING, unborn)
    assert graded(PASSING, replace(unborn, setup_errno=errno.ENOSPC)).score == 0.0
    assert graded(replace(PASSING, clean=False), unborn).score == 0.0


def test_another_runner_is_judged_by_its_exit_codes() -> None:
    plan = replace(
        PLAN,
        argv=("make", "check"),
        children=(
            Child(target="", files={}, functions=None),
            Child(target="", files={}, functions=None, must_fail=frozenset({A})),
        ),
    )
    passing, failing = Report(child=0, exit_code=0, ready=True), Report(child=1, exit_code=2, ready=True)
    assert graded(passing, failing, plan).score == 1.0
    assert graded(replace(failing, child=0), failing, plan).score == 0.0
    grade = graded(passing, replace(passing, child=1), plan)
    assert (grade.score, grade.violation) == (0.0, True)
    assert graded(passing, replace(failing, exit_code=-9), plan).score == 0.0
