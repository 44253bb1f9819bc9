"""What can be written to the record, and what each write does to what stands there: pure, decided inside the transaction.

`Ledger` holds the standing rows of one batch. Writes are decided against it in order; it collects the rows to insert and update.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Generic, TypeVar

from orchestrator.errors import RolloutClosed, StaleLease, TiltyardError
from orchestrator.models import (
    Binding,
    CallKey,
    CallRecord,
    Epoch,
    Evidence,
    Finding,
    HostId,
    Reward,
    RolloutKey,
    RolloutState,
    SandboxId,
    TaskId,
)
from orchestrator.store.codec import Row, call_row, evidence_text, reward_row

R_co = TypeVar("R_co", covariant=True)

MAX_FINDINGS = 100
"""Findings kept per rollout: a hostile model must not fill the disk with them."""

FINAL = frozenset({RolloutState.GRADED, RolloutState.EXPIRED, RolloutState.RELEASED, RolloutState.LOST})


@dataclass(frozen=True, slots=True, kw_only=True)
class Write(Generic[R_co]):
    """One change; `R_co` is what its caller gets. `durable` writes are on the disk when they return, not only in the system's cache."""

    durable: ClassVar[bool] = False
    rollout: RolloutKey


@dataclass(frozen=True, slots=True, kw_only=True)
class HostWrite(Write[R_co]):
    """A write that counts only while (host, epoch) of `binding` still own the rollout."""

    binding: Binding


@dataclass(frozen=True, slots=True, kw_only=True)
class Bind(Write[Binding]):
    durable = True
    task: TaskId
    host: HostId
    now: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachSandbox(HostWrite[Binding]):
    """Durable: a boot id lost with the machine would let a used id open a second box."""

    durable = True
    sandbox: SandboxId
    boot_id: str | None
    template: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adopt(HostWrite[Binding]):
    durable = True
    host: HostId
    now: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Close(HostWrite[Binding]):
    durable = True
    state: RolloutState
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Touch(HostWrite[None]):
    now: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Record(HostWrite[None]):
    call: CallRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class PutEvidence(HostWrite[Evidence]):
    durable = True
    evidence: Evidence


@dataclass(frozen=True, slots=True, kw_only=True)
class PutReward(HostWrite[Reward]):
    durable = True
    reward: Reward


@dataclass(frozen=True, slots=True, kw_only=True)
class Taint(Write[None]):
    durable = True
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AddFinding(Write[None]):
    finding: Finding


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulse:
    """Write the readiness row; of no rollout."""

    durable: ClassVar[bool] = False
    now: float


AnyWrite = Write[Any] | Pulse


@dataclass(slots=True, kw_only=True)
class Standing:
    """A binding as the transaction sees it."""

    id: int
    binding: Binding
    changed: bool = False


@dataclass(slots=True, kw_only=True)
class Ledger:
    """What stands (filled by the loader) and what is to be written (filled by `decide`)."""

    standing: dict[RolloutKey, Standing] = field(default_factory=dict)
    recorded: set[tuple[int, CallKey]] = field(default_factory=set)
    evidence: dict[int, Evidence] = field(default_factory=dict)
    rewards: dict[int, Reward] = field(default_factory=dict)
    taints: dict[RolloutKey, str] = field(default_factory=dict)
    findings: dict[RolloutKey, set[Finding]] = field(default_factory=dict)

    call_rows: list[Row] = field(default_factory=list)
    evidence_rows: list[Row] = field(default_factory=list)
    reward_rows: list[Row] = field(default_factory=list)
    taint_rows: list[Row] = field(default_factory=list)
    finding_rows: list[Row] = field(default_factory=list)
    pulse_at: float | None = None

    def owned(self, binding: Binding) -> Standing:
        """Raises StaleLease unless (host, epoch) are still the binding's."""
        standing = self.standing.get(binding.rollout)
        if standing is None or (standing.binding.host, standing.binding.epoch) != (binding.host, binding.epoch):
            raise StaleLease("another host owns this rollout now")
        return standing


Outcome = TiltyardError | Binding | Evidence | Reward | None


def decide(ledger: Ledger, write: AnyWrite) -> Outcome:
    """Carry `write` out on the ledger; the value for its caller, or the refusal (then the ledger is unchanged)."""
    try:
        return _RULES[type(write)](ledger, write)
    except (StaleLease, RolloutClosed) as refusal:
        return refusal


def _change(standing: Standing, binding: Binding) -> Binding:
    standing.binding, standing.changed = binding, True
    return binding


def _bind(ledger: Ledger, write: Bind) -> Binding:
    return ledger.standing[write.rollout].binding  # the loader inserted what was missing


def _attach(ledger: Ledger, write: AttachSandbox) -> Binding:
    standing = ledger.owned(write.binding)
    return _change(
        standing, replace(standing.binding, sandbox=write.sandbox, boot_id=write.boot_id, template=write.template)
    )


def _adopt(ledger: Ledger, write: Adopt) -> Binding:
    standing = ledger.owned(write.binding)
    old = standing.binding
    now = max(write.now, old.touched_at)
    return _change(standing, replace(old, host=write.host, epoch=Epoch(old.epoch + 1), touched_at=now))


def _close(ledger: Ledger, write: Close) -> Binding:
    standing = ledger.owned(write.binding)
    if standing.binding.state in FINAL or write.state is RolloutState.OPEN:
        return standing.binding  # a tombstone never moves
    return _change(standing, replace(standing.binding, state=write.state, reason=write.reason))


def _touch(ledger: Ledger, write: Touch) -> None:
    standing = ledger.owned(write.binding)
    _change(standing, replace(standing.binding, touched_at=max(write.now, standing.binding.touched_at)))


def _record(ledger: Ledger, write: Record) -> None:
    standing = ledger.owned(write.binding)
    name = (standing.id, write.call.key)
    if name not in ledger.recorded:
        ledger.recorded.add(name)
        ledger.call_rows.append(call_row(standing.id, write.call))


def _put_evidence(ledger: Ledger, write: PutEvidence) -> Evidence:
    standing = ledger.owned(write.binding)
    if standing.id not in ledger.evidence:
        ledger.evidence_rows.append({"rollout_id": standing.id, "body": evidence_text(write.evidence)})
        ledger.evidence[standing.id] = write.evidence
    return ledger.evidence[standing.id]


def _put_reward(ledger: Ledger, write: PutReward) -> Reward:
    standing = ledger.owned(write.binding)
    if standing.id not in ledger.rewards:
        if reason := ledger.taints.get(write.rollout, standing.binding.tainted):
            raise RolloutClosed(f"this rollout was answered a caller's mistake and is never scored ({reason})")
        ledger.reward_rows.append(reward_row(standing.id, write.reward))
        ledger.rewards[standing.id] = write.reward
    return ledger.rewards[standing.id]


def _name(rollout: RolloutKey) -> dict[str, object]:
    return {"job": rollout.job, "trace_id": rollout.trace_id}


def _taint(ledger: Ledger, write: Taint) -> None:
    if write.rollout in ledger.taints:
        return
    ledger.taints[write.rollout] = write.reason
    ledger.taint_rows.append({**_name(write.rollout), "reason": write.reason})


def _add_finding(ledger: Ledger, write: AddFinding) -> None:
    known = ledger.findings.setdefault(write.rollout, set())
    if write.finding in known or len(known) >= MAX_FINDINGS:
        return
    known.add(write.finding)
    ledger.finding_rows.append({**_name(write.rollout), "code": write.finding.code, "detail": write.finding.detail})


def _pulse(ledger: Ledger, write: Pulse) -> None:
    ledger.pulse_at = write.now


_RULES: Mapping[type, Callable[[Ledger, Any], Outcome]] = {
    Bind: _bind,
    AttachSandbox: _attach,
    Adopt: _adopt,
    Close: _close,
    Touch: _touch,
    Record: _record,
    PutEvidence: _put_evidence,
    PutReward: _put_reward,
    Taint: _taint,
    AddFinding: _add_finding,
    Pulse: _pulse,
}


def rollouts_of(writes: Sequence[AnyWrite]) -> list[RolloutKey]:
    """The rollouts that `writes` speak of, each once."""
    return list(dict.fromkeys(write.rollout for write in writes if not isinstance(write, Pulse)))
