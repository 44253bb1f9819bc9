"""Lease, operation ids, acknowledgement, freeze: what at-most-once rests on."""

import asyncio

from orchestrator.conformance import expect
from orchestrator.conformance.model import Group
from orchestrator.conformance.rig import Box, Rig, leased
from orchestrator.errors import ReplayDiverged, RolloutClosed, SandboxError, SandboxLost, StaleLease
from orchestrator.models import CallKey, Epoch, JobId, RolloutKey, TraceId
from orchestrator.operations import (
    Delta,
    DeltaResult,
    Exec,
    ExecResult,
    Freeze,
    FreezeResult,
    Get,
    GetResult,
    List,
    Note,
    NoteResult,
    Operation,
    Read,
    Write,
)

GROUP = Group("protocol")

OTHER = RolloutKey(job=JobId("conformance"), trace_id=TraceId("other"))
COUNTING = "echo x >> runs; echo $$ >> runs; cat runs"
"""A command whose second run would be seen, in its output and in a file."""
REFUSALS = (SandboxError, StaleLease, RolloutClosed)


@GROUP.positive()
async def same_id_replays_the_same_result(rig: Rig) -> None:
    """An operation that is sent again runs once; its result is the first one's."""
    box = await rig.box()
    call, op = box.header(), box.shell_op(COUNTING)
    results = [await box.send(op, call) for _ in range(4)]
    expect.equal(results[1:], results[:1] * 3, "the replies")
    expect.equal(len((await box.text("cat runs")).splitlines()), 2, "lines that one run writes")


@GROUP.positive()
async def same_id_joins_the_running_operation(rig: Rig) -> None:
    """Ten requests for a running operation are one run with ten equal replies."""
    box = await rig.box()
    call, op = box.header(), box.shell_op("echo x >> runs; sleep 0.3; cat runs")
    results = await asyncio.gather(*(box.send(op, call) for _ in range(10)))
    expect.equal(expect.kind(results[0], ExecResult).stdout.head, b"x\n", "output")
    expect.equal(results, results[:1] * 10, "the replies")


@GROUP.positive()
async def every_kind_of_operation_replays(rig: Rig) -> None:
    """Not commands alone: writes, refusals and listings are replayed though the files have changed since."""
    box = await rig.box()
    ops: tuple[Operation, ...] = (
        Write(path=box.path("a"), data=b"1"),
        List(path=box.dir),
        Read(path=box.path("a")),
        Read(path=box.path("b")),
    )
    calls = [box.header() for _ in ops]
    first = [await box.send(op, call) for op, call in zip(ops, calls, strict=True)]
    await box.text("echo changed > a; echo new > b")
    again = [await box.send(op, call) for op, call in zip(ops, calls, strict=True)]
    expect.equal(again, first, "the replies")
    expect.equal(await box.text("cat a"), "changed\n", "the file that must not be written again")


@GROUP.negative(control=same_id_replays_the_same_result)
async def same_id_with_another_body_is_refused(rig: Rig) -> None:
    """Another operation under a known id never runs."""
    box = await rig.box()
    call = box.header()
    await box.send(box.shell_op("echo one"), call)
    others: tuple[Operation, ...] = (
        box.shell_op("echo two > two"),
        Write(path=box.path("two"), data=b"x"),
        Note(data=b"x"),
    )
    for other in others:
        await expect.raised(box.send(other, call), ReplayDiverged)
    expect.equal((await box.sh("test -e two")).exit_code, 1, "the effect of what was refused")


@GROUP.positive()
async def another_time_out_is_the_same_operation(rig: Rig) -> None:
    """A retry may come with another time-out; the first one stands."""
    box = await rig.box()
    call = box.header()
    results = [await box.send(box.shell_op(COUNTING, timeout_s=limit), call) for limit in (9.0, 8.5)]
    expect.equal(results[1], results[0], "the reply to the retry")


@GROUP.positive()
async def a_call_has_many_operations(rig: Rig) -> None:
    """Operations of a call follow each other; each is replayed by its own number."""
    box = await rig.box()
    call = box.header()
    ops = [box.shell_op(f"echo {number} >> order; cat order") for number in range(3)]
    first = [await box.send(op, call, number) for number, op in enumerate(ops)]
    again = [await box.send(op, call, number) for number, op in enumerate(ops)]
    expect.equal(again, first, "the replies")
    expect.equal(await box.text("cat order"), "0\n1\n2\n", "the effects, in order and once")


@GROUP.positive()
async def first_note_wins(rig: Rig) -> None:
    """A value is remembered once; every later one gets the first."""
    box = await rig.box()
    call = box.header()
    found = [await box.send(Note(data=data), call) for data in (b"first", b"second")]
    expect.equal(found, [NoteResult(data=b"first")] * 2, "the notes")


@GROUP.negative(control=same_id_replays_the_same_result)
async def acknowledged_call_never_runs_again(rig: Rig) -> None:
    """An acknowledged call leaves a tombstone: a late duplicate is refused, its effect stays single."""
    box = await rig.box()
    call, op = box.header(), box.shell_op("echo x >> runs")
    await box.send(op, call)
    await box.sandbox.acknowledge([call.key])
    await expect.raised(box.send(op, call), *REFUSALS)
    expect.equal(await box.text("cat runs"), "x\n", "the effect")


@GROUP.positive()
async def acknowledging_is_idempotent(rig: Rig) -> None:
    """The same call, many calls and unknown calls may be acknowledged, again and again."""
    box = await rig.box()
    calls = [box.header() for _ in range(3)]
    for call in calls:
        await box.send(Note(data=b"x"), call)
    for _ in range(2):
        await box.sandbox.acknowledge([call.key for call in calls] + [CallKey("neverseen")])
    await box.sandbox.acknowledge([])
    await box.alive()


@GROUP.negative(control=acknowledging_is_idempotent)
async def unknown_call_is_acknowledged_into_a_tombstone(rig: Rig) -> None:
    """An acknowledgement that overtakes its call wins: the call does not run afterwards."""
    box = await rig.box()
    call = box.header()
    await box.sandbox.acknowledge([call.key])
    await expect.raised(box.send(box.shell_op("echo x > ran"), call), *REFUSALS)
    expect.equal((await box.sh("test -e ran")).exit_code, 1, "the effect of what was refused")


@GROUP.positive()
async def pending_calls_come_back_in_order(rig: Rig) -> None:
    """Whoever takes the lease learns of every call that began and is not acknowledged, in order, with its header."""
    async with rig.own_box() as box:
        calls = [box.header(f"tool-{number}") for number in range(4)]
        for call in calls:
            await box.send(Note(data=b"x"), call)
        await box.send(Note(data=b"y"), calls[2], 1)
        await box.sandbox.acknowledge([calls[1].key])
        lease = await box.sandbox.lease(box.rollout, Epoch(2))
        found = [(call.key, call.sequence, call.tool, call.operations) for call in lease.pending]
        wanted = [
            (calls[n].key, calls[n].sequence, f"tool-{n}", operations) for n, operations in ((0, 1), (2, 2), (3, 1))
        ]
        expect.equal(found, wanted, "pending calls")


@GROUP.positive()
async def newer_epoch_takes_over(rig: Rig) -> None:
    """A new holder with a newer epoch works on in the same box, with what the old one did."""
    async with rig.own_box() as box:
        call, op = box.header(), box.shell_op("echo $$")
        first = await box.send(op, call)
        boot = (await box.sandbox.lease(box.rollout, Epoch(1))).boot_id
        again = await rig.backend.attach(box.id)
        try:
            taken = await again.lease(box.rollout, Epoch(7))
            expect.equal((taken.epoch, taken.boot_id, taken.frozen), (7, boot, False), "the new lease")
            successor = await leased(again, 7, box.rollout)
            expect.equal(await successor.send(op, call), first, "the replay for the new holder")
        finally:
            await again.aclose()


@GROUP.negative(control=newer_epoch_takes_over)
async def older_epoch_is_fenced(rig: Rig) -> None:
    """A host that lost its lease can do nothing in the box: no operation, no acknowledgement, no lease."""
    async with rig.own_box() as box:
        call = box.header()
        await box.send(Note(data=b"x"), call)
        again = await rig.backend.attach(box.id)
        try:
            successor = await leased(again, 7, box.rollout)
            await expect.raised(box.run(box.shell_op("echo x > stale")), StaleLease)
            await expect.raised(box.run(Freeze()), StaleLease)
            await expect.raised(box.run(Get(root=".", paths=("x",), max_bytes=10)), StaleLease)
            await expect.raised(box.sandbox.acknowledge([call.key]), StaleLease)
            await expect.raised(box.sandbox.lease(box.rollout, Epoch(6)), StaleLease)
            expect.equal((await successor.sh("test -e stale")).exit_code, 1, "the effect of what was refused")
        finally:
            await again.aclose()


@GROUP.negative(control=newer_epoch_takes_over)
async def another_rollout_is_refused(rig: Rig) -> None:
    """A leased box is nobody else's, whatever their epoch."""
    async with rig.own_box() as box:
        again = await rig.backend.attach(box.id)
        try:
            await expect.raised(again.lease(OTHER, Epoch(99)), SandboxLost, StaleLease)
        finally:
            await again.aclose()
        await box.alive()


@GROUP.negative(control=same_id_replays_the_same_result)
async def without_a_lease_nothing_runs(rig: Rig) -> None:
    """A connection that did not take the lease cannot work in the box."""
    async with rig.own_box() as box:
        again = await rig.backend.attach(box.id)
        stranger = Box(again, box.rollout, Epoch(1))
        try:
            op = Exec(argv=("touch", "stranger"), timeout_s=5)
            await expect.raised(stranger.run(op), *REFUSALS)
        finally:
            await again.aclose()
        expect.equal((await box.sh("test -e stranger")).exit_code, 1, "the effect of what was refused")


@GROUP.positive()
async def freeze_ends_every_command(rig: Rig) -> None:
    """Freezing kills what runs and what was left running, and is idempotent."""
    async with rig.own_box() as box:
        await box.text("(while true; do echo x >> beat; sleep 0.05; done) & sleep 0.2")
        running = asyncio.create_task(box.sh("sleep 30"))
        await box.run(Note(data=b"the command above has begun"))
        await asyncio.sleep(0.2)
        expect.kind(await box.run(Freeze()), FreezeResult)
        result = await asyncio.wait_for(running, 5)
        expect.equal(result.exit_code, None, "exit status of the command that ran")
        size = await _size(rig, box)
        await asyncio.sleep(0.4)
        expect.equal(await _size(rig, box), size, "the background process's file, before and after a while")
        expect.kind(await box.run(Freeze()), FreezeResult)


async def _size(rig: Rig, box: Box) -> int:
    delta = expect.kind(await box.run(Delta(root=".", manifest=rig.manifest)), DeltaResult)
    return max(change.size_bytes for change in delta.changes)


@GROUP.positive()
async def frozen_box_still_answers(rig: Rig) -> None:
    """After a freeze kept results are replayed, and the host reads what it needs as evidence."""
    async with rig.own_box() as box:
        call, op = box.header(), box.shell_op("echo kept > file; echo result")
        first = await box.send(op, call)
        await box.run(Freeze())
        expect.equal(await box.send(op, call), first, "the replay")
        delta = expect.kind(await box.run(Delta(root=".", manifest=rig.manifest)), DeltaResult)
        expect.equal([change.path for change in delta.changes], ["file"], "the delta")
        expect.kind(await box.run(Get(root=".", paths=("file",), max_bytes=100)), GetResult)
        expect.equal((await box.sandbox.lease(box.rollout, Epoch(2))).frozen, True, "frozen, as the lease tells")


@GROUP.negative(control=frozen_box_still_answers)
async def frozen_box_runs_nothing_new(rig: Rig) -> None:
    """After a freeze new operations are refused, of every kind."""
    async with rig.own_box() as box:
        await box.text("echo before > file")
        await box.run(Freeze())
        for op in (box.shell_op("echo x > after"), Write(path="after", data=b"x"), Note(data=b"x")):
            await expect.raised(box.run(op), *REFUSALS)
        delta = expect.kind(await box.run(Delta(root=".", manifest=rig.manifest)), DeltaResult)
        expect.equal([change.path for change in delta.changes], ["file"], "the files")
