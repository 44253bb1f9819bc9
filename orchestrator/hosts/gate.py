"""The queue for boxes: `admission` decides, this waits."""

import asyncio
from collections.abc import Callable

from orchestrator.hosts.admission import Admission, Ticket, TicketId


class Gate:
    """Tickets become slots. A slot is held until `release`, also by a process that forgot to call `started`."""

    def __init__(self, admission: Admission, short: Callable[[], None]) -> None:
        """`short` is called when somebody waits for memory, disk or count; it may free some, now or later."""
        self.admission = admission
        self._short = short
        self._granted: dict[TicketId, asyncio.Future[None]] = {}

    async def enter(self, ticket: Ticket) -> None:
        """Wait for `ticket`'s turn; it then holds memory, count and a start slot. Cancelling gives the place up.

        Raises HostFull, Misconfigured.
        """
        self.admission.ask(ticket)
        granted = asyncio.get_running_loop().create_future()
        self._granted[ticket.id] = granted
        self._grant()
        try:
            await granted
        except asyncio.CancelledError:
            self.release(ticket.id)
            raise
        finally:
            del self._granted[ticket.id]

    def hold(self, ticket: Ticket) -> None:
        """Count a box that exists already."""
        self.admission.hold(ticket)

    def started(self, ticket_id: TicketId) -> None:
        self.admission.started(ticket_id)
        self._grant()

    def release(self, ticket_id: TicketId) -> None:
        self.admission.release(ticket_id)
        self._grant()

    def disk_is(self, free_mib: int) -> None:
        """A reading of the disk that boxes lie on; who waited for it may go on."""
        self.admission.disk_is(free_mib)
        self._grant()

    def _grant(self) -> None:
        for ticket in self.admission.grants():
            granted = self._granted[ticket.id]
            if not granted.done():
                granted.set_result(None)
        if self.admission.short_of_room():
            self._short()
