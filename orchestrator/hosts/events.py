"""The words of a rollout's life: phases, calls, the lease's state, events and actions. `leases` says what follows from what."""

from dataclasses import dataclass
from enum import StrEnum

from orchestrator.interfaces import SHARED, Order
from orchestrator.models import BoxEnd, CallKey, RolloutState, SandboxId


class Phase(StrEnum):
    UNOPENED = "unopened"  # bound in the store; no box was asked for
    OPENING = "opening"  # waiting for a slot, or its box is being made
    ADOPTING = "adopting"  # the box of an earlier process is being taken back
    LIVE = "live"
    DEAD = "dead"  # the box died by the model's doing: calls answer text
    GATHERING = "gathering"  # a grade came: no new calls, evidence is being gathered
    GRADING = "grading"  # evidence is stored, the agent's box is ended
    CLOSING = "closing"  # the tombstone is being written
    CLOSED = "closed"
    DROPPED = "dropped"  # forgotten without a tombstone


TAKES_CALLS = frozenset({Phase.UNOPENED, Phase.OPENING, Phase.LIVE, Phase.DEAD})
OVER = frozenset({Phase.CLOSED, Phase.DROPPED})


class Verdict(StrEnum):
    """What becomes of a call."""

    RUN = "run"
    DEAD = "dead"  # answer that the box died
    EXHAUSTED = "exhausted"  # answer that the budget is spent


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A call between arrival and end. `boxless` ones need no box and no order (the arguments were bad, the budget is spent)."""

    key: CallKey
    sequence: int
    order: Order = SHARED
    boxless: bool = False
    last: bool = False
    running: bool = False
    verdict: Verdict = Verdict.RUN


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseState:
    """`queue` is in order of arrival; `failed` are calls that ended without a recorded reply and keep their number for the retry."""

    phase: Phase
    budget: int
    ttl_s: float
    active_at: float
    sandbox: SandboxId | None = None
    queue: tuple[Call, ...] = ()
    failed: tuple[Call, ...] = ()
    next_sequence: int = 1
    charged: int = 0
    grade_asked: bool = False
    busy: bool = False
    """Evidence is being gathered, graders run, or a tombstone is being written, right now."""
    died: BoxEnd | None = None
    end: RolloutState | None = None
    reason: str = ""

    @property
    def running(self) -> tuple[Call, ...]:
        return tuple(call for call in self.queue if call.running)


# ---- events


@dataclass(frozen=True, slots=True, kw_only=True)
class CallArrived:
    key: CallKey
    order: Order = SHARED
    boxless: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CallEnded:
    """`recorded`: its reply is in the record. Otherwise a retry of the same key takes the same number."""

    key: CallKey
    recorded: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxWanted:
    """An explicit open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxChosen:
    """The store names this box for the rollout; it may exist from now on."""

    sandbox: SandboxId


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxReady:
    """Leased to the rollout, and the store says so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StartFailed:
    """No box was handed out, now or by the process before us: what may exist of it ran nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordRead:
    """What the record says of calls that an earlier process ran."""

    next_sequence: int
    charged: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxAdopted:
    """`pending` are calls the box knows and the record does not, in journal order: each began, so each is charged."""

    pending: tuple[Call, ...] = ()
    frozen: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxDied:
    """By the model's doing."""

    end: BoxEnd


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxLost:
    """Not by the model's doing."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GradeAsked:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceStored:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class GradeFailed:
    """By our fault; a retry starts from what is stored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Graded:
    """The reward is stored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Barred:
    """Never to be scored, found out while grading; the tombstone is stored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseAsked:
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TombstoneWritten:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class TombstoneFailed:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Stale:
    """Another host owns the rollout."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    pass


Event = (
    CallArrived
    | CallEnded
    | BoxWanted
    | BoxChosen
    | BoxReady
    | StartFailed
    | RecordRead
    | BoxAdopted
    | BoxDied
    | BoxLost
    | GradeAsked
    | EvidenceStored
    | GradeFailed
    | Graded
    | Barred
    | ReleaseAsked
    | TombstoneWritten
    | TombstoneFailed
    | Stale
    | Tick
)


# ---- actions


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenBox:
    """Get a slot, choose an id, make the box."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StartCall:
    call: Call


@dataclass(frozen=True, slots=True, kw_only=True)
class FailCalls:
    """Stop what runs of these and answer with the reason at hand; none of them gets a recorded reply here."""

    keys: tuple[CallKey, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gather:
    """Let running calls end, freeze, take the evidence, store it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndBox:
    """Remove the agent's box; its slot stays with the rollout."""

    sandbox: SandboxId


@dataclass(frozen=True, slots=True, kw_only=True)
class RunGraders:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteTombstone:
    end: RolloutState
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Forget:
    """Drop the rollout from memory and give its slot back, after `remove` is gone. `fence` is a box that is never to be touched."""

    remove: SandboxId | None = None
    fence: SandboxId | None = None


Action = OpenBox | StartCall | FailCalls | Gather | EndBox | RunGraders | WriteTombstone | Forget
