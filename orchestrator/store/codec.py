"""Rows and JSON bodies of the record <-> values. Explicit field by field, so that a renamed attribute cannot change what is stored.

Decoders raise StoreError for a row that does not fit: a damaged record is told, never guessed at.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from sqlalchemy import RowMapping

from orchestrator.errors import StoreError
from orchestrator.models import (
    Binding,
    BoxEnd,
    CallKey,
    CallRecord,
    Epoch,
    Evidence,
    FileChange,
    Finding,
    HostId,
    JobId,
    Outcome,
    Reward,
    RolloutKey,
    RolloutState,
    SandboxId,
    TaskId,
    ToolReply,
    TraceId,
    canonical_json,
)

T = TypeVar("T")
Row = Mapping[str, object]
"""Column -> value, as an insert takes it."""


def decoding(what: str, decode: Callable[[], T]) -> T:
    """`decode()`, its complaints about malformed content as StoreError."""
    try:
        return decode()
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(
            f"a stored {what} is damaged ({type(error).__name__}); restore the store from a backup"
        ) from error


def binding_row(binding: Binding) -> Row:
    return {
        "job": binding.rollout.job,
        "trace_id": binding.rollout.trace_id,
        "task": binding.task,
        "host": binding.host,
        "epoch": binding.epoch,
        "state": binding.state.value,
        "sandbox": binding.sandbox,
        "boot_id": binding.boot_id,
        "reason": binding.reason,
        "created_at": binding.created_at,
        "touched_at": binding.touched_at,
        "template": binding.template,
    }


def rollout_key(row: RowMapping) -> RolloutKey:
    return RolloutKey(job=JobId(row["job"]), trace_id=TraceId(row["trace_id"]))


def binding_of(row: RowMapping) -> Binding:
    """`row` is of `rollouts`, joined with the taint's reason as `tainted`."""
    return decoding(
        "binding",
        lambda: Binding(
            rollout=rollout_key(row),
            task=TaskId(row["task"]),
            host=HostId(row["host"]),
            epoch=Epoch(row["epoch"]),
            state=RolloutState(row["state"]),
            sandbox=None if row["sandbox"] is None else SandboxId(row["sandbox"]),
            boot_id=row["boot_id"],
            reason=row["reason"],
            tainted=row["tainted"] or "",
            created_at=row["created_at"],
            touched_at=row["touched_at"],
            template=row["template"] or "",  # NULL in rows of before there was such a column
        ),
    )


def call_row(rollout_id: int, call: CallRecord) -> Row:
    return {
        "rollout_id": rollout_id,
        "sequence": call.sequence,
        "key": call.key,
        "call_id": call.call_id,
        "tool": call.tool,
        "arguments_text": call.arguments_text,
        "reply_text": call.reply.text,
        "is_error": call.reply.is_error,
        "started_at": call.started_at,
        "finished_at": call.finished_at,
        "charged": call.charged,
    }


def call_of(rollout: RolloutKey, row: RowMapping) -> CallRecord:
    return CallRecord(
        rollout=rollout,
        sequence=row["sequence"],
        key=CallKey(row["key"]),
        call_id=row["call_id"],
        tool=row["tool"],
        arguments_text=row["arguments_text"],
        reply=ToolReply(text=row["reply_text"], is_error=row["is_error"]),
        started_at=row["started_at"],
        finished_at=row["finished_at"],
        charged=row["charged"],
    )


def _findings_json(findings: Sequence[Finding]) -> list[list[str]]:
    return [[finding.code, finding.detail] for finding in findings]


def _findings_of(body: Sequence[Sequence[str]]) -> tuple[Finding, ...]:
    return tuple(Finding(code=code, detail=detail) for code, detail in body)


def evidence_text(evidence: Evidence) -> str:
    return canonical_json(
        {
            "job": evidence.rollout.job,
            "trace_id": evidence.rollout.trace_id,
            "task": evidence.task,
            "changes": [
                [change.path, change.kind, change.type, change.mode, change.size_bytes, change.blob]
                for change in evidence.changes
            ],
            "truncated": evidence.truncated,
            "final_answer": evidence.final_answer,
            "submitted": None if evidence.submitted is None else list(evidence.submitted),
            "calls": evidence.calls,
            "box_end": evidence.box_end.value,
            "findings": _findings_json(evidence.findings),
            "gathered_at": evidence.gathered_at,
        }
    )


def _change_of(entry: Sequence[Any]) -> FileChange:
    path, kind, type_, mode, size_bytes, blob = entry
    return FileChange(path=path, kind=kind, type=type_, mode=mode, size_bytes=size_bytes, blob=blob)


def evidence_of(text: str) -> Evidence:
    def decode() -> Evidence:
        body = json.loads(text)
        return Evidence(
            rollout=RolloutKey(job=JobId(body["job"]), trace_id=TraceId(body["trace_id"])),
            task=TaskId(body["task"]),
            changes=tuple(_change_of(entry) for entry in body["changes"]),
            truncated=body["truncated"],
            final_answer=body["final_answer"],
            submitted=None if body["submitted"] is None else tuple(body["submitted"]),
            calls=body["calls"],
            box_end=BoxEnd(body["box_end"]),
            findings=_findings_of(body["findings"]),
            gathered_at=float(body["gathered_at"]),
        )

    return decoding("evidence", decode)


def reward_text(reward: Reward) -> str:
    """Raises ValueError for a score that is not a finite number."""
    return canonical_json(
        {
            "job": reward.rollout.job,
            "trace_id": reward.rollout.trace_id,
            "outcome": reward.outcome.value,
            "score": reward.score,
            "reason": reward.reason,
            "sub_scores": dict(reward.sub_scores),
            "findings": _findings_json(reward.findings),
            "graded_at": reward.graded_at,
        }
    )


def reward_of(text: str) -> Reward:
    def decode() -> Reward:
        body = json.loads(text)
        return Reward(
            rollout=RolloutKey(job=JobId(body["job"]), trace_id=TraceId(body["trace_id"])),
            outcome=Outcome(body["outcome"]),
            score=None if body["score"] is None else float(body["score"]),
            reason=body["reason"],
            sub_scores={name: float(score) for name, score in body["sub_scores"].items()},
            findings=_findings_of(body["findings"]),
            graded_at=float(body["graded_at"]),
        )

    return decoding("reward", decode)


def reward_row(rollout_id: int, reward: Reward) -> Row:
    return {
        "rollout_id": rollout_id,
        "outcome": reward.outcome.value,
        "score": reward.score,
        "body": reward_text(reward),
    }
