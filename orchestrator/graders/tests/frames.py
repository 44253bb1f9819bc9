"""What came back over the events channel, read with a closed schema: the director's frames, and in each the lines of a hostile child."""

import base64
import binascii
import json
import os
import signal
import zlib
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, ValidationError

from orchestrator.graders.tests.runner.child import OUTCOMES

MAX_LINES_BYTES = 8 * 1024 * 1024
"""Of one child, inflated; twice what the director keeps."""


class BadFrames(ValueError):
    """What the director would never write."""


class _Frame(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    child: int
    status: int | None
    timed_out: bool
    clean: bool
    events: str
    cut: bool
    output: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What became of one child. `exit_code` is negative for a signal and None if it never ran; `finished` is what pytest said at its end.

    `outcomes` are in the order of arrival, as (id, outcome). `setup_errno`: it could not be set up (0: for no reason of the system's).
    """

    child: int
    exit_code: int | None
    timed_out: bool = False
    clean: bool = True
    cut: bool = False
    ready: bool = False
    setup_errno: int | None = None
    finished: int | None = None
    outcomes: tuple[tuple[str, str], ...] = ()
    collect_errors: tuple[str, ...] = ()
    malformed: bool = False
    output: bytes = b""

    @property
    def ending(self) -> str:
        """How its process ended, in words."""
        if self.timed_out:
            return "ran out of time"
        if self.exit_code is None:
            return "did not run"
        if self.exit_code < 0:
            return f"was ended by {signal.Signals(-self.exit_code).name}"
        return f"exited with {self.exit_code}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """All frames of one run. `complete`: the director reached its end. `reports` holds each child's last one, by number."""

    begun: int | None
    complete: bool
    reports: dict[int, Report]


def read_frames(data: bytes) -> Run:
    """Raises BadFrames."""
    begun, complete, reports = None, False, {}
    for line in data.split(b"\n")[:-1]:
        value = _value(line)
        match value:
            case {"begun": int(count)}:
                begun = count
            case {"done": int()}:
                complete = True
            case _:
                report = _report(value)
                reports[report.child] = report
    if begun is not None and any(not 0 <= number < begun for number in reports):
        raise BadFrames("a frame of a child that is not in the plan")
    return Run(begun=begun, complete=complete and len(reports) == begun, reports=reports)


def _value(line: bytes) -> object:
    try:
        return json.loads(line)
    except ValueError:
        raise BadFrames("a frame that is not JSON") from None


def _report(value: object) -> Report:
    try:
        frame = _Frame.model_validate(value)
        raw = base64.b64decode(frame.events, validate=True)
        output = base64.b64decode(frame.output, validate=True)
        lines = zlib.decompressobj().decompress(raw, MAX_LINES_BYTES) if raw else b""
    except (ValidationError, binascii.Error, zlib.error) as error:
        raise BadFrames(f"a frame that does not fit: {type(error).__name__}") from None
    said = _Said()
    said.take(lines, ended=frame.status is not None and os.WIFEXITED(frame.status))
    return Report(
        child=frame.child,
        exit_code=None if frame.status is None else os.waitstatus_to_exitcode(frame.status),
        timed_out=frame.timed_out,
        clean=frame.clean,
        cut=frame.cut,
        ready=said.ready,
        setup_errno=said.setup_errno,
        finished=said.finished,
        outcomes=tuple(said.outcomes),
        collect_errors=tuple(said.collect_errors),
        malformed=said.malformed,
        output=output,
    )


class _Said:
    """The lines of one child."""

    def __init__(self) -> None:
        self.ready = False
        self.setup_errno: int | None = None
        self.finished: int | None = None
        self.outcomes: list[tuple[str, str]] = []
        self.collect_errors: list[str] = []
        self.malformed = False

    def take(self, data: bytes, *, ended: bool) -> None:
        """A last line without its end is a process cut short, and malformed only where it exited by itself."""
        *lines, rest = data.split(b"\n")
        self.malformed = bool(rest) and ended
        for fields in map(_fields, lines):
            if not self._take(fields):
                self.malformed = True

    def _take(self, fields: object) -> bool:
        match fields:
            case ["setup", int(number)] if not self.ready:
                self.setup_errno = number
            case ["ready"] if not self.ready:
                self.ready = True
            case ["test", str(test_id), str(outcome)] if self._speaks() and outcome in OUTCOMES:
                self.outcomes.append((test_id, outcome))
            case ["collect", str(node_id)] if self._speaks():
                self.collect_errors.append(node_id)
            case ["finish", int(code)] if self._speaks():
                self.finished = code
            case _:
                return False
        return True

    def _speaks(self) -> bool:
        return self.ready and self.finished is None


def _fields(line: bytes) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
