"""A few warm grading boxes per task with hidden tests, so that a grade need not wait for a start.

They are counted in admission, come last in its queue, and go first when somebody waits for room.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import structlog

from orchestrator.errors import TiltyardError
from orchestrator.hosts.admission import Kind, Ticket, TicketId
from orchestrator.hosts.opening import create
from orchestrator.hosts.parts import Parts, new_sandbox_id, promised_disk_mib, spec_for
from orchestrator.hosts.supervised import OwnedTasks
from orchestrator.interfaces import Sandbox, Template
from orchestrator.models import JobId, Limits, Network, SandboxId, Task

log = structlog.get_logger(__name__)

NOBODY = JobId("")
"""Reserve is charged to no job."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Boxes of one shape are interchangeable before they are leased."""

    image: str
    repo: str
    commit: str
    setup: tuple[str, ...]
    history: str
    workspace: str
    setup_network: Network
    limits: Limits


def shape_of(task: Task) -> Shape:
    return Shape(
        image=task.image,
        repo=task.repo,
        commit=task.commit,
        setup=task.setup,
        history=task.history,
        workspace=task.workspace,
        setup_network=task.setup_network,
        limits=task.limits,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Warm:
    sandbox: Sandbox
    ticket: TicketId
    task: Task
    template: Template


class Reserve:
    """Owner of the warm boxes, from their making until they are handed to the remover."""

    def __init__(self, parts: Parts, tasks: OwnedTasks, size: int) -> None:
        self._parts = parts
        self._tasks = tasks
        self._size = size
        self._wanted: dict[Shape, Task] = {}
        self._warm: dict[Shape, list[_Warm]] = {}
        self._claimed: dict[SandboxId, _Warm] = {}
        self._making: dict[SandboxId, Shape] = {}

    @property
    def sandboxes(self) -> frozenset[SandboxId]:
        """Boxes that the sweeper must leave alone."""
        warm = (held.sandbox.id for boxes in self._warm.values() for held in boxes)
        return frozenset({*warm, *self._claimed, *self._making})

    def want(self, task: Task) -> None:
        """Have boxes made for `task`, if it has hidden tests, up to the reserve's size."""
        if self._size == 0 or task.tests is None:
            return
        shape = shape_of(task)
        self._wanted[shape] = task
        have = len(self._warm.get(shape, ())) + sum(made == shape for made in self._making.values())
        for _ in range(self._size - have):
            sandbox_id = new_sandbox_id("g")
            self._making[sandbox_id] = shape
            self._tasks.start(self._make(sandbox_id, shape, task), name=f"reserve {sandbox_id}")

    def claim(self, task: Task, template: Template) -> Sandbox | None:
        """A warm box over `template`, not leased yet. Give it to `spent` afterwards.

        What an image's tag or this machine's programs meant when a box was made may not be what they mean now: such a box goes.
        """
        boxes = self._warm.get(shape_of(task), [])
        while boxes:
            held = boxes.pop(0)
            if (held.template.key, held.template.image) == (template.key, template.image):
                self._claimed[held.sandbox.id] = held
                return held.sandbox
            self._end(held)
        return None

    def spent(self, sandbox: Sandbox) -> None:
        """Remove a claimed box, and have another one made while its kind is wanted."""
        held = self._claimed.pop(sandbox.id)
        self._end(held)
        if shape_of(held.task) in self._wanted:
            self.want(held.task)

    def keep_only(self, tasks: Iterable[Task]) -> None:
        """Give up what no live rollout's task needs."""
        live = {shape_of(task) for task in tasks}
        for shape in [shape for shape in self._wanted if shape not in live]:
            del self._wanted[shape]
            self._evict(shape)

    def make_room(self) -> None:
        """Somebody waits: all idle boxes go. They come back when nobody does."""
        for shape in list(self._warm):
            self._evict(shape)

    def close(self) -> None:
        """Give up everything that is idle; what is being made goes when it is there."""
        self._wanted.clear()
        self.make_room()

    def _evict(self, shape: Shape) -> None:
        for held in self._warm.pop(shape, []):
            self._end(held)

    def _end(self, held: _Warm) -> None:
        release = self._parts.gate.release
        self._parts.remover.retire(held.sandbox.id, box=lambda: held.sandbox, then=lambda: release(held.ticket))

    async def _make(self, sandbox_id: SandboxId, shape: Shape, task: Task) -> None:
        ticket = Ticket(
            id=self._parts.ticket_id(),
            job=NOBODY,
            kind=Kind.RESERVE,
            memory_mib=task.limits.memory_mib,
            disk_mib=promised_disk_mib(task),
        )
        made = False
        try:
            template = await self._parts.template(task)
            await self._parts.gate.enter(ticket)
            sandbox = await create(self._parts, sandbox_id, spec_for(task, template, rollout=None, grader=True))
            self._warm.setdefault(shape, []).append(
                _Warm(sandbox=sandbox, ticket=ticket.id, task=task, template=template)
            )
            made = True
        except TiltyardError as error:  # the grade makes its own box then
            log.warning("reserve_failed", task=task.id, reason=error.reason, error=error.message)
        finally:
            del self._making[sandbox_id]
            self._parts.gate.started(ticket.id)
            if not made:
                self._parts.remover.retire(sandbox_id, then=lambda: self._parts.gate.release(ticket.id))
        if shape not in self._wanted:
            self._evict(shape)
