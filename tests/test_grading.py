"""From a grader's word to a reward: finite, in range, never more for a violation, never one for a failure of ours."""

import math
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import GraderError, SandboxDead, StartFailed
from orchestrator.grading import MAX_FINDINGS, MAX_TEXT, grade_rollout, merged, reward_of, scaled
from orchestrator.interfaces import Bench, GraderBox
from orchestrator.models import (
    BoxEnd,
    Evidence,
    FileChange,
    Finding,
    Grade,
    JobId,
    Outcome,
    RewardRange,
    RolloutKey,
    Task,
    TaskId,
    TraceId,
)

pytestmark = pytest.mark.anyio

EVIDENCE = Evidence(
    rollout=RolloutKey(job=JobId("j"), trace_id=TraceId("t")),
    task=TaskId("t"),
    changes=(),
    truncated=False,
    final_answer="",
    submitted=None,
    calls=1,
    box_end=BoxEnd.ALIVE,
    findings=(Finding(code="forged_handle", detail="x"),),
    gathered_at=1.0,
)
TASK = Task(
    id=TaskId("t"),
    repo="r",
    commit="c",
    image="i",
    prompt="p",
    grader="told",
    reward=RewardRange(low=-1.0, high=2.0),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """A bench with evidence and no box."""

    task: Task = TASK
    evidence: Evidence = EVIDENCE

    def fresh_box(self) -> AbstractAsyncContextManager[GraderBox]:
        raise StartFailed("no box here")

    async def blob(self, change: FileChange) -> bytes:
        raise GraderError("no content here")


class Told:
    name = "told"

    def __init__(self, does: Callable[[], Grade]) -> None:
        self._does = does

    def check(self, task: Task) -> None:
        """Any task will do."""

    async def grade(self, bench: Bench) -> Grade:
        return self._does()


def raising(error: Exception) -> Callable[[], Grade]:
    def does() -> Grade:
        raise error

    return does


def a_grade(**changes: Any) -> Grade:
    return replace(Grade(score=1.0, passed=True, reason="fine"), **changes)


async def test_a_score_is_mapped_to_the_tasks_range_and_findings_are_merged() -> None:
    told = a_grade(score=0.5, sub_scores={"f": 0.25}, findings=(Finding(code="seen", detail="y"),))
    reward = await grade_rollout(Told(lambda: told), Desk(), graded_at=7.0)
    assert (reward.outcome, reward.score, reward.reason, reward.graded_at) == (Outcome.SCORED, 0.5, "fine", 7.0)
    assert reward.sub_scores == {"f": 0.25}
    assert [finding.code for finding in reward.findings] == ["forged_handle", "seen"]


@given(score=st.floats(allow_nan=False, allow_infinity=False), low=st.floats(-1e6, 1e6), width=st.floats(0, 1e6))
def test_every_finite_score_lands_in_the_range_and_order_is_kept(score: float, low: float, width: float) -> None:
    within = RewardRange(low=low, high=low + width)
    value = scaled(score, within)
    assert math.isfinite(value)
    assert within.low <= value <= within.high
    assert scaled(0.0, within) <= value <= scaled(1.0, within)
    assert scaled(0.0, within) == within.low


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf, "1", None, True])
def test_what_is_no_number_is_the_graders_failure(wrong: Any) -> None:
    assert reward_of(a_grade(), EVIDENCE, TASK.reward, graded_at=0.0).score == 2.0
    with pytest.raises(GraderError):
        reward_of(a_grade(score=wrong), EVIDENCE, TASK.reward, graded_at=0.0)
    with pytest.raises(GraderError):
        reward_of(a_grade(sub_scores={"f": wrong}), EVIDENCE, TASK.reward, graded_at=0.0)


@pytest.mark.parametrize("score", [1.0, math.nan, 1e308])
async def test_a_violation_earns_the_floor_whatever_its_score(score: float) -> None:
    reward = await grade_rollout(Told(lambda: a_grade(score=score, violation=True)), Desk(), graded_at=0.0)
    assert (reward.outcome, reward.score) == (Outcome.INTEGRITY_VIOLATION, -1.0)
    honest = await grade_rollout(Told(lambda: a_grade(score=0.0, passed=False)), Desk(), graded_at=0.0)
    assert honest.score is not None
    assert reward.score is not None
    assert reward.score <= honest.score


@pytest.mark.parametrize("end", [BoxEnd.DIED_OF_MEMORY, BoxEnd.AGENT_KILLED])
async def test_a_box_that_died_of_the_model_is_graded_by_nobody(end: BoxEnd) -> None:
    desk = Desk(evidence=replace(EVIDENCE, box_end=end))
    reward = await grade_rollout(Told(raising(AssertionError("asked"))), desk, graded_at=0.0)
    assert (reward.outcome, reward.score) == (Outcome.AGENT_FAULT, -1.0)
    assert reward.findings == EVIDENCE.findings


async def test_a_rollout_that_never_opened_a_box_is_graded_like_any_other() -> None:
    desk = Desk(evidence=replace(EVIDENCE, box_end=BoxEnd.NEVER_OPENED))
    assert (await grade_rollout(Told(a_grade), desk, graded_at=0.0)).score == 2.0


async def test_a_grading_box_brought_down_by_the_models_code_earns_the_floor() -> None:
    reward = await grade_rollout(Told(raising(SandboxDead("memory"))), Desk(), graded_at=0.0)
    assert (reward.outcome, reward.score) == (Outcome.AGENT_FAULT, -1.0)
    assert "grading_box_died" in [finding.code for finding in reward.findings]


@pytest.mark.parametrize("error", [ZeroDivisionError(), TimeoutError(), OSError("disk")])
async def test_a_graders_own_failure_is_never_a_reward(error: Exception) -> None:
    with pytest.raises(GraderError, match=type(error).__name__):
        await grade_rollout(Told(raising(error)), Desk(), graded_at=0.0)


async def test_errors_of_ours_pass_as_they_are() -> None:
    with pytest.raises(StartFailed):
        await grade_rollout(Told(raising(StartFailed("engine"))), Desk(), graded_at=0.0)


def test_findings_are_bounded_and_told_once() -> None:
    many = tuple(Finding(code="c", detail=f"{n}" + "x" * 5000) for n in range(300))
    kept = merged(many, many)
    assert len(kept) == MAX_FINDINGS
    assert len(set(kept)) == MAX_FINDINGS
    assert all(len(finding.detail) <= MAX_TEXT for finding in kept)
