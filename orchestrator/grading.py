"""From evidence to reward: one function, the same for live grades, for resuming after a crash, and for scoring anew later (D8).

Nothing here knows where the evidence came from or what became of the box. A failure of ours is an exception, never a reward.
"""

import math
from collections.abc import Mapping

from orchestrator.errors import GraderError, SandboxDead, SandboxOverDisk, TiltyardError
from orchestrator.interfaces import Bench, Grader
from orchestrator.models import BoxEnd, Evidence, Finding, Grade, Outcome, Reward, RewardRange

MAX_TEXT = 2_000
"""Characters of a reason or of a finding's detail that are kept: they end up in logs and tables."""
MAX_FINDINGS = 100

_FAULTS: Mapping[BoxEnd, str] = {
    BoxEnd.DIED_OF_MEMORY: "the sandbox ran out of memory",
    BoxEnd.OVER_DISK: "the sandbox took more disk than its limit",
    BoxEnd.AGENT_KILLED: "the sandbox was brought down from inside",
}


async def grade_rollout(grader: Grader, bench: Bench, *, graded_at: float) -> Reward:
    """Grade `bench.evidence`. `graded_at` is wall-clock seconds.

    A box that died by the model's doing earns the floor without a grader; a grading box that what the model wrote brings down, too.
    Raises GraderError (also for any exception that is not one of ours, and for scores that are no numbers), and what a fresh box
    raises when none can be had (StartFailed, HostFull): the same evidence may be graded again.
    """
    evidence = bench.evidence
    if evidence.box_end in _FAULTS:
        return _floor(bench, Outcome.AGENT_FAULT, _FAULTS[evidence.box_end], graded_at=graded_at)
    try:
        grade = await grader.grade(bench)
    except SandboxDead as error:
        finding = Finding(code="grading_box_died", detail=error.message)
        return _floor(bench, Outcome.AGENT_FAULT, _in_grading(error), finding, graded_at=graded_at)
    except TiltyardError:
        raise
    except Exception as error:
        raise GraderError(f"grader {grader.name} failed: {type(error).__name__}") from error
    return reward_of(grade, evidence, bench.task.reward, graded_at=graded_at)


def _in_grading(error: SandboxDead) -> str:
    return (
        "grading took more disk than the limit" if isinstance(error, SandboxOverDisk) else "grading ran out of memory"
    )


def reward_of(grade: Grade, evidence: Evidence, reward_range: RewardRange, *, graded_at: float) -> Reward:
    """The stored form of what a grader said. Pure. Raises GraderError for a score or sub-score that is no finite number."""
    violation = grade.violation
    return Reward(
        rollout=evidence.rollout,
        outcome=Outcome.INTEGRITY_VIOLATION if violation else Outcome.SCORED,
        score=reward_range.low if violation else scaled(grade.score, reward_range),
        reason=grade.reason[:MAX_TEXT],
        sub_scores={name: _finite(score, name) for name, score in grade.sub_scores.items()},
        findings=merged(evidence.findings, grade.findings),
        graded_at=graded_at,
    )


def scaled(score: float, reward_range: RewardRange) -> float:
    """`score` in [0, 1], clamped, mapped to [low, high]. Raises GraderError unless it is a finite number."""
    share = min(1.0, max(0.0, _finite(score, "score")))
    value = reward_range.low + share * (reward_range.high - reward_range.low)
    return _finite(min(reward_range.high, max(reward_range.low, value)), "reward")


def merged(*groups: tuple[Finding, ...]) -> tuple[Finding, ...]:
    """Each finding once, in order, the first hundred, details cut."""
    short = (Finding(code=each.code, detail=each.detail[:MAX_TEXT]) for group in groups for each in group)
    return tuple(dict.fromkeys(short))[:MAX_FINDINGS]


def _finite(value: float, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise GraderError(f"the grader's {name} is not a finite number")
    return float(value)


def _floor(bench: Bench, outcome: Outcome, reason: str, *findings: Finding, graded_at: float) -> Reward:
    return Reward(
        rollout=bench.evidence.rollout,
        outcome=outcome,
        score=bench.task.reward.low,
        reason=reason,
        sub_scores={},
        findings=merged(bench.evidence.findings, findings),
        graded_at=graded_at,
    )
