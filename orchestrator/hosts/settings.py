"""What a host may use and how long it waits. Built once, from `orchestrator.settings`, by whoever wires a host."""

import os
from dataclasses import dataclass, field

from orchestrator.errors import Misconfigured
from orchestrator.hosts.admission import Limits


def _cpus() -> int:
    return os.cpu_count() or 1


@dataclass(frozen=True, slots=True, kw_only=True)
class HostSettings:
    """Raises Misconfigured when a value cannot be honoured."""

    memory_limit_mib: int
    """Memory that all boxes together may be promised."""
    disk_limit_mib: int | None = None
    """Disk that all boxes together may be promised; None: no bound."""
    disk_reserve_mib: int = 0
    """No box starts while less of the boxes' disk is free."""
    max_boxes: int = 200
    start_slots: int = 2
    """Boxes starting at the same time; an engine starts no more per second when asked for more at once."""
    max_queued: int = 20_000
    """Rollouts waiting for a box; beyond it HostFull comes at once and no place is kept."""

    call_deadline_s: float = 540.0
    """A call that takes longer answers StillRunning and goes on. Trainers wait ten minutes."""
    grade_deadline_s: float = 540.0
    open_wait_s: float = 480.0
    """How long one request waits in the queue before it answers HostFull."""
    place_ttl_s: float = 900.0
    """How long a place in the queue is kept for a retry once nobody waits on it."""
    start_deadline_s: float = 300.0
    """For one box to start and for one template to be had."""
    template_deadline_s: float = 3600.0
    """For a template: a mirror of a large repository and its set-up commands."""

    idle_ttl_s: float = 1800.0
    """A rollout without calls ends after this."""
    adoption_grace_s: float = 600.0
    """A rollout taken over at start is given at least this, whatever the wall clock says about its last call."""
    sweep_period_s: float = 30.0
    creation_grace_s: float = 300.0
    """A box that nobody here knows is left alone this long: its creation may be under way."""
    drain_s: float = 5.0
    """On exit, how long running calls and grades may take to finish."""
    removal_wait_s: float = 30.0
    """On exit, how long boxes that are being removed may take to go."""

    operation_slack_s: float = 60.0
    """Beyond a command's own time-out, how long a box may take to answer before it counts as lost."""
    settle_s: float = 30.0
    """How long calls that run when the grade comes may still take; then the box is frozen."""
    acknowledge_delay_s: float = 0.05
    """Acknowledgements gathered before they are sent."""
    kept_replies_bytes: int = 256 * 1024
    """Text of finished replies held in memory per rollout; older ones are read from the record."""

    max_evidence_bytes: int = 256 * 1024 * 1024
    """Content carried out of a box; what exceeds it is named without content, and the evidence says truncated."""
    evidence_chunk_bytes: int = 16 * 1024 * 1024

    grader_reserve: int = 1
    """Warm grading boxes kept per task with hidden tests that has live rollouts."""
    test_runs: int = field(default_factory=_cpus)
    """Grading boxes in use at the same time: tests are bound by CPU."""

    def __post_init__(self) -> None:
        positive = ("memory_limit_mib", "max_boxes", "start_slots", "max_queued", "test_runs", "evidence_chunk_bytes")
        wrong = [name for name in positive if getattr(self, name) < 1]
        wrong += [name for name in ("idle_ttl_s", "sweep_period_s", "call_deadline_s") if getattr(self, name) <= 0]
        wrong += [name for name in ("grader_reserve", "disk_reserve_mib") if getattr(self, name) < 0]
        if wrong:
            raise Misconfigured(f"host settings must be positive: {', '.join(wrong)}")

    def admission_limits(self) -> Limits:
        return Limits(
            memory_mib=self.memory_limit_mib,
            boxes=self.max_boxes,
            start_slots=self.start_slots,
            max_queued=self.max_queued,
            disk_mib=self.disk_limit_mib,
            disk_reserve_mib=self.disk_reserve_mib,
        )
