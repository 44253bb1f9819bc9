"""Boxes in memory, for tests and measurements; what they do and do not do: `backend`."""

from orchestrator.backends.fake.backend import FakeBackend, FakeWorld
from orchestrator.backends.fake.faults import (
    BadStart,
    CreateReplyLost,
    DestroyFails,
    DiesLater,
    Faults,
    Lies,
    LostReply,
    NeverStarts,
    ReplyLost,
    SlowExec,
    SlowStart,
)

__all__ = [
    "BadStart",
    "CreateReplyLost",
    "DestroyFails",
    "DiesLater",
    "FakeBackend",
    "FakeWorld",
    "Faults",
    "Lies",
    "LostReply",
    "NeverStarts",
    "ReplyLost",
    "SlowExec",
    "SlowStart",
]
