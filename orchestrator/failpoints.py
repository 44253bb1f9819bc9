"""Named places where a fault can be ordered in the real server process. Disarmed they cost a dictionary look-up.

`TILTYARD_FAILPOINTS="before_commit:kill,after_evidence:raise:2"`: name, action (kill is SIGKILL to this process), which hit (first by default).
"""

import os
import signal
from dataclasses import dataclass

from orchestrator.errors import Misconfigured, TiltyardError

NAMES = frozenset(
    {
        "before_dispatch",  # the call is known, the box has not heard of it
        "after_effect",  # the box has done it, the tool has its result
        "before_commit",  # the reply is made, not recorded
        "before_reply",  # recorded, not yet answered
        "before_acknowledge",  # answered or about to be, the box still remembers
        "after_evidence",  # a grade's evidence is stored, no grader ran
        "after_create",  # a box exists that no binding names yet
    }
)
ACTIONS = frozenset({"kill", "raise"})


class FailpointFired(TiltyardError):
    """Ordered by a test."""

    reason = "failpoint"


@dataclass(slots=True)
class _Armed:
    action: str
    hits_left: int


_armed: dict[str, _Armed] = {}


def arm(spec: str) -> None:
    """Replace what is armed by `spec` (empty: nothing). Raises Misconfigured for unknown names or actions."""
    parsed = dict(_parse(part) for part in spec.split(",") if part)
    _armed.clear()
    _armed.update(parsed)


def _parse(part: str) -> tuple[str, _Armed]:
    name, _, rest = part.partition(":")
    action, _, count = rest.partition(":")
    if name not in NAMES or action not in ACTIONS or not (count or "1").isdigit():
        raise Misconfigured(
            f"failpoint {part!r}: want NAME:ACTION[:HIT], names {sorted(NAMES)}, actions {sorted(ACTIONS)}"
        )
    return name, _Armed(action=action, hits_left=int(count or "1"))


def hit(name: str) -> None:
    """Fire if `name` is armed and this is its ordered hit."""
    armed = _armed.get(name)
    if armed is None:
        return
    armed.hits_left -= 1
    if armed.hits_left:
        return
    if armed.action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    raise FailpointFired(f"failpoint {name}")
