"""What a conformance check is and what comes of it."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from orchestrator.errors import Misconfigured

if TYPE_CHECKING:
    from orchestrator.conformance.rig import Rig

Body = Callable[["Rig"], Awaitable[None]]

DEFAULT_LIMIT_S = 30.0
"""What a check may take. Most take milliseconds; the slowest start several boxes."""

CONTROLS = frozenset(f"C{number}" for number in range(1, 36))
"""Security controls that checks are evidence for; docs/security.md says what each is."""


class Broken(Exception):
    """What a check expected did not hold; the message says what was expected and what was found."""


class Kind(StrEnum):
    """A negative check shows that something cannot be done; its positive control shows that the same probe can succeed."""

    POSITIVE = "positive"
    NEGATIVE = "negative"


class Outcome(StrEnum):
    PASSED = "passed"
    FAILED = "failed"
    XFAILED = "xfailed"
    XPASSED = "xpassed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One promise of a backend. `id` is `group/words-of-the-promise`; `control` is the id of a negative check's positive control.

    `controls` names the security controls (`C1` to `C35`, docs/security.md) that the check is evidence for.
    """

    id: str
    group: str
    sentence: str
    kind: Kind
    control: str | None
    controls: tuple[str, ...]
    limit_s: float
    body: Body


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """`text` says what was found for a failure, and why it is known for a gap. `seconds` leaves out the control's time."""

    check: Check
    outcome: Outcome
    text: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """`subject` is what was proved: `docker`, `docker-runsc` .. `left_behind`: boxes that were still there when all was over."""

    subject: str
    results: Sequence[Result]
    left_behind: Sequence[str]

    @property
    def ok(self) -> bool:
        """Whether every check passed or is a known gap that still is one."""
        bad = {Outcome.FAILED, Outcome.XPASSED}
        return not self.left_behind and not any(result.outcome in bad for result in self.results)

    @property
    def exit_status(self) -> int:
        return 0 if self.ok else 1

    def count(self, outcome: Outcome) -> int:
        return sum(result.outcome is outcome for result in self.results)


class Group:
    """Checks of one subject, in the order in which they are written."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.checks: list[Check] = []

    def positive(self, *, limit_s: float = DEFAULT_LIMIT_S, proves: tuple[str, ...] = ()) -> Callable[[Body], Check]:
        """Raises Misconfigured when `proves` names no control."""
        _known(proves)
        return lambda body: self._add(body, Kind.POSITIVE, None, proves, limit_s)

    def negative(
        self, *, control: Check, limit_s: float = DEFAULT_LIMIT_S, proves: tuple[str, ...] = ()
    ) -> Callable[[Body], Check]:
        """Raises Misconfigured when `control` is itself negative, or `proves` names no control."""
        _known(proves)
        if control.kind is not Kind.POSITIVE:
            raise Misconfigured(f"{control.id} cannot be a control: it is negative itself")
        return lambda body: self._add(body, Kind.NEGATIVE, control.id, proves, limit_s)

    def _add(self, body: Body, kind: Kind, control: str | None, controls: tuple[str, ...], limit_s: float) -> Check:
        name = getattr(body, "__name__", "")
        sentence = " ".join((body.__doc__ or "").split())
        check = Check(
            id=f"{self.name}/{name.replace('_', '-')}",
            group=self.name,
            sentence=sentence,
            kind=kind,
            control=control,
            controls=controls,
            limit_s=limit_s,
            body=body,
        )
        self.checks.append(check)
        return check


def _known(controls: tuple[str, ...]) -> None:
    if unknown := sorted(set(controls) - CONTROLS):
        raise Misconfigured(f"unknown controls {unknown}; there are C1 to C35")


def check_gaps(checks: Sequence[Check], gaps: Mapping[str, str]) -> None:
    """Raises Misconfigured for a gap that names no check, or gives no reason."""
    known = {check.id for check in checks}
    unknown = sorted(set(gaps) - known)
    silent = sorted(name for name, reason in gaps.items() if not reason.strip())
    if unknown or silent:
        raise Misconfigured(f"gaps must name checks and give a reason; unknown: {unknown}, without reason: {silent}")
