"""A rollout's box: from the template to the lease.

Its id is stored before anything that can fail (so that a rollout which asked in vain is never graded as one that did nothing), and its boot
id before it is handed out: a binding with an id and no boot id therefore names a box that
ran nothing, whoever reads it after whatever crash, and that box may be removed and another one made.
"""

import asyncio
import time
from collections.abc import Callable

from orchestrator import failpoints
from orchestrator.errors import RepositoryError, SandboxDead, SandboxLost, StartFailed
from orchestrator.hosts.admission import Kind, Ticket
from orchestrator.hosts.parts import Parts, new_sandbox_id, promised_disk_mib, spec_for
from orchestrator.hosts.rollout import Rollout
from orchestrator.interfaces import Lease, Sandbox, SandboxSpec, Template, WarmBoxes
from orchestrator.models import Epoch, RolloutKey, SandboxId

GRACE_S = 30.0
"""Beyond a start's deadline, for a backend to say so itself."""


async def open_box(parts: Parts, rollout: Rollout, chosen: Callable[[SandboxId], None]) -> None:
    """Queue, make the box, take its lease. `chosen` is told the id that may exist from then on.

    The template comes before the queue: a slot that waits for a clone or a set-up command would be idle. Raises what templates, admission
    (HostFull, Misconfigured), the store and the backend raise; the caller removes the chosen box and gives the slot back.
    """
    sandbox_id = await _named(parts, rollout)
    template = await parts.template(rollout.task)
    ticket = Ticket(
        id=parts.ticket_id(),
        job=rollout.key.job,
        kind=Kind.OPEN,
        memory_mib=rollout.task.limits.memory_mib,
        disk_mib=promised_disk_mib(rollout.task),
    )
    rollout.ticket = ticket.id
    await parts.gate.enter(ticket)
    try:
        sandbox_id = await _ready(parts, rollout, template) or sandbox_id
        chosen(sandbox_id)
        await _make(parts, rollout, template, sandbox_id)
    finally:
        parts.gate.started(ticket.id)


async def _named(parts: Parts, rollout: Rollout) -> SandboxId:
    """A new id, stored."""
    if rollout.binding.sandbox is not None:  # of a start that failed; it ran nothing
        parts.remover.retire(rollout.binding.sandbox)
    sandbox_id = new_sandbox_id("r")
    rollout.binding = await parts.store.attach_sandbox(rollout.binding, sandbox_id, None)
    return sandbox_id


async def _ready(parts: Parts, rollout: Rollout, template: Template) -> SandboxId | None:
    """A box that the backend keeps ready, stored as this rollout's in place of the id that nothing was made under."""
    if not isinstance(parts.backend, WarmBoxes):
        return None
    found = parts.backend.claim(spec_for(rollout.task, template, rollout=rollout.key))
    if found is not None:
        rollout.binding = await parts.store.attach_sandbox(rollout.binding, found, None)
    return found


async def _make(parts: Parts, rollout: Rollout, template: Template, sandbox_id: SandboxId) -> None:
    sandbox = await create(parts, sandbox_id, spec_for(rollout.task, template, rollout=rollout.key))
    try:
        failpoints.hit("after_create")
        lease = await first_lease(sandbox, rollout.key, rollout.binding.epoch)
        rollout.binding = await parts.store.attach_sandbox(
            rollout.binding, sandbox_id, lease.boot_id, template=template.key
        )
    except BaseException:
        await sandbox.aclose()
        raise
    rollout.sandbox, rollout.template = sandbox, template


async def template_of(parts: Parts, rollout: Rollout) -> Template:
    """What the rollout's box lies over. Raises RepositoryError where its task was changed meanwhile, and whatever templates raise."""
    if rollout.template is None:
        found = await parts.template(rollout.task)
        if rollout.binding.template not in ("", found.key):
            raise RepositoryError(
                f"task {rollout.task.id!r} was changed while this rollout lived, whose box lies over another tree: "
                "serve the task as it was, or release the rollout"
            )
        rollout.template = found
    return rollout.template


async def create(parts: Parts, sandbox_id: SandboxId, spec: SandboxSpec) -> Sandbox:
    """Raises StartFailed, EngineUnavailable, Misconfigured. Whatever is raised, a box of that id may have come to be."""
    start_s, falls = parts.settings.start_deadline_s, parts.disk_falls.count
    try:
        async with asyncio.timeout(start_s + GRACE_S):
            sandbox = await parts.backend.create(sandbox_id, spec, deadline=time.monotonic() + start_s)
    except TimeoutError as error:
        raise StartFailed(f"no box started within {start_s:g} s") from error
    except SandboxDead as error:
        raise StartFailed(f"the box died while it started: {error.message}") from error
    if parts.disk_falls.count != falls:
        await sandbox.aclose()
        raise StartFailed("the host's disk ran full while the box started")
    return sandbox


async def first_lease(sandbox: Sandbox, rollout: RolloutKey, epoch: Epoch) -> Lease:
    """Of a new box. Raises StartFailed: nothing ran in it yet, so that its end is nobody's doing and nothing is lost by it."""
    try:
        return await sandbox.lease(rollout, epoch)
    except (SandboxDead, SandboxLost) as error:
        raise StartFailed(f"the new box did not take its lease: {error.message}") from error
