"""Reading what comes over the events channel: the director's frames strictly, a child's lines as the work of an enemy."""

import base64
import json
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.graders.tests.frames import MAX_LINES_BYTES, BadFrames, Report, read_frames

READY, FINISH = ["ready"], ["finish", 0]


def frame(lines: bytes, status: object = 0, **other: object) -> bytes:
    packed = base64.b64encode(zlib.compress(lines)).decode()
    value = {
        "child": 0,
        "status": status,
        "timed_out": False,
        "clean": True,
        "events": packed,
        "cut": False,
        "output": "",
    }
    return json.dumps({**value, **other}).encode() + b"\n"


def lines(*fields: object) -> bytes:
    return b"".join(json.dumps(field).encode() + b"\n" for field in fields)


def report(data: bytes, status: int = 0) -> Report:
    run = read_frames(b'{"begun": 1}\n' + frame(data, status) + b'{"done": 1}\n')
    assert run.complete
    return run.reports[0]


def test_an_honest_child() -> None:
    said = report(lines(READY, ["test", "t.py::a", "passed"], ["collect", "u.py"], FINISH))
    assert (said.ready, said.finished, said.malformed) == (True, 0, False)
    assert (said.outcomes, said.collect_errors) == ((("t.py::a", "passed"),), ("u.py",))


@pytest.mark.parametrize(
    "data",
    [
        b"hello\n",
        b"\xff\xfe\n",
        b"\n",
        lines(["test", "t.py::a", "passed"]),
        lines(READY, READY),
        lines(READY, ["test", "t.py::a", "victory"]),
        lines(READY, ["test", 1, "passed"]),
        lines(READY, ["test", "t.py::a"]),
        lines(READY, {"test": "t.py::a"}),
        lines(READY, FINISH, ["test", "t.py::a", "passed"]),
        lines(READY, FINISH, FINISH),
        lines(READY, ["finish", "0"]),
        lines(READY) + b'["test", "t.py::a", "pas',
        lines(READY) + b"[" * 100_000 + b"\n",
    ],
)
def test_a_line_that_the_reporter_never_writes(data: bytes) -> None:
    assert report(data).malformed


def test_a_line_cut_by_a_kill_is_no_forgery() -> None:
    killed = 9
    said = report(lines(READY) + b'["test", "t.py::a", "pas', status=killed)
    assert (said.exit_code, said.malformed, said.ending) == (-9, False, "was ended by SIGKILL")


def test_a_later_frame_of_a_child_counts() -> None:
    run = read_frames(b'{"begun": 1}\n' + frame(b"", 256) + frame(lines(READY), 0) + b'{"done": 1}\n')
    assert run.reports[0].exit_code == 0


def test_a_run_without_its_end_or_without_a_child_is_incomplete() -> None:
    assert not read_frames(b'{"begun": 1}\n' + frame(b"")).complete
    assert not read_frames(b'{"begun": 2}\n' + frame(b"") + b'{"done": 2}\n').complete
    assert read_frames(b"").begun is None


@pytest.mark.parametrize(
    "data",
    [
        b"hello\n",
        b'{"begun": 1}\n' + frame(b"", child=1),
        b'{"begun": 1}\n' + frame(b"", extra=1),
        b'{"begun": 1}\n' + frame(b"", status="0"),
        b'{"begun": 1}\n' + frame(b"", events="AAAA"),
        b'{"begun": 1}\n' + frame(b"", events="!"),
    ],
)
def test_a_frame_that_the_director_never_writes(data: bytes) -> None:
    with pytest.raises(BadFrames):
        read_frames(data)


def test_inflated_lines_are_capped() -> None:
    said = report(lines(READY) + b" " * (4 * MAX_LINES_BYTES))
    assert said.ready
    assert said.malformed


@given(st.binary(max_size=300))
def test_no_bytes_of_a_child_break_the_reader(data: bytes) -> None:
    said = report(data)
    assert not said.outcomes or said.ready


@given(
    st.lists(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=8), max_size=8)
)
def test_no_json_of_a_child_breaks_the_reader(fields: list[object]) -> None:
    said = report(lines(READY, *fields))
    assert all(isinstance(test, str) for test, _ in said.outcomes)
