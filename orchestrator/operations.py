"""Operations that the in-box agent runs, and their results: the closed vocabulary between hosts and boxes.

Wire form and exact semantics: docs/agent-protocol.md. Journaled operations run once per id; `Put`, `Get`, `Delta` and `Freeze` are
the host's own and may be run again at will.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

MAX_READ_BYTES = 1024 * 1024
"""Largest slice one `Read` returns; results that tools see stay within 1 MiB (D6)."""

Principal = int | Literal["trusted"]
"""Uid of the box's block, by index: 0 runs the agent's commands. "trusted" is the in-box agent's own uid (grader boxes only)."""


class FailureCode(StrEnum):
    """Why an operation was refused; each is something the model (or a task) did."""

    NOT_FOUND = "not_found"
    NOT_A_DIRECTORY = "not_a_directory"
    IS_DIRECTORY = "is_directory"
    NOT_REGULAR = "not_regular"
    SYMLINK = "symlink"
    BAD_PATH = "bad_path"
    OUTSIDE = "outside"
    PERMISSION = "permission"
    TOO_LARGE = "too_large"
    EXISTS = "exists"
    HASH_MISMATCH = "hash_mismatch"
    NO_MATCH = "no_match"
    MANY_MATCHES = "many_matches"
    BAD_PATTERN = "bad_pattern"
    NO_SPACE = "no_space"
    NOT_TEXT = "not_text"
    CANNOT_START = "cannot_start"
    IO = "io"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exec:
    """Run a command; the result comes when its own process ends, not when its pipes close."""

    argv: tuple[str, ...]
    timeout_s: float
    cwd: str = "."
    env: Mapping[str, str] = field(default_factory=dict)
    stdin: bytes = b""
    output_limit_bytes: int = 65_536
    merge_stderr: bool = True
    principal: Principal = 0
    events: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """Run `script` in the named shell of the box (`[0-9a-zA-Z_-]{1,32}`), which is started at the first use of its name.

    `tty`, `rows` and `columns` hold from that first use on.
    """

    name: str
    script: str
    timeout_s: float
    tty: bool = False
    rows: int = 24
    columns: int = 80
    output_limit_bytes: int = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    path: str
    offset_bytes: int = 0
    limit_bytes: int = MAX_READ_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """Atomic; `expected_sha256` is a hash the file must have, or "absent"; `mode=None` keeps it (0o644 when new)."""

    path: str
    data: bytes
    mode: int | None = None
    parents: bool = True
    expected_sha256: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """Replace `old` by `new` exactly; `expected_count=None` replaces all."""

    path: str
    old: str
    new: str
    expected_count: int | None = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class List:
    path: str = "."
    depth: int = 1
    limit: int = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Glob:
    pattern: str
    path: str = "."
    limit: int = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """`pattern` is an RE2 expression."""

    pattern: str
    path: str = "."
    glob: str | None = None
    ignore_case: bool = False
    limit: int = 200
    line_limit_bytes: int = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """Remember a value once: the first data under an id is what every replay gets."""

    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Put:
    """Unpack `tar` (regular files and directories only) below `path`; "trusted" writes only below the agent's trusted folder."""

    path: str
    tar: bytes
    principal: Principal = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Get:
    """The named regular files below `root`, as a tar of at most `max_bytes`."""

    root: str
    paths: tuple[str, ...]
    max_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestFile:
    mode: int
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestSymlink:
    target: str


Manifest = Mapping[str, ManifestFile | ManifestSymlink]
"""Relative path -> what sealing put there. Directories are not listed; `.git` is not part of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """Content difference between `root` and `manifest`, by full hash."""

    root: str
    manifest: Manifest
    ignore: tuple[str, ...] = (".git",)
    max_entries: int = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Freeze:
    """Kill every command of the box and refuse new operations."""


Operation = Exec | Session | Read | Write | Edit | List | Glob | Search | Note | Put | Get | Delta | Freeze


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """Kept head and tail of a stream; `cut_bytes` lie between them. Never cut inside a UTF-8 sequence."""

    head: bytes = b""
    tail: bytes = b""
    cut_bytes: int = 0
    total_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecResult:
    """`exit_code` is None when a signal ended the process; `signal` names it. `killed_all`: the box's other commands died with it."""

    exit_code: int | None
    signal: str | None = None
    timed_out: bool = False
    cancelled: bool = False
    oom_killed: bool = False
    killed_all: bool = False
    stdout: Output = Output()
    stderr: Output = Output()
    events: bytes = b""
    events_cut: bool = False


class Started(StrEnum):
    """Whether a call began in a fresh shell."""

    NO = "no"
    FIRST = "first"
    AGAIN = "again"
    """An earlier shell of that name is gone, with what it held."""


class SessionFate(StrEnum):
    """What became of the shell by the end of the call."""

    KEPT = "kept"
    RESTARTED = "restarted"
    """It had to be killed; a fresh one has the working directory, exported variables and (bash) functions of before the call."""
    LOST = "lost"
    """It had to be killed; the next call begins in a fresh one."""
    ENDED = "ended"
    """By the script's or somebody else's doing; the next call begins in a fresh one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionResult:
    """`exit_code` is the script's, or where the session ended the shell's; None when there is neither. `signal`: what ended the shell."""

    exit_code: int | None
    signal: str | None = None
    timed_out: bool = False
    cancelled: bool = False
    oom_killed: bool = False
    killed_all: bool = False
    started: Started = Started.NO
    fate: SessionFate = SessionFate.KEPT
    output: Output = Output()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadResult:
    data: bytes
    size_bytes: int
    eof: bool
    sha256: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteResult:
    size_bytes: int
    created: bool
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EditResult:
    replaced: int
    size_bytes: int
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    path: str
    kind: Literal["file", "dir", "symlink", "other"]
    size_bytes: int
    mode: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ListResult:
    entries: tuple[Entry, ...]
    truncated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class GlobResult:
    paths: tuple[str, ...]
    truncated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    path: str
    line: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    matches: tuple[Match, ...]
    truncated: bool
    files_searched: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NoteResult:
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class PutResult:
    files: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GetResult:
    tar: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One path that differs from the manifest. `type` is what is there now; for "deleted" what was there."""

    path: str
    kind: Literal["added", "modified", "deleted"]
    type: Literal["file", "symlink", "other"]
    mode: int = 0
    size_bytes: int = 0
    sha256: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaResult:
    changes: Sequence[Change]
    truncated: bool
    files: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FreezeResult:
    killed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """The operation was refused. `message` is deterministic, so that a replay has the same bytes."""

    code: FailureCode
    message: str


OperationResult = (
    ExecResult
    | SessionResult
    | ReadResult
    | WriteResult
    | EditResult
    | ListResult
    | GlobResult
    | SearchResult
    | NoteResult
    | PutResult
    | GetResult
    | DeltaResult
    | FreezeResult
    | Failure
)
