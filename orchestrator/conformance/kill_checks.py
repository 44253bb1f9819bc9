"""Time-outs and cancelled callers: the whole tree of one command ends, and nothing of a command beside it."""

import asyncio
import time

from orchestrator.conformance import expect
from orchestrator.conformance.model import Group
from orchestrator.conformance.rig import Box, Rig, until
from orchestrator.operations import ExecResult

GROUP = Group("kill")

BEAT = "while true; do echo x >> beat; sleep 0.05; done"
"""A process that shows in a file that it lives."""
QUIET_S = 0.4
"""Several beats: a file that has not grown by then has nobody writing to it."""


async def _beats(box: Box) -> int:
    return len(await box.text("cat beat 2>/dev/null || true"))


async def _beating(box: Box) -> bool:
    before = await _beats(box)
    await asyncio.sleep(QUIET_S)
    return await _beats(box) > before


async def _timed_out(box: Box, script: str) -> None:
    """Run `script`, which starts a heart, into its time-out; then the heart must have stopped."""
    result = await box.sh(script, timeout_s=0.6)
    expect.that(result.timed_out, "a time-out")
    expect.that(await _beats(box) > 0, "the process to have lived before the time-out")
    expect.that(not await _beating(box), "the process to be dead after the time-out")


@GROUP.positive()
async def a_living_child_shows(rig: Rig) -> None:
    """The probe sees a background process that nobody killed, and sees it end."""
    box = await rig.box()
    pid = (await box.text(f"({BEAT}) & echo $!")).strip()
    expect.that(await _beating(box), "a background process to be seen alive")
    await box.text(f"kill -9 {pid}")

    async def still() -> bool:
        return not await _beating(box)

    await until(still, "a killed process to be seen dead")


@GROUP.positive()
async def time_out_is_reported_with_the_output_so_far(rig: Rig) -> None:
    """A time-out is a result: no exit status, what was printed until then, and it comes in time."""
    began = time.monotonic()
    result = await (await rig.box()).sh("echo early; sleep 20; echo never", timeout_s=0.4)
    expect.equal((result.timed_out, result.exit_code, result.stdout.head), (True, None, b"early\n"), "the result")
    expect.that(time.monotonic() - began < 5, "the reply soon after the time-out")


@GROUP.positive()
async def the_next_command_works(rig: Rig) -> None:
    """After a time-out the box is as usable as before."""
    box = await rig.box()
    await box.sh("sleep 20", timeout_s=0.2)
    await box.alive()


@GROUP.negative(control=a_living_child_shows, proves=("C18",))
async def time_out_kills_the_child(rig: Rig) -> None:
    """A child of a command whose time is over does not outlive it."""
    await _timed_out(await rig.box(), f"({BEAT}) & sleep 20")


@GROUP.negative(control=a_living_child_shows, proves=("C18",))
async def time_out_kills_the_double_forked(rig: Rig) -> None:
    """A process that let its parents die is killed too."""
    await _timed_out(await rig.box(), f"( ( ({BEAT}) & ) & ) ; sleep 20")


@GROUP.negative(control=a_living_child_shows, proves=("C18",))
async def time_out_kills_a_new_session(rig: Rig) -> None:
    """`setsid` and what `nohup` does, which not every image has, do not save a process."""
    await _timed_out(await rig.box(), f"(trap '' HUP; exec setsid sh -c '{BEAT}') >/dev/null 2>&1 & sleep 20")


@GROUP.negative(control=a_living_child_shows, proves=("C18",))
async def time_out_kills_what_ignores_sigterm(rig: Rig) -> None:
    """Ignoring SIGTERM does not save a process."""
    await _timed_out(await rig.box(), f"trap '' TERM HUP INT; setsid sh -c '{BEAT}' & sleep 20")


@GROUP.negative(control=a_living_child_shows, proves=("C18",))
async def time_out_kills_a_daemon(rig: Rig) -> None:
    """Double-forked, in a session of its own and ignoring signals, all at once."""
    await _timed_out(await rig.box(), f"trap '' TERM HUP; ( setsid sh -c '{BEAT}' >/dev/null 2>&1 & ) ; sleep 20")


@GROUP.positive()
async def time_out_spares_the_neighbour(rig: Rig) -> None:
    """A command beside the one whose time is over runs to its end."""
    box = await rig.box()
    neighbour = asyncio.create_task(box.sh("sleep 1.2; echo whole"))
    late = await box.sh("sleep 20 & sleep 20", timeout_s=0.3)
    result = await neighbour
    expect.that(late.timed_out, "the one command to time out")
    expect.equal((result.exit_code, result.stdout.head), (0, b"whole\n"), "the command beside it")


@GROUP.positive()
async def time_out_spares_earlier_background_work(rig: Rig) -> None:
    """What an earlier command left running is not part of a later command's tree."""
    box = await rig.box()
    pid = (await box.text(f"({BEAT}) & echo $!")).strip()
    await box.sh("sleep 20", timeout_s=0.3)
    beating = await _beating(box)
    await box.text(f"kill -9 {pid}")
    expect.that(beating, "the earlier background process to be alive")


@GROUP.positive()
async def cancelled_caller_leaves_the_command_running(rig: Rig) -> None:
    """A client that goes away does not end its command; the same operation id gets the result."""
    box = await rig.box()
    call = box.header()
    op = box.shell_op("echo begun > begun; sleep 0.6; echo ended > ended; echo result")
    caller = asyncio.create_task(box.send(op, call))

    async def begun() -> bool:
        return (await box.sh("test -s begun")).exit_code == 0

    await until(begun, "the command to begin")
    caller.cancel()
    await asyncio.gather(caller, return_exceptions=True)
    result = expect.kind(await box.send(op, call), ExecResult)
    expect.equal((result.exit_code, result.stdout.head), (0, b"result\n"), "the result for the retry")
    expect.equal(await box.text("cat ended"), "ended\n", "the command's last effect")


@GROUP.positive()
async def missed_deadline_leaves_the_command_running(rig: Rig) -> None:
    """A deadline that passes is a TimeoutError; the operation runs on and the same id joins it."""
    box = await rig.box()
    call, op = box.header(), box.shell_op("echo x >> ran; sleep 0.6; cat ran")
    try:
        early = await box.send(op, call, timeout_s=0.1)
    except TimeoutError:
        early = None
    expect.equal(early, None, "the answer before the command's end")
    result = expect.kind(await box.send(op, call), ExecResult)
    expect.equal(result.stdout.head, b"x\n", "the one run's output")
