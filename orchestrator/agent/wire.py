"""Operations to JSON and results back. Pure. What a box says is believed only as far as it fits what was asked for."""

import base64
import json
from typing import assert_never

from orchestrator.agent.fields import Fields
from orchestrator.errors import AgentProtocolError
from orchestrator.interfaces import Lease
from orchestrator.models import CallKey, Epoch, JsonValue, PendingCall
from orchestrator.operations import (
    MAX_READ_BYTES,
    Change,
    Delta,
    DeltaResult,
    Edit,
    EditResult,
    Entry,
    Exec,
    ExecResult,
    Failure,
    FailureCode,
    FreezeResult,
    Glob,
    GlobResult,
    List,
    ListResult,
    ManifestFile,
    ManifestSymlink,
    Match,
    Note,
    NoteResult,
    OperationResult,
    Output,
    PutResult,
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

Journaled = Exec | Session | Read | Write | Edit | List | Glob | Search | Note
"""Operations that run once per id. The others are the host's own."""

MAX_EVENT_BYTES = 4 * 1024 * 1024
MAX_REPLY_BYTES = 8 * 1024 * 1024
"""Two streams of 512 KiB and 4 MiB of events, in base64, fit."""
MAX_TEXT = 65_536 * 4
MAX_PATH = 128 * 256 * 4
"""The agent walks 128 levels deep, a name has at most 255 bytes, and a byte that is no UTF-8 is written as four characters."""
"""Characters of a path in a reply: a name that is not UTF-8 comes escaped, four characters a byte."""

KINDS: dict[str, type[Journaled]] = {
    "exec": Exec,
    "session": Session,
    "read": Read,
    "write": Write,
    "edit": Edit,
    "list": List,
    "glob": Glob,
    "search": Search,
    "note": Note,
}


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def encode_operation(op: Journaled) -> dict[str, JsonValue]:
    """The `op` of a request. Defaults are written out, so that a default changed later is not another body."""
    match op:
        case Exec():
            return _encode_exec(op)
        case Session():
            return _encode_session(op)
        case Read():
            return {"type": "read", "path": op.path, "offset_bytes": op.offset_bytes, "limit_bytes": op.limit_bytes}
        case Write():
            return {
                "type": "write",
                "path": op.path,
                "data_b64": _b64(op.data),
                "mode": op.mode,
                "parents": op.parents,
                "expected_sha256": op.expected_sha256,
            }
        case Edit():
            return {"type": "edit", "path": op.path, "old": op.old, "new": op.new, "expected_count": op.expected_count}
        case List():
            return {"type": "list", "path": op.path, "depth": op.depth, "limit": op.limit}
        case Glob():
            return {"type": "glob", "pattern": op.pattern, "path": op.path, "limit": op.limit}
        case Search():
            return {
                "type": "search",
                "pattern": op.pattern,
                "path": op.path,
                "glob": op.glob,
                "ignore_case": op.ignore_case,
                "limit": op.limit,
                "line_limit_bytes": op.line_limit_bytes,
            }
        case Note():
            return {"type": "note", "data_b64": _b64(op.data)}
    assert_never(op)


def _encode_exec(op: Exec) -> dict[str, JsonValue]:
    return {
        "type": "exec",
        "argv": list(op.argv),
        "cwd": op.cwd,
        "env": dict(op.env),
        "stdin_b64": _b64(op.stdin),
        "timeout_s": op.timeout_s,
        "output_limit_bytes": op.output_limit_bytes,
        "merge_stderr": op.merge_stderr,
        "principal": op.principal,
        "events": op.events,
    }


def _encode_session(op: Session) -> dict[str, JsonValue]:
    return {
        "type": "session",
        "name": op.name,
        "script": op.script,
        "tty": op.tty,
        "rows": op.rows,
        "columns": op.columns,
        "timeout_s": op.timeout_s,
        "output_limit_bytes": op.output_limit_bytes,
    }


def encode_request(op: Journaled, call: PendingCall | None) -> bytes:
    """Body of `PUT /v1/ops`. Raises ValueError for NaN and the like."""
    body: dict[str, JsonValue] = {"op": encode_operation(op)}
    if call is not None:
        body["call"] = {
            "key": call.key,
            "sequence": call.sequence,
            "tool": call.tool,
            "arguments": dict(call.arguments),
        }
    return json.dumps(body, allow_nan=False, separators=(",", ":")).encode("ascii")


def encode_delta(op: Delta) -> bytes:
    manifest: dict[str, JsonValue] = {}
    for path, entry in op.manifest.items():
        match entry:
            case ManifestFile():
                manifest[path] = ["file", entry.mode, entry.size_bytes, entry.sha256]
            case ManifestSymlink():
                manifest[path] = ["symlink", entry.target]
    body: dict[str, JsonValue] = {
        "root": op.root,
        "ignore": list(op.ignore),
        "max_entries": op.max_entries,
        "manifest": manifest,
    }
    return json.dumps(body, separators=(",", ":")).encode("ascii")


def decode_result(value: object, op: Journaled) -> OperationResult:
    """The result of `op`. Raises AgentProtocolError for anything that is not one."""
    f = Fields(value, "the result")
    kind = f.text("type", 16)
    if kind == "failure":
        result: OperationResult = decode_failure(f)
    elif KINDS.get(kind) is not type(op):
        raise AgentProtocolError("the result is of another kind than the operation")
    else:
        result = _decode_kind(f, op)
    f.finish()
    return result


def decode_failure(f: Fields) -> Failure:
    try:
        code = FailureCode(f.text("code", 32))
    except ValueError:
        raise f.wrong("code") from None
    return Failure(code=code, message=f.text("message"))


def _decode_kind(f: Fields, op: Journaled) -> OperationResult:
    match op:
        case Exec():
            return _decode_exec(f, op)
        case Session():
            return _decode_session(f, op)
        case Read():
            return ReadResult(
                data=f.blob("data_b64", op.limit_bytes),
                size_bytes=f.integer("size_bytes"),
                eof=f.flag("eof"),
                sha256=_maybe_hash(f, "sha256"),
            )
        case Write():
            return WriteResult(size_bytes=f.integer("size_bytes"), created=f.flag("created"), sha256=_hash(f, "sha256"))
        case Edit():
            return EditResult(
                replaced=f.integer("replaced"), size_bytes=f.integer("size_bytes"), line=f.integer("line", 1)
            )
        case List():
            entries = tuple(_decode_entry(item) for item in f.items("entries", op.limit))
            return ListResult(entries=entries, truncated=f.flag("truncated"))
        case Glob():
            paths = tuple(_path(item) for item in f.items("paths", op.limit))
            return GlobResult(paths=paths, truncated=f.flag("truncated"))
        case Search():
            matches = tuple(_decode_match(item) for item in f.items("matches", op.limit))
            return SearchResult(
                matches=matches, truncated=f.flag("truncated"), files_searched=f.integer("files_searched")
            )
        case Note():
            return NoteResult(data=f.blob("data_b64", MAX_READ_BYTES))
    assert_never(op)


def _decode_exec(f: Fields, op: Exec) -> ExecResult:
    limit = op.output_limit_bytes
    return ExecResult(
        exit_code=f.maybe_integer("exit_code"),
        signal=f.maybe_text("signal", 32),
        timed_out=f.flag("timed_out"),
        cancelled=f.flag("cancelled"),
        oom_killed=f.flag("oom_killed"),
        killed_all=f.flag("killed_all"),
        stdout=_decode_output(f.take("stdout"), limit),
        stderr=_decode_output(f.take("stderr"), limit),
        events=f.blob("events_b64", MAX_EVENT_BYTES),
        events_cut=f.flag("events_cut"),
    )


def _decode_session(f: Fields, op: Session) -> SessionResult:
    try:
        started, fate = Started(f.text("started", 16)), SessionFate(f.text("session", 16))
    except ValueError:
        raise f.wrong("started or session") from None
    return SessionResult(
        exit_code=f.maybe_integer("exit_code"),
        signal=f.maybe_text("signal", 32),
        timed_out=f.flag("timed_out"),
        cancelled=f.flag("cancelled"),
        oom_killed=f.flag("oom_killed"),
        killed_all=f.flag("killed_all"),
        started=started,
        fate=fate,
        output=_decode_output(f.take("output"), op.output_limit_bytes),
    )


def _decode_output(value: object, limit: int) -> Output:
    f = Fields(value, "a stream")
    output = Output(
        head=f.blob("head_b64", limit),
        tail=f.blob("tail_b64", limit),
        cut_bytes=f.integer("cut_bytes"),
        total_bytes=f.integer("total_bytes"),
    )
    f.finish()
    if len(output.head) + len(output.tail) + output.cut_bytes != output.total_bytes:
        raise AgentProtocolError("a stream's parts are not its whole")
    return output


def _decode_entry(value: object) -> Entry:
    f = Fields(value, "an entry")
    path, kind = f.text("path", MAX_PATH), f.text("kind", 16)
    if kind not in ("file", "dir", "symlink", "other"):
        raise f.wrong("kind")
    entry = Entry(path=path, kind=kind, size_bytes=f.integer("size_bytes"), mode=f.integer("mode"))  # type: ignore[arg-type]
    f.finish()
    return entry


def _decode_match(value: object) -> Match:
    f = Fields(value, "a match")
    match_ = Match(path=f.text("path", MAX_PATH), line=f.integer("line", 1), text=f.text("text", MAX_TEXT))
    f.finish()
    return match_


def decode_delta(value: object, op: Delta) -> DeltaResult:
    f = Fields(value, "the delta")
    changes = tuple(_decode_change(item) for item in f.items("changes", op.max_entries))
    result = DeltaResult(changes=changes, truncated=f.flag("truncated"), files=f.integer("files"))
    f.finish()
    return result


def _decode_change(value: object) -> Change:
    f = Fields(value, "a change")
    path, kind, type_ = f.text("path", MAX_PATH), f.text("kind", 16), f.text("type", 16)
    if kind not in ("added", "modified", "deleted") or type_ not in ("file", "symlink", "other"):
        raise f.wrong("kind or type")
    change = Change(
        path=path,
        kind=kind,  # type: ignore[arg-type]
        type=type_,  # type: ignore[arg-type]
        mode=f.integer("mode"),
        size_bytes=f.integer("size_bytes"),
        sha256=_maybe_hash(f, "sha256"),
    )
    f.finish()
    return change


def decode_put(value: object) -> PutResult:
    f = Fields(value, "the answer to put")
    result = PutResult(files=f.integer("files"), size_bytes=f.integer("bytes"))
    f.finish()
    return result


def decode_freeze(value: object) -> FreezeResult:
    f = Fields(value, "the answer to freeze")
    result = FreezeResult(killed=f.integer("killed"))
    f.finish()
    return result


def decode_lease(value: object, *, max_calls: int = 10_000) -> Lease:
    f = Fields(value, "the lease")
    lease = Lease(
        boot_id=f.text("boot_id", 64),
        epoch=Epoch(f.integer("epoch")),
        frozen=f.flag("frozen"),
        pending=tuple(_decode_pending(item) for item in f.items("pending", max_calls)),
    )
    f.finish()
    return lease


def _decode_pending(value: object) -> PendingCall:
    f = Fields(value, "a pending call")
    call = PendingCall(
        key=CallKey(f.text("key", 64)),
        sequence=f.integer("sequence"),
        tool=f.text("tool", 256),
        arguments=f.mapping("arguments"),  # type: ignore[arg-type]
        operations=f.integer("operations"),
    )
    f.finish()
    return call


def _path(value: object) -> str:
    if not isinstance(value, str) or len(value) > MAX_PATH:
        raise AgentProtocolError("a path is not what it must be")
    return value


def _hash(f: Fields, name: str) -> str:
    value = f.text(name, 64)
    if len(value) != 64 or not set(value) <= set("0123456789abcdef"):
        raise f.wrong(name)
    return value


def _maybe_hash(f: Fields, name: str) -> str | None:
    value = f.maybe_text(name, 64)
    if value is None:
        return None
    if len(value) != 64 or not set(value) <= set("0123456789abcdef"):
        raise f.wrong(name)
    return value
