"""What every piece of a host works with. Made once, by `SandboxHost`."""

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

from orchestrator.hosts.admission import TicketId
from orchestrator.hosts.gate import Gate
from orchestrator.hosts.permits import Permits
from orchestrator.hosts.remover import Remover
from orchestrator.hosts.settings import HostSettings
from orchestrator.interfaces import Blobs, Grader, SandboxBackend, SandboxSpec, Store, Template, Templates, Tool
from orchestrator.models import HostId, JobId, Network, RolloutKey, SandboxId, Task, TaskId

JOURNAL_MIB = 256
"""The agent's journal, which lies outside the box's own cap; the agent refuses to let it grow further."""
INODE_BYTES = 256
"""Of the box's file system: its tables come on top of what can be used."""


@dataclass(slots=True)
class DiskFalls:
    """How often the boxes' disk was found exhausted; work that saw the number change may have lost writes."""

    count: int = 0


TaskOf = Callable[[JobId, TaskId], Task | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    host_id: HostId
    settings: HostSettings
    backend: SandboxBackend
    store: Store
    blobs: Blobs
    templates: Templates
    task_of: TaskOf
    tools: Callable[[str], Tool]
    graders: Callable[[str], Grader]
    gate: Gate
    remover: Remover
    test_runs: Permits
    clock: Callable[[], float]
    """Monotonic seconds, for idle times and places; deadlines are of time.monotonic()."""
    grading_boxes: set[SandboxId] = field(default_factory=set)
    """Boxes that a grade made for itself, while it uses them."""
    disk_falls: DiskFalls = field(default_factory=DiskFalls)
    _tickets: "count[int]" = field(default_factory=count)

    def ticket_id(self) -> TicketId:
        return TicketId(f"ticket-{next(self._tickets)}")

    async def template(self, task: Task) -> Template:
        return await self.templates.template(task, deadline=time.monotonic() + self.settings.template_deadline_s)


def new_sandbox_id(prefix: str) -> SandboxId:
    """`r` for a rollout's box, `g` for a grading box: the names say so to whoever lists them."""
    return SandboxId(f"{prefix}-{secrets.token_hex(8)}")


def promised_disk_mib(task: Task) -> int:
    """What a box of this task may come to take of the disk at the most."""
    return task.limits.disk_mib + -(-task.limits.inodes * INODE_BYTES // 2**20) + JOURNAL_MIB


def spec_for(task: Task, template: Template, *, rollout: RolloutKey | None, grader: bool = False) -> SandboxSpec:
    """A grading box is offline, whatever the task's own boxes may reach."""
    owner = {} if rollout is None else {"job": rollout.job, "rollout": rollout.trace_id}
    return SandboxSpec(
        image=template.image,
        template=template,
        limits=task.limits,
        network=Network() if grader else task.network,
        grader=grader,
        workdir=task.workdir,
        labels={**owner, "task": task.id},
    )
