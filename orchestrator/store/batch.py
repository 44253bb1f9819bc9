"""One batch of writes in one transaction: load what stands, decide (writes.py), apply. Set-wise: a few statements for hundreds of writes."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

from sqlalchemy import Connection, Insert, RowMapping, Select, insert, update

from orchestrator.failpoints import hit
from orchestrator.models import (
    Binding,
    CallKey,
    Epoch,
    Finding,
    JobId,
    RolloutKey,
    RolloutState,
    TraceId,
)
from orchestrator.store import codec, queries
from orchestrator.store.schema import calls, evidence, findings, pulse, rewards, rollouts, taints
from orchestrator.store.writes import (
    AddFinding,
    AnyWrite,
    Bind,
    Ledger,
    Outcome,
    PutEvidence,
    PutReward,
    Record,
    Standing,
    Taint,
    decide,
    rollouts_of,
)

T = TypeVar("T")

CHUNK = 200
"""Parameters per IN list, well below what SQLite (32,766) and PostgreSQL allow."""


def run_batch(connection: Connection, writes: Sequence[AnyWrite]) -> list[Outcome]:
    """Carry `writes` out inside the open transaction of `connection`; outcomes in the same order. The caller commits."""
    ledger = load(connection, writes)
    outcomes = [decide(ledger, write) for write in writes]
    apply(connection, ledger)
    if ledger.call_rows:
        hit("before_commit")
    return outcomes


def load(connection: Connection, writes: Sequence[AnyWrite]) -> Ledger:
    """What stands for the rollouts of `writes`; new bindings are inserted here, because the rest needs their row ids."""
    ledger = Ledger()
    rollout_keys = rollouts_of(writes)
    _load_standing(connection, ledger, rollout_keys)
    if _insert_missing(connection, ledger, _of(writes, Bind)):
        _load_standing(connection, ledger, [key for key in rollout_keys if key not in ledger.standing])
    _load_calls(connection, ledger, _of(writes, Record))
    _load_bodies(connection, ledger, writes)
    _load_taints(connection, ledger, _of(writes, Taint))
    _load_findings(connection, ledger, _of(writes, AddFinding))
    return ledger


def _of(writes: Sequence[AnyWrite], kind: type[T]) -> list[T]:
    return [write for write in writes if isinstance(write, kind)]


def _chunks(items: Iterable[T]) -> Iterable[list[T]]:
    whole = list(items)
    return (whole[start : start + CHUNK] for start in range(0, len(whole), CHUNK))


def _by_name(connection: Connection, query: Select[Any], keys: Iterable[RolloutKey]) -> Iterator[RowMapping]:
    """The rows of `query` for these rollouts, asked for job by job."""
    traces: dict[JobId, list[TraceId]] = {}
    for key in keys:
        traces.setdefault(key.job, []).append(key.trace_id)
    for job, of_job in traces.items():
        for chunk in _chunks(of_job):
            yield from connection.execute(query, {"job": job, "traces": chunk}).mappings()


def _load_standing(connection: Connection, ledger: Ledger, keys: Sequence[RolloutKey]) -> None:
    for row in _by_name(connection, queries.STANDING, keys):
        binding = codec.binding_of(row)
        ledger.standing[binding.rollout] = Standing(id=row["id"], binding=binding)


def _insert_missing(connection: Connection, ledger: Ledger, binds: Sequence[Bind]) -> bool:
    missing: dict[RolloutKey, Binding] = {}
    for write in binds:
        if write.rollout not in ledger.standing:
            missing.setdefault(write.rollout, _new_binding(write))
    if missing:
        connection.execute(insert(rollouts), [codec.binding_row(binding) for binding in missing.values()])
    return bool(missing)


def _new_binding(write: Bind) -> Binding:
    return Binding(
        rollout=write.rollout,
        task=write.task,
        host=write.host,
        epoch=Epoch(1),
        state=RolloutState.OPEN,
        sandbox=None,
        boot_id=None,
        reason="",
        tainted="",
        created_at=write.now,
        touched_at=write.now,
    )


def _load_calls(connection: Connection, ledger: Ledger, records: Sequence[Record]) -> None:
    for chunk in _chunks(write.call.key for write in records):
        found = connection.execute(queries.KNOWN_CALLS, {"keys": chunk})
        ledger.recorded.update((rollout_id, CallKey(key)) for rollout_id, key in found)


def _load_bodies(connection: Connection, ledger: Ledger, writes: Sequence[AnyWrite]) -> None:
    bodies = _bodies(connection, ledger, _of(writes, PutEvidence), queries.EVIDENCE_BODIES)
    ledger.evidence.update((rollout_id, codec.evidence_of(body)) for rollout_id, body in bodies)
    bodies = _bodies(connection, ledger, _of(writes, PutReward), queries.REWARD_BODIES)
    ledger.rewards.update((rollout_id, codec.reward_of(body)) for rollout_id, body in bodies)


def _bodies(
    connection: Connection, ledger: Ledger, writes: Sequence[PutEvidence] | Sequence[PutReward], query: Select[Any]
) -> list[tuple[int, str]]:
    ids = [ledger.standing[write.rollout].id for write in writes if write.rollout in ledger.standing]
    return [
        (rollout_id, body) for chunk in _chunks(ids) for rollout_id, body in connection.execute(query, {"ids": chunk})
    ]


def _load_taints(connection: Connection, ledger: Ledger, writes: Sequence[Taint]) -> None:
    for row in _by_name(connection, queries.TAINTS, rollouts_of(writes)):
        ledger.taints[codec.rollout_key(row)] = row["reason"]


def _load_findings(connection: Connection, ledger: Ledger, writes: Sequence[AddFinding]) -> None:
    for row in _by_name(connection, queries.FINDINGS, rollouts_of(writes)):
        known = ledger.findings.setdefault(codec.rollout_key(row), set())
        known.add(Finding(code=row["code"], detail=row["detail"]))


def apply(connection: Connection, ledger: Ledger) -> None:
    """Write what `decide` collected."""
    _update_rollouts(connection, ledger)
    inserts: tuple[tuple[Insert, list[codec.Row]], ...] = (
        (insert(calls), ledger.call_rows),
        (insert(evidence), ledger.evidence_rows),
        (insert(rewards), ledger.reward_rows),
        (insert(taints), ledger.taint_rows),
        (insert(findings), ledger.finding_rows),
    )
    for statement, rows in inserts:
        if rows:
            connection.execute(statement, rows)
    if ledger.pulse_at is not None:
        connection.execute(update(pulse).values(at=ledger.pulse_at))


def _update_rollouts(connection: Connection, ledger: Ledger) -> None:
    names = {column.name for column in queries.MUTABLE}
    rows = []
    for standing in ledger.standing.values():
        if standing.changed:
            whole = codec.binding_row(standing.binding)
            rows.append({"row_id": standing.id, **{name: whole[name] for name in names}})
    if rows:
        connection.execute(queries.UPDATE_ROLLOUT, rows)
