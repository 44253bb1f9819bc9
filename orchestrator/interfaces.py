"""The seams. Each is a Protocol without state; what implementations share lies beside them.

`deadline` is an instant of this process's monotonic clock (time.monotonic()); `timeout_s` crosses processes and is converted once, at the host.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol, runtime_checkable

from orchestrator.models import (
    Arguments,
    Binding,
    CallKey,
    CallRecord,
    CallRequest,
    Epoch,
    Evidence,
    FileChange,
    Grade,
    GradeRequest,
    HostId,
    JobId,
    JsonValue,
    Limits,
    Network,
    NetworkAttempt,
    OpId,
    PendingCall,
    Reward,
    RolloutKey,
    RolloutState,
    SandboxId,
    Task,
    TaskId,
    ToolReply,
)
from orchestrator.operations import Manifest, Operation, OperationResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """Answer of a box to taking its lease."""

    boot_id: str
    epoch: Epoch
    frozen: bool
    pending: tuple[PendingCall, ...]


class Sandbox(Protocol):
    """One live box, seen through its agent.

    Raises (all methods): SandboxLost (gone, restarted, not answering), AgentProtocolError (answers nonsense), SandboxDead (died of memory or
    its agent was killed by commands), StaleLease (an older epoch than the box has), ReplayDiverged (or the call was
    acknowledged), RolloutClosed (a new operation in a frozen box).
    """

    @property
    def id(self) -> SandboxId: ...

    async def lease(self, rollout: RolloutKey, epoch: Epoch) -> Lease:
        """Take the lease; `pending` are calls not yet acknowledged, in journal order."""
        ...

    async def run(
        self, op: Operation, *, op_id: OpId, deadline: float, call: PendingCall | None = None
    ) -> OperationResult:
        """Run, join or replay. `call` is the header and goes with operation 0 of a call, and only with it.

        Raises TimeoutError when `deadline` passes first: the operation runs on and the same id joins it.
        """
        ...

    async def acknowledge(self, calls: Sequence[CallKey]) -> None:
        """The replies are recorded: results may go, tombstones stay. Idempotent."""
        ...

    async def aclose(self) -> None:
        """Close our connections; the box lives on."""
        ...


class Scope(StrEnum):
    HOST = "host"
    DEPLOYMENT = "deployment"


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """A sealed repository on this machine's disk, shared copy-on-write. `lowers` are overlay layers, topmost first, owned by `owner_uid`."""

    key: str
    lowers: tuple[str, ...]
    manifest: Manifest
    owner_uid: int
    image: str
    """Image reference (an id where there is one) that boxes over this template start from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxSpec:
    """What a box is made from. `grader` boxes may run the trusted principal and are never given to a rollout."""

    image: str
    template: Template | None
    limits: Limits
    network: Network = field(default_factory=Network)
    grader: bool = False
    workdir: str = "/workspace"
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnedSandbox:
    """A box that exists in a backend's scope. `created_at` is wall-clock seconds."""

    id: SandboxId
    created_at: float
    running: bool
    host: HostId | None = None
    """Who made it, where other hosts' boxes are in the scope, too; None: this host."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    memory_mib: int
    boxes: int
    start_slots: int


class SandboxBackend(Protocol):
    """Makes and unmakes boxes."""

    @property
    def name(self) -> str: ...

    @property
    def scope(self) -> Scope: ...

    async def create(self, sandbox_id: SandboxId, spec: SandboxSpec, *, deadline: float) -> Sandbox:
        """Make a box whose agent answers. Raises StartFailed (nothing is left behind), EngineUnavailable, Misconfigured."""
        ...

    async def attach(self, sandbox_id: SandboxId) -> Sandbox:
        """A box made earlier, after a restart of ours. Raises SandboxLost, SandboxDead."""
        ...

    async def destroy(self, sandbox_id: SandboxId) -> None:
        """Idempotent; returns when nothing of the box is left. Raises EngineUnavailable."""
        ...

    async def owned(self) -> Sequence[OwnedSandbox]:
        """What exists in this scope, but for warm boxes that the backend keeps itself."""
        ...

    async def capacity(self) -> Capacity: ...


@runtime_checkable
class EgressControl(Protocol):
    """A second Protocol of backends that can give boxes a network (`SandboxSpec.network`); all others refuse such a spec."""

    async def check_network(self) -> None:
        """Raises Misconfigured, with what to do, where this machine or deployment can grant no list; EngineUnavailable."""
        ...

    async def cut(self, sandbox_id: SandboxId) -> Sequence[NetworkAttempt]:
        """Take the box's network away for good; what it tried so far. Idempotent; a box without a network tried nothing.

        Raises SandboxLost (its network broke before: what it could reach since is not known), EngineUnavailable.
        """
        ...


@runtime_checkable
class WarmBoxes(Protocol):
    """A second Protocol of backends that keep boxes ready themselves, by what they are made from."""

    def claim(self, spec: SandboxSpec) -> SandboxId | None:
        """The id of a box that stands ready for `spec` and is now the caller's: `create` with this id and spec hands it out. None: make one."""
        ...


class Templates(Protocol):
    """Where sealed repositories and task images come from."""

    async def template(self, task: Task, *, deadline: float) -> Template:
        """Built once per (image, repo, commit, setup); simultaneous callers wait for one build. Raises RepositoryError, Misconfigured."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """`exclusive`: the call waits for all earlier ones of the rollout, and later ones wait for it. Otherwise it is shared: it runs beside
    other shared calls, but for those of the same `lane`, which run one after another as they came.
    """

    exclusive: bool = False
    lane: str | None = None


SHARED = Order()
EXCLUSIVE = Order(exclusive=True)


class CallContext(Protocol):
    """What a tool may touch. A tool is a deterministic function of its arguments and its operations' results (D6)."""

    @property
    def task(self) -> Task: ...

    async def run(self, op: Operation) -> OperationResult:
        """The call's next operation. Operations are issued one after another."""
        ...

    async def once(self, value: bytes) -> bytes:
        """Journal `value`; a replay gets the first one."""
        ...


class Tool(Protocol):
    """One thing the model may call. `schema` is the JSON schema of its arguments."""

    @property
    def name(self) -> str: ...

    @property
    def description(self) -> str: ...

    @property
    def schema(self) -> Mapping[str, JsonValue]: ...

    def order(self, arguments: Arguments) -> Order:
        """How a call with these arguments stands to the rollout's other calls. `arguments` already fit `schema`."""
        ...

    async def run(self, context: CallContext, arguments: Arguments) -> ToolReply:
        """`arguments` already fit `schema`. The model's mistakes are replies."""
        ...


class Bench(Protocol):
    """What a grader may touch."""

    @property
    def task(self) -> Task: ...

    @property
    def evidence(self) -> Evidence: ...

    def fresh_box(self) -> AbstractAsyncContextManager["GraderBox"]:
        """A clean offline box over the task's pristine tree, in the slot of the ended one; one at a time."""
        ...

    async def blob(self, change: FileChange) -> bytes: ...


class GraderBox(Protocol):
    """A grading box. Paths as in docs/agent-protocol.md; a "trusted" put is relative to the trusted folder.

    A trusted exec finds TILTYARD_WORKSPACE, TILTYARD_TRUSTED_DIR, TILTYARD_UID_BASE and TILTYARD_UID_COUNT in its environment.
    """

    async def run(self, op: Operation) -> OperationResult: ...


class Grader(Protocol):
    @property
    def name(self) -> str: ...

    def check(self, task: Task) -> None:
        """Raises Misconfigured for a task this grader cannot grade; called when tasks are loaded."""
        ...

    async def grade(self, bench: Bench) -> Grade:
        """Raises GraderError for failures that are ours. What the agent did is in the Grade."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class HostLoad:
    live: int
    queued: int
    grading: int
    draining: bool
    free_memory_mib: int


class Host(Protocol):
    """Owner of rollouts: leases, calls, grades. In process, or over the data port."""

    @property
    def id(self) -> HostId: ...

    async def open(self, rollout: RolloutKey, task: Task, *, timeout_s: float) -> Binding:
        """Bind (first wins) and give the rollout its box. Idempotent. Raises HostFull, StartFailed, RolloutClosed, TaskConflict."""
        ...

    async def call(self, request: CallRequest, task: Task, *, timeout_s: float) -> ToolReply:
        """Open if need be, run once, record, reply. Raises StillRunning after `timeout_s`: the work goes on, a retry joins."""
        ...

    async def grade(self, request: GradeRequest, task: Task, *, timeout_s: float) -> Reward:
        """Once per rollout; the stored reward afterwards. An `infra_error` is raised, not returned (RolloutClosed, GraderError)."""
        ...

    async def release(self, rollout: RolloutKey) -> None:
        """End the rollout without a grade. Idempotent. Raises UnknownRollout."""
        ...

    async def load(self) -> HostLoad: ...

    async def drain(self) -> None:
        """Take nothing new, finish what runs; boxes are left for the successor."""
        ...


class Cluster(Protocol):
    """Who owns what. Today one host in this process."""

    async def host_for(self, rollout: RolloutKey) -> Host: ...

    async def hosts(self) -> Sequence[Host]: ...

    async def aclose(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutSummary:
    """A line of `rollouts list`."""

    binding: Binding
    calls: int
    reward: Reward | None


class Store(Protocol):
    """The record. Host writes are conditional on (host, epoch) still owning the rollout; otherwise StaleLease.

    Durable (fsync) when they return: bind, adopt, close, put_evidence, put_reward, taint. `record` survives the process's death, not the machine's.
    """

    async def bind(self, rollout: RolloutKey, task: TaskId, host: HostId) -> Binding:
        """First wins: the binding that exists, else a new one with epoch 1."""
        ...

    async def binding(self, rollout: RolloutKey) -> Binding | None: ...

    async def attach_sandbox(
        self, binding: Binding, sandbox: SandboxId, boot_id: str | None, *, template: str = ""
    ) -> Binding: ...

    async def adopt(self, binding: Binding, host: HostId) -> Binding:
        """Compare-and-set (host, epoch) -> (new host, epoch + 1). Raises StaleLease."""
        ...

    async def close(self, binding: Binding, state: RolloutState, reason: str) -> Binding:
        """A tombstone, or a step towards it. Raises StaleLease."""
        ...

    async def touch(self, binding: Binding) -> None: ...

    async def taint(self, rollout: RolloutKey, reason: str) -> None:
        """Mark as never to be scored; a rollout not yet bound is remembered too. Idempotent."""
        ...

    async def tainted(self, rollout: RolloutKey) -> str: ...

    async def open_bindings(self, host: HostId | None) -> Sequence[Binding]:
        """In state OPEN or GRADING; None: of every host."""
        ...

    async def record(self, binding: Binding, call: CallRecord) -> None:
        """Append a finished call; returns after the commit that holds it. The same key twice is the first one's."""
        ...

    async def recorded(self, rollout: RolloutKey, key: CallKey) -> CallRecord | None: ...

    async def calls(self, rollout: RolloutKey) -> Sequence[CallRecord]: ...

    async def put_evidence(self, binding: Binding, evidence: Evidence) -> Evidence:
        """First wins."""
        ...

    async def evidence(self, rollout: RolloutKey) -> Evidence | None: ...

    async def put_reward(self, binding: Binding, reward: Reward) -> Reward:
        """First wins. Raises RolloutClosed for a first one of a tainted rollout."""
        ...

    async def reward(self, rollout: RolloutKey) -> Reward | None: ...

    async def add_finding(self, rollout: RolloutKey, code: str, detail: str) -> None: ...

    async def findings(self, rollout: RolloutKey) -> Sequence[tuple[str, str]]: ...

    async def rollouts(self, job: JobId | None, limit: int) -> Sequence[RolloutSummary]: ...

    async def aclose(self) -> None: ...


class Blobs(Protocol):
    """Content-addressed bytes beside the store."""

    async def put(self, data: bytes) -> str:
        """Durable when it returns; the sha256 in hex."""
        ...

    async def get(self, digest: str) -> bytes:
        """Raises StoreError when missing or when the content no longer fits its name."""
        ...
