"""How boxes come, are found again, and go without a trace."""

import asyncio
import time
from dataclasses import replace

from orchestrator.conformance import expect
from orchestrator.conformance.file_checks import packed
from orchestrator.conformance.model import Broken, Group
from orchestrator.conformance.rig import START_S, Rig, leased
from orchestrator.errors import Misconfigured, SandboxDead, SandboxLost, StartFailed, TiltyardError
from orchestrator.interfaces import Sandbox, SandboxSpec
from orchestrator.models import Network, SandboxId
from orchestrator.operations import Put, PutResult

GROUP = Group("life")

NO_IMAGE = "tiltyard/no-such-image:0"
GONE = (SandboxLost, SandboxDead)


def _soon(seconds: float = START_S) -> float:
    return time.monotonic() + seconds


async def _not_started(
    rig: Rig, spec: SandboxSpec, error: type[TiltyardError], *, deadline: float | None = None
) -> TiltyardError:
    """What `create` raises; nothing may be left of the box."""
    sandbox_id = rig.new_id()
    try:
        made = await rig.backend.create(sandbox_id, spec, deadline=_soon() if deadline is None else deadline)
    except error as refusal:
        expect.that(sandbox_id not in await rig.listed(), "no box to be left")
        return refusal
    await made.aclose()
    await rig.backend.destroy(sandbox_id)
    raise Broken(f"expected {error.__name__}, but a box was made")


@GROUP.positive()
async def new_box_answers(rig: Rig) -> None:
    """A created box answers at once, is empty of commands' work, and is listed with its age."""
    began = time.time()
    async with rig.own_box() as box:
        await box.alive()
        listed = {found.id: found for found in await rig.backend.owned()}
        expect.that(box.id in listed and listed[box.id].running, "the box to be listed as running")
        expect.that(abs(listed[box.id].created_at - began) < START_S, "its creation to be of now")


@GROUP.positive()
async def boxes_start_side_by_side(rig: Rig) -> None:
    """Several creates at once all give boxes of their own."""

    async def one(mark: str) -> str:
        async with rig.own_box() as box:
            await box.text(f"echo {mark} > mark")
            return (await box.text("cat mark")).strip()

    expect.equal(await asyncio.gather(*map(one, "abcd")), list("abcd"), "what each box says")


@GROUP.negative(control=new_box_answers)
async def destroyed_box_is_gone(rig: Rig) -> None:
    """After destroy nothing of the box is listed, attached to or run in."""
    async with rig.own_box() as box:
        await rig.backend.destroy(box.id)
        expect.that(box.id not in await rig.listed(), "the box to be off the list")
        await expect.raised(rig.backend.attach(box.id), *GONE)
        await expect.raised(box.run(box.shell_op("true")), *GONE)


@GROUP.positive()
async def destroying_is_idempotent(rig: Rig) -> None:
    """Destroying again, twice at once, or what never existed, is no error."""
    async with rig.own_box() as box:
        await asyncio.gather(rig.backend.destroy(box.id), rig.backend.destroy(box.id))
        await rig.backend.destroy(box.id)
        await rig.backend.destroy(rig.new_id())


@GROUP.positive()
async def destroying_ends_a_running_command(rig: Rig) -> None:
    """A command that runs when its box is destroyed ends in SandboxLost, soon; destroy does not wait for it."""
    async with rig.own_box() as box:
        running = asyncio.create_task(box.run(box.shell_op("sleep 60", timeout_s=90), timeout_s=90))
        await box.text("true")
        began = time.monotonic()
        await rig.backend.destroy(box.id)
        await expect.raised(asyncio.wait_for(running, 10), *GONE)
        expect.that(time.monotonic() - began < 10, "the end within seconds")


@GROUP.negative(control=new_box_answers)
async def same_id_never_makes_a_second_box(rig: Rig) -> None:
    """Creating under an id that a box has is refused, or gives that very box; the box goes on."""
    async with rig.own_box() as box:
        await box.text("echo first > mark")
        again: Sandbox | None = None
        try:
            again = await rig.backend.create(box.id, rig.spec, deadline=_soon())
        except (StartFailed, Misconfigured):
            pass
        finally:
            if again is not None:
                await again.aclose()
        expect.equal(await box.text("cat mark"), "first\n", "what the first box remembers")
        listed = [found.id for found in await rig.backend.owned() if found.id == box.id]
        expect.equal(len(listed), 1, "boxes under that id")


@GROUP.positive()
async def cancelled_create_leaves_nothing(rig: Rig) -> None:
    """A create that is cancelled, at several moments, leaves no box; the same id can be created afterwards."""
    for after_s in (0.0, 0.02, 0.15):
        sandbox_id = rig.new_id()
        creating = asyncio.create_task(rig.backend.create(sandbox_id, rig.spec, deadline=_soon()))
        await asyncio.sleep(after_s)
        creating.cancel()
        made = (await asyncio.gather(creating, return_exceptions=True))[0]
        if not isinstance(made, BaseException):
            await made.aclose()
            await rig.backend.destroy(sandbox_id)
        expect.that(sandbox_id not in await rig.listed(), f"no box after a cancel at {after_s} s")
    box = await rig.backend.create(sandbox_id, rig.spec, deadline=_soon())
    await box.aclose()
    await rig.backend.destroy(sandbox_id)


@GROUP.negative(control=new_box_answers)
async def missed_deadline_is_a_failed_start(rig: Rig) -> None:
    """A box that does not start in time is StartFailed, and nothing is left of it."""
    await _not_started(rig, rig.spec, StartFailed, deadline=time.monotonic() - 1)


@GROUP.negative(control=new_box_answers, proves=("C20",))
async def unknown_network_is_refused(rig: Rig) -> None:
    """A network that no backend can have is refused, not ignored."""
    await _not_started(rig, replace(rig.spec, network=Network(allow=("no such host",))), Misconfigured)


@GROUP.negative(control=new_box_answers, proves=("C25",))
async def missing_image_is_refused(rig: Rig) -> None:
    """An image that is not there is a failed start that names it, and nothing is left."""
    error = await _not_started(rig, replace(rig.spec, image=NO_IMAGE, template=None), TiltyardError)
    expect.that(NO_IMAGE in str(error), f"the image's name in {error}")


@GROUP.positive()
async def attaching_finds_work_and_results(rig: Rig) -> None:
    """After its client was lost a box is found again: same boot, processes alive, results kept."""
    async with rig.own_box() as box:
        call, op = box.header(), box.shell_op("echo done; (while true; do echo x >> beat; sleep 0.05; done) & echo $!")
        first = await box.send(op, call)
        boot = (await box.sandbox.lease(box.rollout, box.epoch)).boot_id
        await box.sandbox.aclose()
        again = await rig.backend.attach(box.id)
        try:
            lease = await again.lease(box.rollout, box.epoch)
            expect.equal(lease.boot_id, boot, "the agent's boot id")
            expect.equal([pending.key for pending in lease.pending], [call.key], "calls not yet acknowledged")
            successor = await leased(again, box.epoch, box.rollout)
            expect.equal(await successor.send(op, call), first, "the replay")
            before = len(await successor.text("cat beat"))
            await asyncio.sleep(0.3)
            expect.that(len(await successor.text("cat beat")) > before, "the background process to live")
        finally:
            await again.aclose()


@GROUP.negative(control=attaching_finds_work_and_results)
async def attaching_to_nothing_is_lost(rig: Rig) -> None:
    """A box that does not exist cannot be attached to."""
    await expect.raised(rig.backend.attach(SandboxId(rig.new_id())), SandboxLost)


@GROUP.positive()
async def closing_the_client_leaves_the_box(rig: Rig) -> None:
    """`aclose` ends the connection, again and again, never the box."""
    async with rig.own_box() as box:
        await box.sandbox.aclose()
        await box.sandbox.aclose()
        expect.that(box.id in await rig.listed(), "the box to be listed")


@GROUP.positive()
async def capacity_is_stated(rig: Rig) -> None:
    """The backend says how much it can hold."""
    capacity = await rig.backend.capacity()
    expect.that(capacity.boxes > 0 and capacity.memory_mib > 0 and capacity.start_slots > 0, "room for boxes")


@GROUP.positive()
async def workspace_may_have_another_place(rig: Rig) -> None:
    """A task may name where its workspace lies."""
    async with rig.own_box(replace(rig.spec, workdir="/testbed")) as box:
        expect.equal(await box.text("pwd; echo x > f; cat /testbed/f"), "/testbed\nx\n", "output")


@GROUP.positive()
async def template_is_shared_copy_on_write(rig: Rig) -> None:
    """Boxes over a template see its files as their own, change them apart, and never change the template."""
    template = rig.spec.template
    if template is None:
        raise Broken("expected the suite's spec to have a template")
    path = next(name for name in template.manifest if "/" not in name)
    async with rig.own_box() as one, rig.own_box() as two:
        original = await one.read(path)
        await one.write(path, original + b"changed")
        await one.text(f"echo more >> {path}; rm -rf sub; mkdir sub; echo new > sub/new")
        expect.equal(await two.read(path), original, "the file in another box")
        expect.that("inner" in await two.text("ls sub"), "the folder in another box")
    async with rig.own_box() as three:
        expect.equal(await three.read(path), original, "the file in a later box")


@GROUP.positive()
async def grader_box_runs_the_trusted_principal(rig: Rig) -> None:
    """A grading box takes trusted files and runs trusted commands that the box's other users cannot write or signal."""
    async with rig.own_box(replace(rig.spec, grader=True)) as box:
        put = Put(path="hidden", tar=packed({"secret": b"s3cret"}, 0o600), principal="trusted")
        expect.kind(await box.run(put), PutResult)
        script = 'cat "$TILTYARD_TRUSTED_DIR/hidden/secret"; echo; id -u; test -d "$TILTYARD_WORKSPACE" && echo $TILTYARD_UID_COUNT'
        result = await box.exec(replace(box.shell_op(script), principal="trusted"))
        lines = expect.succeeded(result, "the trusted command").stdout.head.decode().split()
        expect.equal(lines[:1], ["s3cret"], "the trusted file, read by the trusted command")
        other = (await box.exec(replace(box.shell_op("id -u"), principal=1))).stdout.head.decode().strip()
        expect.equal(len({other, lines[1], (await box.text("id -u")).strip()}), 3, "different users")


@GROUP.negative(control=grader_box_runs_the_trusted_principal, proves=("C5",))
async def trusted_files_and_processes_are_out_of_reach(rig: Rig) -> None:
    """In a grading box other principals can neither read nor change what is trusted, nor signal trusted commands."""
    async with rig.own_box(replace(rig.spec, grader=True)) as box:
        put = Put(path="hidden", tar=packed({"secret": b"s3cret"}, 0o600), principal="trusted")
        expect.kind(await box.run(put), PutResult)
        script = 'cd "$TILTYARD_TRUSTED_DIR" && cat hidden/secret; sleep 1; cat hidden/secret'
        trusted = asyncio.create_task(box.exec(replace(box.shell_op(script), principal="trusted")))
        await asyncio.sleep(0.3)
        folder = "/run/tiltyard/trusted"
        attack = f"cat {folder}/hidden/secret; echo x > {folder}/hidden/secret; rm -rf {folder}/hidden; kill -9 -1"
        for principal in (0, 1):
            seen = await box.exec(replace(box.shell_op(attack), principal=principal))
            expect.that(b"s3cret" not in seen.stdout.head, f"principal {principal} not to read the trusted file")
        result = expect.succeeded(await trusted, "the trusted command")
        expect.equal(result.stdout.head, b"s3crets3cret", "what the trusted command read before and after")


@GROUP.negative(control=grader_box_runs_the_trusted_principal)
async def rollout_box_has_no_trusted_principal(rig: Rig) -> None:
    """A rollout's box never runs anything as its agent's user."""
    box = await rig.box()
    try:
        result = await box.run(replace(box.shell_op("id -u > trusted"), principal="trusted"))
    except TiltyardError:
        result = None
    expect.that(not (result and hasattr(result, "exit_code")), f"a refusal, found {result!r}")
    expect.equal((await box.sh("test -e trusted")).exit_code, 1, "the effect of what was refused")
