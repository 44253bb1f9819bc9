"""Commands: what goes in, what comes out, how they end."""

import asyncio
import hashlib
import time

from orchestrator.conformance import expect
from orchestrator.conformance.model import Group
from orchestrator.conformance.rig import Rig, until
from orchestrator.operations import Exec, ExecResult, FailureCode

GROUP = Group("exec")

KNOWN_NAMES = frozenset(
    {"PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "LC_CTYPE", "TERM", "TMPDIR", "TZ"}
    | {"PWD", "OLDPWD", "SHLVL", "HOSTNAME", "PAGER", "GIT_PAGER", "_"}
)
OUR_PREFIXES = ("PYTHON", "PIP_", "GPG_KEY", "TILTYARD_CHECK")
"""What an image of an interpreter declares, and what checks give."""
TEXT = "Grüße, 世界, 😀: ß\n"


@GROUP.positive()
async def output_comes_back(rig: Rig) -> None:
    """What a command prints is returned with its exit status and exact size."""
    box = await rig.box()
    result = await box.sh("echo hello; echo again")
    expect.equal((result.exit_code, result.signal, result.timed_out), (0, None, False), "how the command ended")
    expect.equal(result.stdout.head, b"hello\nagain\n", "its output")
    expect.equal((result.stdout.total_bytes, result.stdout.cut_bytes), (12, 0), "bytes in all and bytes cut")


@GROUP.positive()
async def stderr_is_merged_in_order(rig: Rig) -> None:
    """By default both streams come as one, in the order in which they were written."""
    result = await (await rig.box()).sh("echo one; echo two >&2; echo three")
    expect.equal(result.stdout.head, b"one\ntwo\nthree\n", "merged output")


@GROUP.positive()
async def stderr_can_be_kept_apart(rig: Rig) -> None:
    """Where asked for, stderr is a stream of its own."""
    box = await rig.box()
    result = await box.exec(box.shell_op("echo out; echo err >&2", merge=False))
    expect.equal((result.stdout.head, result.stderr.head), (b"out\n", b"err\n"), "stdout and stderr")


@GROUP.positive()
async def utf8_output_is_whole(rig: Rig) -> None:
    """Text beyond ASCII comes back byte for byte."""
    box = await rig.box()
    result = await box.exec(Exec(argv=("printf", "%s", TEXT), timeout_s=10))
    expect.equal(result.stdout.head, TEXT.encode(), "output")


@GROUP.positive()
async def binary_output_is_unaltered(rig: Rig) -> None:
    """All 256 byte values pass through stdin and stdout."""
    data = bytes(range(256)) * 8
    result = await (await rig.box()).sh("cat", stdin=data)
    expect.equal(result.stdout.head, data, "output")


@GROUP.positive()
async def exit_statuses_are_kept(rig: Rig) -> None:
    """A non-zero exit is a result, not an error."""
    box = await rig.box()
    found = [(await box.sh(f"exit {status}")).exit_code for status in (0, 1, 77, 255)]
    expect.equal(found, [0, 1, 77, 255], "exit statuses")


@GROUP.positive()
async def death_by_signal_is_named(rig: Rig) -> None:
    """A command that a signal ended has no exit status but the signal's name, and is not taken for a time-out."""
    box = await rig.box()
    for number, name in ((9, "SIGKILL"), (15, "SIGTERM")):
        result = await box.sh(f"kill -{number} $$; sleep 5")
        found = (result.exit_code, result.signal, result.timed_out)
        expect.equal(found, (None, name, False), f"end by signal {number}")


@GROUP.positive()
async def large_binary_stdin_arrives_whole(rig: Rig) -> None:
    """Two megabytes of binary stdin reach the command unaltered."""
    data = hashlib.sha256(b"seed").digest() * 65_536
    result = await (await rig.box()).sh("sha256sum", stdin=data)
    expect.that(hashlib.sha256(data).hexdigest().encode() in result.stdout.head, "the hash of what was sent")


@GROUP.positive()
async def empty_stdin_is_at_its_end(rig: Rig) -> None:
    """A command that reads stdin where none was given does not hang."""
    result = await (await rig.box()).sh("cat; echo done", timeout_s=5)
    expect.equal(result.stdout.head, b"done\n", "output")


@GROUP.positive()
async def unread_stdin_does_no_harm(rig: Rig) -> None:
    """A command may end without reading its stdin."""
    result = await (await rig.box()).sh("exit 4", stdin=b"x" * 1_000_000)
    expect.equal(result.exit_code, 4, "exit status")


@GROUP.positive()
async def environment_is_given(rig: Rig) -> None:
    """Variables of the operation reach the command, whatever they hold."""
    box = await rig.box()
    value = "a b\n$HOME 'quoted' =; ä"
    result = await box.exec(box.shell_op('printf %s "$TILTYARD_CHECK"', env={"TILTYARD_CHECK": value}))
    expect.equal(result.stdout.head, value.encode(), "the variable's value")


@GROUP.negative(control=environment_is_given, proves=("C23",))
async def environment_holds_nothing_else(rig: Rig) -> None:
    """A command finds the box's own few variables, nothing of the machine or the agent."""
    lines = (await (await rig.box()).text("env")).splitlines()
    names = {line.partition("=")[0] for line in lines}
    strangers = sorted(name for name in names - KNOWN_NAMES if not name.startswith(OUR_PREFIXES))
    expect.equal(strangers, [], "variables that nobody asked for")


@GROUP.positive()
async def commands_start_in_the_workspace(rig: Rig) -> None:
    """Without a folder of its own a command starts in the workspace."""
    box = await rig.box()
    result = await box.exec(Exec(argv=("pwd",), timeout_s=10))
    expect.equal(result.stdout.head.decode().strip(), rig.spec.workdir, "working directory")


@GROUP.positive()
async def working_directory_is_honoured(rig: Rig) -> None:
    """A folder may be given relative to the workspace or absolute."""
    box = await rig.box()
    await box.text("mkdir -p deep/er")
    for cwd in (box.path("deep/er"), f"{rig.spec.workdir}/{box.path('deep/er')}"):
        result = await box.exec(Exec(argv=("pwd",), cwd=cwd, timeout_s=10))
        expect.that(result.stdout.head.endswith(b"/deep/er\n"), f"a working directory of deep/er for {cwd}")


@GROUP.negative(control=working_directory_is_honoured)
async def missing_working_directory_is_refused(rig: Rig) -> None:
    """A folder that is not there is the caller's mistake; nothing runs elsewhere instead."""
    result = await (await rig.box()).run(Exec(argv=("pwd",), cwd="no/such/folder", timeout_s=10))
    expect.refused(result, FailureCode.CANNOT_START, FailureCode.NOT_FOUND)


@GROUP.negative(control=output_comes_back)
async def missing_program_is_refused(rig: Rig) -> None:
    """A program that is not there is a refusal, not an exit status."""
    result = await (await rig.box()).run(Exec(argv=("no-such-program", "x"), timeout_s=10))
    expect.refused(result, FailureCode.CANNOT_START, FailureCode.NOT_FOUND)


@GROUP.positive()
async def shell_tells_unknown_commands(rig: Rig) -> None:
    """A shell that finds no such command exits with 127."""
    expect.equal((await (await rig.box()).sh("no-such-program")).exit_code, 127, "exit status")


@GROUP.positive()
async def arguments_are_not_interpreted(rig: Rig) -> None:
    """Arguments reach the program as they are: blanks, dollars, empty ones."""
    box = await rig.box()
    result = await box.exec(Exec(argv=("printf", "%s|", "a b", "$HOME", "", "*", "'"), timeout_s=10))
    expect.equal(result.stdout.head, b"a b|$HOME||*|'|", "arguments as the program saw them")


async def _capped(rig: Rig, size: int, limit: int) -> ExecResult:
    return await (await rig.box()).sh("cat", stdin=bytes(65 + i % 26 for i in range(size)), limit=limit)


@GROUP.positive(proves=("C17",))
async def output_below_and_at_its_cap_is_whole(rig: Rig) -> None:
    """Output of limit - 1 and of limit bytes is returned uncut."""
    for size in (1023, 1024):
        output = (await _capped(rig, size, 1024)).stdout
        found = (len(output.head) + len(output.tail), output.cut_bytes, output.total_bytes)
        expect.equal(found, (size, 0, size), f"kept, cut and total for {size} bytes under a cap of 1024")


@GROUP.negative(control=output_below_and_at_its_cap_is_whole, proves=("C17",))
async def output_above_its_cap_is_cut(rig: Rig) -> None:
    """One byte more than the limit: head and tail are kept, within the limit, and the cut is stated in bytes."""
    for size in (1025, 50_000):
        output = (await _capped(rig, size, 1024)).stdout
        kept = len(output.head) + len(output.tail)
        sent = bytes(65 + i % 26 for i in range(size))
        expect.that(1000 <= kept <= 1024, f"about 1024 bytes kept of {size}, found {kept}")
        expect.equal((output.cut_bytes, output.total_bytes), (size - kept, size), "cut and total")
        expect.that(min(len(output.head), len(output.tail)) >= 500, "half of it from the head, half from the tail")
        expect.that(sent.startswith(output.head) and sent.endswith(output.tail), "the true head and tail")


@GROUP.positive(proves=("C17",))
async def cut_never_splits_a_character(rig: Rig) -> None:
    """Head and tail of cut text are whole UTF-8, whatever the alignment."""
    for shift in range(4):
        data = b"x" * shift + "😀".encode() * 2000
        output = (await (await rig.box()).sh("cat", stdin=data, limit=1001)).stdout
        expect.that(output.cut_bytes > 0, "a cut")
        for part in (output.head, output.tail):
            expect.that(part.decode("utf-8", "ignore").encode() == part, f"whole characters with shift {shift}")


@GROUP.positive(proves=("C17",))
async def caps_are_per_stream(rig: Rig) -> None:
    """A flood on one stream leaves the other whole."""
    box = await rig.box()
    result = await box.exec(box.shell_op("cat >&2; echo fine", stdin=b"e" * 20_000, limit=1000, merge=False))
    expect.equal((result.stdout.head, result.stdout.cut_bytes), (b"fine\n", 0), "the quiet stream")
    expect.that(result.stderr.cut_bytes >= 19_000, "the flood to be cut")


@GROUP.positive(proves=("C16", "C18"))
async def endless_output_ends_at_the_time_out(rig: Rig) -> None:
    """`yes` is capped, killed when its time is over, and the box goes on."""
    box = await rig.box()
    result = await box.sh("yes", timeout_s=0.5, limit=4096)
    expect.that(result.timed_out and result.stdout.cut_bytes > 0, "a time-out with cut output")
    expect.that(len(result.stdout.head) + len(result.stdout.tail) <= 4096, "output within its cap")
    await box.alive()


@GROUP.positive()
async def background_child_does_not_hold_the_reply(rig: Rig) -> None:
    """The reply comes when the command's own process ends, though a child keeps its pipes open."""
    box = await rig.box()
    began = time.monotonic()
    result = await box.sh("sleep 20 & echo started", timeout_s=15)
    expect.equal(result.stdout.head, b"started\n", "output")
    expect.that(time.monotonic() - began < 5, "the reply at once, not when the child ends")


@GROUP.positive()
async def background_child_lives_on(rig: Rig) -> None:
    """What a command left in the background runs on after its reply."""
    box = await rig.box()
    await box.text("(sleep 0.3; echo late > late) & echo $!")

    async def there() -> bool:
        return (await box.sh("test -s late")).exit_code == 0

    await until(there, "the background child's file")


@GROUP.positive()
async def late_output_goes_nowhere(rig: Rig) -> None:
    """What a background child prints after the reply is in nobody's output."""
    box = await rig.box()
    await box.text("(sleep 0.2; echo LATE; echo done > done) & true")
    outputs: list[str] = []

    async def over() -> bool:
        outputs.append(await box.text("echo mine"))
        return (await box.sh("test -s done")).exit_code == 0

    await until(over, "the background child's end")
    expect.equal(set(outputs), {"mine\n"}, "output of the commands beside it")


@GROUP.positive()
async def many_commands_run_at_once(rig: Rig) -> None:
    """Forty commands at once: each has its own output."""
    box = await rig.box()
    results = await asyncio.gather(*(box.sh(f"echo {number}") for number in range(40)))
    expect.equal([result.stdout.head for result in results], [b"%d\n" % n for n in range(40)], "outputs")


@GROUP.positive()
async def commands_do_not_wait_for_each_other(rig: Rig) -> None:
    """A slow command holds up no other."""
    box = await rig.box()
    slow = asyncio.create_task(box.sh("sleep 1"))
    try:
        await box.text("true")
        expect.that(not slow.done(), "a quick command to end before the slow one that began before it")
    finally:
        await slow


@GROUP.positive()
async def events_have_their_own_channel(rig: Rig) -> None:
    """With `events` descriptor 3 leads to the agent, apart from the output."""
    box = await rig.box()
    result = await box.exec(box.shell_op("echo seen; echo told >&3", events=True))
    expect.equal((result.stdout.head, result.events), (b"seen\n", b"told\n"), "output and events")


@GROUP.negative(control=events_have_their_own_channel)
async def without_events_there_is_no_channel(rig: Rig) -> None:
    """A command that was given no events channel finds none."""
    result = await (await rig.box()).sh("(echo told >&3) 2>/dev/null || echo none")
    expect.equal((result.stdout.head, result.events), (b"none\n", b""), "output and events")
