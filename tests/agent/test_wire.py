"""The codec alone: what is sent, and that nothing is believed which does not fit what was asked for."""

import base64
import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.agent import wire
from orchestrator.agent.config import AgentConfig
from orchestrator.agent.fields import parse_json
from orchestrator.agent.health import decode_health
from orchestrator.errors import AgentProtocolError, Misconfigured
from orchestrator.models import CallKey, PendingCall
from orchestrator.operations import (
    Delta,
    Edit,
    EditResult,
    Entry,
    Exec,
    ExecResult,
    Failure,
    FailureCode,
    Glob,
    GlobResult,
    List,
    ListResult,
    Manifest,
    ManifestFile,
    ManifestSymlink,
    Match,
    Note,
    NoteResult,
    OperationResult,
    Output,
    Read,
    ReadResult,
    Search,
    SearchResult,
    Session,
    SessionFate,
    SessionResult,
    Started,
    Write,
    WriteResult,
)

HASH = "a" * 64


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def stream(head: bytes = b"", tail: bytes = b"", cut: int = 0) -> dict[str, object]:
    total = len(head) + len(tail) + cut
    return {"head_b64": b64(head), "tail_b64": b64(tail), "cut_bytes": cut, "total_bytes": total}


EXEC = Exec(argv=("a",), timeout_s=1, output_limit_bytes=100)
EXEC_JSON: dict[str, object] = {
    "type": "exec", "exit_code": None, "signal": "SIGKILL", "timed_out": True, "cancelled": False, "oom_killed": False,
    "killed_all": True, "stdout": stream(b"head", b"tail", 7), "stderr": stream(), "events_b64": b64(b"e"), "events_cut": False,
}  # fmt: skip
EXEC_RESULT = ExecResult(
    exit_code=None,
    signal="SIGKILL",
    timed_out=True,
    killed_all=True,
    stdout=Output(head=b"head", tail=b"tail", cut_bytes=7, total_bytes=15),
    events=b"e",
)
SESSION = Session(name="main", script="a", timeout_s=1, output_limit_bytes=100)
SESSION_JSON: dict[str, object] = {
    "type": "session", "exit_code": 3, "signal": None, "timed_out": False, "cancelled": False, "oom_killed": True,
    "killed_all": False, "started": "again", "session": "ended", "output": stream(b"head", b"tail", 7),
}  # fmt: skip
SESSION_RESULT = SessionResult(
    exit_code=3,
    oom_killed=True,
    started=Started.AGAIN,
    fate=SessionFate.ENDED,
    output=Output(head=b"head", tail=b"tail", cut_bytes=7, total_bytes=15),
)
PAIRS: list[tuple[wire.Journaled, dict[str, object], OperationResult]] = [
    (EXEC, EXEC_JSON, EXEC_RESULT),
    (SESSION, SESSION_JSON, SESSION_RESULT),
    (
        Read(path="p"),
        {"type": "read", "data_b64": b64(b"x"), "size_bytes": 1, "eof": True, "sha256": None},
        ReadResult(data=b"x", size_bytes=1, eof=True, sha256=None),
    ),
    (
        Write(path="p", data=b""),
        {"type": "write", "size_bytes": 1, "created": True, "sha256": HASH},
        WriteResult(size_bytes=1, created=True, sha256=HASH),
    ),
    (
        Edit(path="p", old="a", new="b"),
        {"type": "edit", "replaced": 1, "size_bytes": 2, "line": 3},
        EditResult(replaced=1, size_bytes=2, line=3),
    ),
    (
        List(),
        {"type": "list", "entries": [{"path": "a", "kind": "dir", "size_bytes": 0, "mode": 493}], "truncated": False},
        ListResult(entries=(Entry(path="a", kind="dir", size_bytes=0, mode=493),), truncated=False),
    ),
    (Glob(pattern="*"), {"type": "glob", "paths": ["a"], "truncated": True}, GlobResult(paths=("a",), truncated=True)),
    (
        Search(pattern="x"),
        {"type": "search", "matches": [{"path": "a", "line": 1, "text": "x"}], "truncated": False, "files_searched": 2},
        SearchResult(matches=(Match(path="a", line=1, text="x"),), truncated=False, files_searched=2),
    ),
    (Note(data=b""), {"type": "note", "data_b64": b64(b"n")}, NoteResult(data=b"n")),
    (
        Note(data=b""),
        {"type": "failure", "code": "io", "message": "m"},
        Failure(code=FailureCode.IO, message="m"),
    ),
]
IDS = [f"{type(op).__name__}-{value['type']}" for op, value, _ in PAIRS]


@pytest.mark.parametrize(("op", "value", "expected"), PAIRS, ids=IDS)
def test_results_come_out_as_values(op: wire.Journaled, value: dict[str, object], expected: OperationResult) -> None:
    assert wire.decode_result(value, op) == expected


@pytest.mark.parametrize(("op", "value", "expected"), PAIRS, ids=IDS)
def test_a_field_too_few_too_many_or_of_another_type_is_refused(
    op: wire.Journaled, value: dict[str, object], expected: OperationResult
) -> None:
    assert expected
    mutants: list[object] = [{**value, "more": 1}, [value], None, "x"]
    for name in value:
        mutants.append({key: item for key, item in value.items() if key != name})
        mutants.extend({**value, name: wrong} for wrong in ({"a": 1}, -1, "é" * 9_000_000 if name == "path" else 1.5))
    for mutant in mutants:
        with pytest.raises(AgentProtocolError):
            wire.decode_result(mutant, op)


@pytest.mark.parametrize(
    "value",
    [
        {**EXEC_JSON, "stdout": stream(b"x" * 101)},
        {**EXEC_JSON, "stdout": {**stream(b"x"), "total_bytes": 9}},
        {**EXEC_JSON, "exit_code": True},
        {**EXEC_JSON, "exit_code": 1 << 70},
        {**EXEC_JSON, "events_b64": "!!!!"},
        {**EXEC_JSON, "type": "read"},
        {"type": "failure", "code": "no_such_code", "message": ""},
        {"type": "failure", "code": "io", "message": "m" * 10_000},
    ],
    ids=["over the limit", "sum", "bool for int", "huge", "no base64", "other kind", "unknown code", "long message"],
)
def test_what_does_not_fit_the_request_is_refused(value: dict[str, object]) -> None:
    with pytest.raises(AgentProtocolError):
        wire.decode_result(value, EXEC)


def test_longer_lists_than_asked_for_are_refused() -> None:
    for op, value in ((Glob(pattern="*", limit=1), {"type": "glob", "paths": ["a", "b"], "truncated": False}),):
        with pytest.raises(AgentProtocolError):
            wire.decode_result(value, op)
    with pytest.raises(AgentProtocolError):
        wire.decode_delta(
            {"changes": [{}] * 3, "truncated": False, "files": 1}, Delta(root=".", manifest={}, max_entries=2)
        )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(value=JSON, index=st.integers(0, len(PAIRS) - 1), mutate=st.booleans(), key=st.integers(0, 11))
def test_any_json_is_a_result_or_refused(value: object, index: int, mutate: bool, key: int) -> None:
    op, good, _ = PAIRS[index]
    given_ = {**good, list(good)[key % len(good)]: value} if mutate else value
    with contextlib.suppress(AgentProtocolError):
        wire.decode_result(given_, op)


@given(st.binary())
def test_any_bytes_are_json_or_refused(raw: bytes) -> None:
    with contextlib.suppress(AgentProtocolError):
        parse_json(raw)


@pytest.mark.parametrize("raw", [b"NaN", b"[Infinity]", b"[" * 100_000, b"\xff", b'{"a":' + b"9" * 5000 + b"}"])
def test_json_that_python_alone_would_take_is_refused(raw: bytes) -> None:
    with pytest.raises(AgentProtocolError):
        parse_json(raw)


def test_requests_name_every_field() -> None:
    call = PendingCall(key=CallKey("k"), sequence=1, tool="t", arguments={"ä": [1, None]}, operations=0)
    body = json.loads(
        wire.encode_request(Exec(argv=("a", "\ud800"), timeout_s=2, stdin=b"x", principal="trusted"), call)
    )
    assert body["op"] == {
        "type": "exec", "argv": ["a", "\ud800"], "cwd": ".", "env": {}, "stdin_b64": b64(b"x"), "timeout_s": 2,
        "output_limit_bytes": 65536, "merge_stderr": True, "principal": "trusted", "events": False,
    }  # fmt: skip
    assert body["call"] == {"key": "k", "sequence": 1, "tool": "t", "arguments": {"ä": [1, None]}}
    assert "call" not in json.loads(wire.encode_request(Note(data=b""), None))
    with pytest.raises(ValueError, match="not JSON compliant"):
        wire.encode_request(Exec(argv=("a",), timeout_s=float("nan")), None)


def test_manifests_are_lists_by_path() -> None:
    manifest: Manifest = {"a": ManifestFile(mode=0o644, size_bytes=1, sha256=HASH), "b": ManifestSymlink(target="a")}
    assert json.loads(wire.encode_delta(Delta(root="/w", manifest=manifest))) == {
        "root": "/w",
        "ignore": [".git"],
        "max_entries": 20_000,
        "manifest": {"a": ["file", 0o644, 1, HASH], "b": ["symlink", "a"]},
    }


def test_health_is_closed_too() -> None:
    good = {
        "protocol": 1, "boot_id": "b", "rollout": None, "epoch": 0, "frozen": False, "running": 0, "uptime_s": 1, "mode": "split",
        "kernel": {"version": "Linux version 6", "log": ""},
        "posture": {"agent_uid": 0, "command_uid": 1, "capabilities": "e0", "no_new_privs": True, "seccomp": 2, "pids_limit": 9,
                    "journal_bytes": 0, "gaps": ["x"]},
    }  # fmt: skip
    assert decode_health(good).posture.gaps == ("x",)
    for bad in ({**good, "mode": "other"}, {**good, "posture": {**good["posture"], "gaps": [1]}}, {**good, "more": 1}):  # type: ignore[dict-item]
        with pytest.raises(AgentProtocolError):
            decode_health(bad)


def test_configurations_that_the_agent_would_refuse_are_refused_here() -> None:
    assert json.loads(AgentConfig(uid_base=5, env={"A": "b"}).to_json())["env"] == {"A": "b"}
    assert AgentConfig(uid_base=0, mode="one_uid")
    for wrong in ({"uid_base": 0}, {"uid_base": 5, "uid_count": 0}, {"uid_base": 5, "journal_limit_bytes": 1}):
        with pytest.raises(Misconfigured):
            AgentConfig(**wrong)  # type: ignore[arg-type]
