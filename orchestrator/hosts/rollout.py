"""One rollout in a host's memory: its lease's state, its box, and whoever waits for it."""

import asyncio
from collections import deque
from dataclasses import replace
from typing import TypeVar

from orchestrator.errors import RolloutClosed, StillRunning, TiltyardError
from orchestrator.hosts.admission import TicketId
from orchestrator.hosts.calls import Entry
from orchestrator.hosts.events import OVER, LeaseState, Phase, RecordRead
from orchestrator.interfaces import Sandbox, Template
from orchestrator.models import Binding, CallKey, Evidence, Reward, RolloutKey, RolloutState, Task, ToolReply

T = TypeVar("T")

NOT_YET = frozenset({Phase.UNOPENED, Phase.OPENING, Phase.ADOPTING})


class Rollout:
    """Mutable shell around a `LeaseState`. Only the host's event handling changes `state`."""

    __slots__ = (
        "_kept",
        "_kept_bytes",
        "acknowledging",
        "adopted",
        "binding",
        "entries",
        "evidence",
        "final_answer",
        "finished",
        "graded",
        "interest_at",
        "key",
        "leaving",
        "opened",
        "opening",
        "quiet",
        "reattaching",
        "removal",
        "rested",
        "sandbox",
        "state",
        "task",
        "template",
        "ticket",
        "touched",
        "unacknowledged",
        "waiters",
        "why",
    )

    def __init__(self, *, binding: Binding, task: Task, state: LeaseState) -> None:
        self.key: RolloutKey = binding.rollout
        self.binding = binding
        self.task = task
        self.state = state
        self.sandbox: Sandbox | None = None
        self.template: Template | None = None
        self.ticket: TicketId | None = None
        """The slot: held from admission until the last box of this rollout is gone."""
        self.entries: dict[CallKey, Entry] = {}
        """Calls under way, and finished ones whose text is still held."""
        self.leaving: list[Entry] = []
        """Calls that end with the rollout; they are told when its end is stored."""
        self.why: TiltyardError | None = None
        self.finished: set[CallKey] = set()
        """Every call whose reply is in the record."""
        self.unacknowledged: list[CallKey] = []
        self.acknowledging: asyncio.Task[None] | None = None
        self.opening: asyncio.Task[None] | None = None
        self.opened: asyncio.Future[None] | None = None
        self.adopted: asyncio.Future[None] | None = None
        self.graded: asyncio.Future[Reward] | None = None
        self.quiet = asyncio.Event()
        """No call is under way."""
        self.rested = asyncio.Event()
        """Nor anything else."""
        self.reattaching = asyncio.Lock()
        self.removal: asyncio.Task[None] | None = None
        """Of the last box that used the slot."""
        self.final_answer = ""
        self.evidence: Evidence | None = None
        self.waiters = 0
        self.interest_at = state.active_at
        self.touched = state.active_at
        _set(self.quiet, not state.queue)
        _set(self.rested, not state.queue and not state.busy)
        self._kept: deque[Entry] = deque()
        self._kept_bytes = 0

    def keep(self, entry: Entry, reply: ToolReply, limit_bytes: int) -> None:
        """Remember a recorded reply; the oldest texts go when they exceed `limit_bytes` (the record still has them)."""
        self.finished.add(entry.request.key)
        self._kept.append(entry)
        self._kept_bytes += len(reply.text)
        while self._kept_bytes > limit_bytes and len(self._kept) > 1:
            oldest = self._kept.popleft()
            self._kept_bytes -= len(oldest.done.result().text)
            self.entries.pop(oldest.request.key, None)

    def restore(self, read: RecordRead, *, graded_so_far: bool) -> None:
        """Set where numbering and budget stand, of a rollout that has no box. With evidence stored it takes no calls."""
        self.state = replace(
            self.state,
            phase=Phase.GATHERING if graded_so_far else Phase.UNOPENED,
            next_sequence=read.next_sequence,
            charged=read.charged,
        )

    def settle(self, error: TiltyardError | None) -> None:
        """Tell those who wait what the state has come to; `error` is for those whose wish cannot come true any more.

        The end is told only once it is stored (or could not be): what is answered after a restart must not differ.
        """
        self.why = error or self.why
        phase = self.state.phase
        _set(self.quiet, not self.state.queue)
        _set(self.rested, not self.state.queue and not self.state.busy)
        if phase in OVER or phase is Phase.CLOSING:
            done(self.adopted)  # who waited for that looks again
            if not self.state.busy:
                self.fail_waiting(self.why or over(self.state))
            return
        if phase not in NOT_YET:
            done(self.opened)
        if phase is not Phase.ADOPTING:
            done(self.adopted)

    def fail_waiting(self, error: TiltyardError) -> None:
        """Whoever waits for adoption, the box, the grade or a call that did not live to its end is told."""
        fail(self.adopted, error)
        fail(self.opened, error)
        fail(self.graded, error)
        for entry in self.leaving:
            entry.fail(error)
        self.leaving.clear()


def _set(event: asyncio.Event, value: bool) -> None:
    if value:
        event.set()
    else:
        event.clear()


def over(state: LeaseState) -> TiltyardError:
    """What is said to whoever comes too late."""
    if state.phase is Phase.DROPPED:
        return StillRunning("this rollout is being set up anew; retry")
    if state.phase in (Phase.CLOSING, Phase.CLOSED):
        return ended(state.end, state.reason)
    return RolloutClosed("this rollout is being graded: no tool call runs in it any more")


def ended(end: RolloutState | None, reason: str) -> RolloutClosed:
    why = f": {reason}" if reason else ""
    return RolloutClosed(f"this rollout is over ({end}{why}); an id that was used never starts again")


def watched() -> "asyncio.Future[T]":
    """A future whose failure may go unheard: who gave up waiting has given up."""
    future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    future.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
    return future


def done(future: asyncio.Future[None] | None) -> None:
    if future is not None and not future.done():
        future.set_result(None)


def fail(future: "asyncio.Future[T] | None", error: BaseException) -> None:
    if future is not None and not future.done():
        future.set_exception(error)
