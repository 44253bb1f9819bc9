"""Who gets a box next: a pure decision over memory, disk, count and start slots. No I/O, clock or loop; the caller acts on `grants()`.

Grades go before opens, opens before the reserve; grades in the slot of an ended box before those that need memory, which may be waiting for
just what they will give back. Opens are fair per job: the job that holds the least memory for its share is next, and
within a job the order is that of asking. Nobody is passed over because something smaller would fit: large boxes would starve.

Boxes' disks are sparse, so that disk is bounded twice: by what all boxes together are promised, and by what is free right now.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import NewType

from orchestrator.errors import HostFull, Misconfigured
from orchestrator.models import JobId

TicketId = NewType("TicketId", str)


class Kind(IntEnum):
    GRADE = 0
    OPEN = 1
    RESERVE = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """A wish for a box. `inherits` is a held ticket whose memory, disk and count this one uses: only a start slot is needed."""

    id: TicketId
    job: JobId
    kind: Kind
    memory_mib: int
    disk_mib: int = 0
    inherits: TicketId | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    memory_mib: int
    boxes: int
    start_slots: int
    max_queued: int
    disk_mib: int | None = None
    """What all boxes together may be promised; None: no bound."""
    disk_reserve_mib: int = 0
    """Nothing is started while less than this is free."""


FRESH_DISK_MIB = 16
"""What a box takes as soon as it starts (inode tables, folders); taken off until the next reading of the disk shows it."""


class Admission:
    """State of the decision. Every ticket is waiting, held, or unknown; a held one may also occupy a start slot."""

    def __init__(self, limits: Limits, share_of: Callable[[JobId], float]) -> None:
        self.limits = limits
        self._share_of = share_of
        self._opens: dict[JobId, OrderedDict[TicketId, Ticket]] = {}
        self._others: dict[Kind, OrderedDict[TicketId, Ticket]] = {
            Kind.GRADE: OrderedDict(),
            Kind.RESERVE: OrderedDict(),
        }
        self._in_slots: OrderedDict[TicketId, Ticket] = OrderedDict()
        """Grades that inherit."""
        self._waiting: dict[TicketId, Ticket] = {}
        self._held: dict[TicketId, Ticket] = {}
        self._starting: set[TicketId] = set()
        self._job_memory_mib: dict[JobId, int] = {}
        self.used_memory_mib = 0
        self.used_disk_mib = 0
        self.used_boxes = 0
        self.free_disk_mib: int | None = None
        """As last read, less what was started since; None where boxes lie on no disk."""

    # ---- what is asked

    def ask(self, ticket: Ticket) -> None:
        """Queue `ticket`; a ticket already known keeps its place. Raises HostFull (queue full), Misconfigured (can never fit)."""
        if ticket.id in self._waiting or ticket.id in self._held:
            return
        if ticket.memory_mib > self.limits.memory_mib:
            raise Misconfigured(
                f"the task asks for {ticket.memory_mib} MiB and this host gives all boxes {self.limits.memory_mib} MiB:"
                " lower the task's limit or raise memory_limit_mib"
            )
        if self.limits.disk_mib is not None and ticket.disk_mib > self.limits.disk_mib:
            raise Misconfigured(
                f"the task's box may come to take {ticket.disk_mib} MiB of disk and this host promises all boxes {self.limits.disk_mib} MiB:"
                " lower the task's disk_mib or inodes, free space before the start, or raise disk_overcommit"
            )
        if ticket.kind is Kind.OPEN and self.queued >= self.limits.max_queued:
            raise HostFull(f"{self.limits.max_queued} rollouts are waiting for a box already; retry later")
        self._waiting[ticket.id] = ticket
        self._queue_of(ticket)[ticket.id] = ticket

    def withdraw(self, ticket_id: TicketId) -> None:
        """Give up a place. Idempotent."""
        ticket = self._waiting.pop(ticket_id, None)
        if ticket is not None:
            self._unqueue(ticket)

    def hold(self, ticket: Ticket) -> None:
        """Count a box that exists already (adoption), whatever the limits say."""
        if ticket.id not in self._held:
            self._take(ticket)

    def started(self, ticket_id: TicketId) -> None:
        """The start is over, well or not: its start slot is free. Idempotent."""
        self._starting.discard(ticket_id)

    def release(self, ticket_id: TicketId) -> None:
        """The box is gone. Idempotent."""
        self.withdraw(ticket_id)
        self._starting.discard(ticket_id)
        ticket = self._held.pop(ticket_id, None)
        if ticket is None or ticket.inherits is not None:
            return
        self.used_memory_mib -= ticket.memory_mib
        self.used_disk_mib -= ticket.disk_mib
        self.used_boxes -= 1
        self._charge(ticket, -ticket.memory_mib)

    def disk_is(self, free_mib: int) -> None:
        """A reading of the disk that boxes lie on."""
        self.free_disk_mib = free_mib

    # ---- what is decided

    def grants(self) -> Iterator[Ticket]:
        """Take and yield every ticket that may start now, in order."""
        while (ticket := self._next()) is not None and self._may_start(ticket):
            del self._waiting[ticket.id]
            self._unqueue(ticket)
            self._take(ticket)
            self._starting.add(ticket.id)
            yield ticket

    def short_of_room(self) -> bool:
        """Somebody waits for memory, disk or count, not merely for a start slot: idle reserve should go."""
        ticket = self._next()
        return ticket is not None and ticket.kind is not Kind.RESERVE and self._lacking(ticket) is not None

    def shortage(self) -> str:
        """In words, for whoever waits: what the next in the queue lacks."""
        ticket = self._next()
        lacking = None if ticket is None else self._lacking(ticket)
        return lacking or "others are starting"

    @property
    def queued(self) -> int:
        """Opens that wait."""
        return len(self._waiting) - len(self._in_slots) - sum(len(queue) for queue in self._others.values())

    @property
    def free_memory_mib(self) -> int:
        return max(0, self.limits.memory_mib - self.used_memory_mib)

    def is_waiting(self, ticket_id: TicketId) -> bool:
        return ticket_id in self._waiting

    # ---- inside

    def _next(self) -> Ticket | None:
        if grades := self._in_slots or self._others[Kind.GRADE]:
            return next(iter(grades.values()))
        if self._opens:
            job = min(self._opens, key=self._need)
            return next(iter(self._opens[job].values()))
        return next(iter(self._others[Kind.RESERVE].values()), None)

    def _need(self, job: JobId) -> float:
        """Memory held per unit of share; the least is next, ties to the job that began to wait first."""
        return self._job_memory_mib.get(job, 0) / max(self._share_of(job), 1e-6)

    def _may_start(self, ticket: Ticket) -> bool:
        return len(self._starting) < self.limits.start_slots and self._lacking(ticket) is None

    def _lacking(self, ticket: Ticket) -> str | None:
        """What stands against `ticket`, start slots apart; None: nothing."""
        if ticket.inherits is not None:
            return None
        if self.used_boxes >= self.limits.boxes:
            return f"all {self.limits.boxes} boxes are in use"
        if ticket.memory_mib > self.free_memory_mib:
            return f"{self.free_memory_mib} MiB of memory are not promised to others"
        return self._lacking_disk(ticket)

    def _lacking_disk(self, ticket: Ticket) -> str | None:
        limits = self.limits
        if limits.disk_mib is not None and self.used_disk_mib + ticket.disk_mib > limits.disk_mib:
            return f"{limits.disk_mib - self.used_disk_mib} MiB of disk are not promised to others"
        if self.free_disk_mib is not None and self.free_disk_mib < limits.disk_reserve_mib:
            return f"the host's disk has {self.free_disk_mib} MiB free, and {limits.disk_reserve_mib} MiB are kept free"
        return None

    def _take(self, ticket: Ticket) -> None:
        self._held[ticket.id] = ticket
        if ticket.inherits is None:
            self.used_memory_mib += ticket.memory_mib
            self.used_disk_mib += ticket.disk_mib
            self.used_boxes += 1
            if self.free_disk_mib is not None:
                self.free_disk_mib -= FRESH_DISK_MIB
            self._charge(ticket, ticket.memory_mib)

    def _charge(self, ticket: Ticket, memory_mib: int) -> None:
        if ticket.kind is Kind.RESERVE:  # nobody's in particular
            return
        left = self._job_memory_mib.get(ticket.job, 0) + memory_mib
        if left:
            self._job_memory_mib[ticket.job] = left
        else:
            self._job_memory_mib.pop(ticket.job, None)

    def _queue_of(self, ticket: Ticket) -> OrderedDict[TicketId, Ticket]:
        if ticket.inherits is not None:
            return self._in_slots
        if ticket.kind is Kind.OPEN:
            return self._opens.setdefault(ticket.job, OrderedDict())
        return self._others[ticket.kind]

    def _unqueue(self, ticket: Ticket) -> None:
        queue = self._queue_of(ticket)
        queue.pop(ticket.id, None)
        if ticket.kind is Kind.OPEN and ticket.inherits is None and not queue:
            del self._opens[ticket.job]
