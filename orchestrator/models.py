"""Values that travel between the parts: ids, tasks, rollouts, calls, evidence, rewards. Frozen; no behaviour beyond naming."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar, NewType

JobId = NewType("JobId", str)
TraceId = NewType("TraceId", str)
TaskId = NewType("TaskId", str)
HostId = NewType("HostId", str)
SandboxId = NewType("SandboxId", str)
Epoch = NewType("Epoch", int)
CallKey = NewType("CallKey", str)

JsonValue = None | bool | int | float | str | list["JsonValue"] | dict[str, "JsonValue"]
Arguments = Mapping[str, JsonValue]


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class RolloutKey:
    """A rollout is known by its job and the trainer's trace_id."""

    job: JobId
    trace_id: TraceId

    def __str__(self) -> str:
        return f"{self.job}/{self.trace_id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class OpId:
    """Operation `number` (from 0) of a call."""

    call: CallKey
    number: int

    def __str__(self) -> str:
        return f"{self.call}/{self.number}"


def canonical_json(value: object) -> str:
    """One text per JSON value: sorted keys, no spaces, NaN refused (ValueError)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def call_key(rollout: RolloutKey, call_id: str, tool: str, arguments_text: str) -> CallKey:
    """The identity under which a retried call is the same call (D6): 32 hex digits."""
    parts = (rollout.job, rollout.trace_id, call_id, tool, arguments_text)
    digest = hashlib.sha256("\x00".join(f"{len(part)}:{part}" for part in parts).encode("utf-8", "surrogatepass"))
    return CallKey(digest.hexdigest()[:32])


class Outcome(StrEnum):
    """What a grade ended as (D7). Only the first two and the last carry a score; `infra_error` never does."""

    SCORED = "scored"
    AGENT_FAULT = "agent_fault"
    INFRA_ERROR = "infra_error"
    INTEGRITY_VIOLATION = "integrity_violation"


class RolloutState(StrEnum):
    """Where a binding stands. Every state but OPEN is final for tool calls; an id once seen never opens a second box."""

    OPEN = "open"
    GRADING = "grading"  # evidence is stored, the box is ended
    GRADED = "graded"
    EXPIRED = "expired"
    RELEASED = "released"
    LOST = "lost"


class BoxEnd(StrEnum):
    """How the agent's box stood when evidence was gathered."""

    ALIVE = "alive"
    NEVER_OPENED = "never_opened"
    DIED_OF_MEMORY = "died_of_memory"
    AGENT_KILLED = "agent_killed"
    OVER_DISK = "over_disk"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a box may use. Memory equals swap limit; disk is the copy-on-write upper with /tmp and home."""

    memory_mib: int = 1024
    cpus: float = 1.0
    pids: int = 256
    disk_mib: int = 1024
    inodes: int = 200_000
    open_files: int = 4096
    command_timeout_s: float = 120.0
    output_bytes: int = 32_768


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """Which hosts a box may reach, through a proxy. Empty: none, no network at all. Names as `orchestrator.egress.names` makes them:
    lower-case ASCII, sorted; `*.example.org` stands for every name below example.org, not for itself."""

    allow: tuple[str, ...] = ()
    ports: tuple[int, ...] = (80, 443)
    """TCP ports of these hosts: plain HTTP to any but 443, tunnels (CONNECT) to any but 80."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HiddenFile:
    """A test file that appears only in the grading box. `path` is relative to the repository."""

    path: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TestsSpec:
    """What the `tests` grader runs. Ids are pytest node ids relative to the repository."""

    __test__: ClassVar[bool] = False  # pytest would take the name for a test class

    hidden: tuple[HiddenFile, ...]
    fail_to_pass: tuple[str, ...]
    pass_to_pass: tuple[str, ...] = ()
    command: tuple[str, ...] = ("pytest",)
    timeout_s: float = 300.0
    rebuild: str | None = None
    import_roots: tuple[str, ...] = (".",)
    mutants: int = 1
    """Must-fail siblings per hidden test file (k in measured.md)."""
    written_mutants: tuple[HiddenFile, ...] = ()
    """Must-fail versions the task's author wrote, for files whose literals cannot be altered."""


class AnswerSource(StrEnum):
    """Where `file_f1` takes the answer from; one per task."""

    FINAL_ANSWER = "final_answer"
    SUBMITTED = "submitted"
    EDITED_FILES = "edited_files"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileF1Spec:
    source: AnswerSource
    gold: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardRange:
    """`low` is the floor: what a failure or a violation earns. `high` is the top."""

    low: float = 0.0
    high: float = 1.0


DEFAULT_WORKDIR = "/workspace"
"""Where a box has its repository, unless the task takes one that its image has elsewhere."""
IMAGE_WORKSPACE = "image:"
IMAGE_WORKSPACE_FORM = re.compile(
    r"image:(?!/(?:proc|sys|dev|run|tmp|home/agent)(?:/|$))(?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9._+@-]{1,100}){1,20}"
)
"""An absolute path in normal form, in none of the places that a box mounts itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One problem. `image` names a box image; `setup` runs once, as root, before the template is sealed.

    `workspace` "": `repo` at `commit`, at /workspace. "image:/path": the repository that the image has at that path, there; `repo` is then
    empty, and an empty `commit` is what the image has checked out.
    """

    id: TaskId
    repo: str
    commit: str
    image: str
    prompt: str
    grader: str
    setup: tuple[str, ...] = ()
    gold_patch: str | None = None
    tests: TestsSpec | None = None
    file_f1: FileF1Spec | None = None
    reward: RewardRange = RewardRange()
    limits: Limits = Limits()
    tools: tuple[str, ...] = ("shell", "read_file", "write_file", "edit_file", "list_dir", "search", "submit")
    max_calls: int = 100
    split: str = "train"
    network: Network = Network()
    """Of the rollout's box. Grading boxes never have any."""
    setup_network: Network = Network()
    """Of the set-up commands."""
    history: str = "full"
    """"full": the commits up to `commit`; "orphan": one commit."""
    workspace: str = ""

    @property
    def workdir(self) -> str:
        """The absolute path of the repository in the box."""
        return self.workspace.removeprefix(IMAGE_WORKSPACE) or DEFAULT_WORKDIR


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a URL or token selects (D10)."""

    id: JobId
    tasks: Mapping[TaskId, Task]
    share: float = 1.0
    run_name: str = ""
    samples_per_task: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRequest:
    """One tool call, as the host sees it. Without a `call_id` nothing is merged: `key` is then unique."""

    rollout: RolloutKey
    key: CallKey
    call_id: str
    tool: str
    arguments_text: str
    """JSON as the trainer sent it (canonical where it parses); what does not parse is the model's mistake."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolReply:
    """Text for the model. `is_error` is for the record: it travels as 200 all the same."""

    text: str
    is_error: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRecord:
    """One finished call in the record. `sequence` counts from 1 within the rollout."""

    rollout: RolloutKey
    sequence: int
    key: CallKey
    call_id: str
    tool: str
    arguments_text: str
    reply: ToolReply
    started_at: float
    finished_at: float
    charged: bool = True
    """Whether it counted against the rollout's budget of calls."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingCall:
    """A call that the box knows and nobody has acknowledged yet."""

    key: CallKey
    sequence: int
    tool: str
    arguments: Arguments
    operations: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """Which host owns a rollout. Epochs are issued by the store alone; times are wall-clock seconds since 1970."""

    rollout: RolloutKey
    task: TaskId
    host: HostId
    epoch: Epoch
    state: RolloutState
    sandbox: SandboxId | None
    boot_id: str | None
    reason: str
    tainted: str
    """Non-empty: a 4xx was answered for a caller's mistake, so this rollout is never scored."""
    created_at: float
    touched_at: float
    template: str = ""
    """Key of the template that the handed-out box lies over; empty before that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something a human should see: a hack that was tried, a forged handle, a limit that was hit."""

    code: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkAttempt:
    """What a box asked its proxy (or, with port 53, its resolver) for. `host` is hostile text, reduced to what names are made of."""

    host: str
    port: int
    allowed: bool
    reason: str
    """Why it was refused, in words."""
    count: int
    """How often; at least so often beyond 16."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileChange:
    """One entry of the delta that leaves a box. `blob` is the content's sha256, None for what carries no content."""

    path: str
    kind: str  # added | modified | deleted
    type: str  # file | symlink | other
    mode: int = 0
    size_bytes: int = 0
    blob: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Everything a grader may look at, gathered by the host (D8). Stored before any grader runs."""

    rollout: RolloutKey
    task: TaskId
    changes: tuple[FileChange, ...]
    truncated: bool
    final_answer: str
    submitted: tuple[str, ...] | None
    calls: int
    box_end: BoxEnd
    findings: tuple[Finding, ...]
    gathered_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Grade:
    """What a grader says. `score` is in [0, 1] before the task's range is applied; a violation's is ignored."""

    score: float
    passed: bool
    reason: str
    sub_scores: Mapping[str, float] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    violation: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Reward:
    """The stored end of a rollout. `score` is None exactly for `infra_error`."""

    rollout: RolloutKey
    outcome: Outcome
    score: float | None
    reason: str
    sub_scores: Mapping[str, float]
    findings: tuple[Finding, ...]
    graded_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GradeRequest:
    """`final_answer` is the model's last text, as the trainer sent it; nothing else of a sample is believed."""

    rollout: RolloutKey
    final_answer: str
