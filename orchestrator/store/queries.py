"""The record's statements, built once: building them anew for each call costs more than running them."""

from typing import Any

from sqlalchemy import BindParameter, Column, Integer, Select, and_, bindparam, func, select, update

from orchestrator.models import RolloutState
from orchestrator.store.schema import calls, evidence, findings, rewards, rollouts, taints

_NAMED = and_(rollouts.c.job == bindparam("job"), rollouts.c.trace_id == bindparam("trace_id"))
_TRACES: BindParameter[Any] = bindparam("traces", expanding=True)
_IDS: BindParameter[Any] = bindparam("ids", expanding=True)
_KEYS: BindParameter[Any] = bindparam("keys", expanding=True)

BINDINGS: Select[Any] = select(rollouts, taints.c.reason.label("tainted")).select_from(
    rollouts.outerjoin(taints, and_(taints.c.job == rollouts.c.job, taints.c.trace_id == rollouts.c.trace_id))
)
"""Rows that `codec.binding_of` reads."""

# Inside a batch, many at once: those by name take one job and its traces. (SQLite scans the table for `(a, b) IN (pairs)`.)
STANDING = BINDINGS.where(rollouts.c.job == bindparam("job"), rollouts.c.trace_id.in_(_TRACES)).with_for_update(
    of=rollouts
)
KNOWN_CALLS = select(calls.c.rollout_id, calls.c.key).where(calls.c.key.in_(_KEYS))
EVIDENCE_BODIES = select(evidence).where(evidence.c.rollout_id.in_(_IDS))
REWARD_BODIES = select(rewards.c.rollout_id, rewards.c.body).where(rewards.c.rollout_id.in_(_IDS))
TAINTS = select(taints).where(taints.c.job == bindparam("job"), taints.c.trace_id.in_(_TRACES))
FINDINGS = select(findings).where(findings.c.job == bindparam("job"), findings.c.trace_id.in_(_TRACES))

MUTABLE: tuple[Column[Any], ...] = (
    rollouts.c.host,
    rollouts.c.epoch,
    rollouts.c.state,
    rollouts.c.sandbox,
    rollouts.c.boot_id,
    rollouts.c.reason,
    rollouts.c.touched_at,
    rollouts.c.template,
)
UPDATE_ROLLOUT = (
    update(rollouts)
    .where(rollouts.c.id == bindparam("row_id"))
    .values({column: bindparam(column.name) for column in MUTABLE})
)

# Readers; those of one rollout take job and trace_id.
BINDING = BINDINGS.where(_NAMED)
TAINT = select(taints.c.reason).where(taints.c.job == bindparam("job"), taints.c.trace_id == bindparam("trace_id"))
CALLS = select(calls).select_from(calls.join(rollouts)).where(_NAMED).order_by(calls.c.sequence)
CALL = select(calls).select_from(calls.join(rollouts)).where(_NAMED, calls.c.key == bindparam("key"))
EVIDENCE = select(evidence.c.body).select_from(evidence.join(rollouts)).where(_NAMED)
REWARD = select(rewards.c.body).select_from(rewards.join(rollouts)).where(_NAMED)
FINDINGS_OF = (
    select(findings.c.code, findings.c.detail)
    .where(findings.c.job == bindparam("job"), findings.c.trace_id == bindparam("trace_id"))
    .order_by(findings.c.id)
)
ALL_OPEN_BINDINGS = BINDINGS.where(
    rollouts.c.state.in_([RolloutState.OPEN.value, RolloutState.GRADING.value])
).order_by(rollouts.c.id)
OPEN_BINDINGS = ALL_OPEN_BINDINGS.where(rollouts.c.host == bindparam("host"))

_CALL_COUNT = select(func.count()).where(calls.c.rollout_id == rollouts.c.id).scalar_subquery()
_REWARD_BODY = select(rewards.c.body).where(rewards.c.rollout_id == rollouts.c.id).scalar_subquery()
SUMMARIES = (
    BINDINGS.add_columns(_CALL_COUNT.label("call_count"), _REWARD_BODY.label("reward_body"))
    .order_by(rollouts.c.created_at.desc(), rollouts.c.id.desc())
    .limit(bindparam("row_limit", type_=Integer))
)
"""Counting per row walks the primary key of `calls` for the listed rollouts alone."""
SUMMARIES_OF_JOB = SUMMARIES.where(rollouts.c.job == bindparam("job"))
