"""Faults that a `FakeBackend` carries out to order: deterministic, each at a named occurrence, nothing random.

Faults(orders=(SlowStart(seconds=2.0, nth=(1,)), DiesLater(after_operations=3, dead=True, boxes=(box_id,))))
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from orchestrator.errors import SandboxLost
from orchestrator.interfaces import OwnedSandbox


class ReplyLost(SandboxLost):
    """The connection broke after the request was taken: the operation may have run. The same operation id joins or replays."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _At:
    """Which occurrences are meant, counted from 1; an empty field does not narrow. Each order says what `nth` counts."""

    nth: tuple[int, ...] = ()
    boxes: tuple[str, ...] = ()

    def meets(self, count: int, box: str) -> bool:
        return (not self.nth or count in self.nth) and (not self.boxes or box in self.boxes)


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowStart(_At):
    """`create` takes `seconds` longer. `nth` counts this backend's creates."""

    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NeverStarts(_At):
    """`create` hangs until its deadline, then StartFailed; nothing is left behind. `nth` counts creates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BadStart(_At):
    """`create` raises StartFailed at once. `nth` counts creates."""

    message: str = "the box's program ended before it answered (ordered fault)"


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateReplyLost(_At):
    """The box is made, and `create` raises EngineUnavailable all the same: only `owned` knows of it. `nth` counts creates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiesLater(_At):
    """The box runs `after_operations` operations and is then gone: SandboxLost, or SandboxDead where `dead`. `nth` counts creates."""

    after_operations: int
    dead: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LostReply(_At):
    """The operation begins (and is done, unless it takes time); its reply is lost: ReplyLost. `nth` counts a box's operations begun."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowExec(_At):
    """A command takes `seconds` longer, within its own time-out. `nth` counts a box's operations begun."""

    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Lies(_At):
    """The box's reply is not of the closed schema: AgentProtocolError. `nth` counts a box's operations begun."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DestroyFails(_At):
    """`destroy` raises EngineUnavailable. `nth` counts the destroys asked for that box."""


Order = SlowStart | NeverStarts | BadStart | CreateReplyLost | DiesLater | LostReply | SlowExec | Lies | DestroyFails

AnyOrder = TypeVar(
    "AnyOrder", SlowStart, NeverStarts, BadStart, CreateReplyLost, DiesLater, LostReply, SlowExec, Lies, DestroyFails
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What goes wrong, and when. `strays` are boxes that `owned` lists although nobody's lease covers them; `destroy` ends them."""

    orders: tuple[Order, ...] = ()
    strays: tuple[OwnedSandbox, ...] = ()

    def of(self, kind: type[AnyOrder], count: int, box: str) -> AnyOrder | None:
        """The first order of that kind that means this occurrence."""
        if not self.orders:
            return None
        return next((order for order in self.orders if isinstance(order, kind) and order.meets(count, box)), None)


def died(orders: Sequence[DiesLater], operations: int) -> DiesLater | None:
    """The order, if any, by which a box that has run `operations` operations is gone."""
    return next((order for order in orders if operations >= order.after_operations), None)
