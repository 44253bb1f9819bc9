"""Named shells: what they keep from call to call, what ends them, and that the end of one is told and costs nothing else."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from orchestrator.conformance import expect
from orchestrator.conformance.model import Group
from orchestrator.conformance.rig import SLACK_S, Box, Rig, leased, until
from orchestrator.operations import (
    ExecResult,
    Failure,
    FailureCode,
    Freeze,
    FreezeResult,
    OperationResult,
    Session,
    SessionFate,
    SessionResult,
    Started,
)

GROUP = Group("session")
KEPT, RESTARTED, ENDED = SessionFate.KEPT, SessionFate.RESTARTED, SessionFate.ENDED
RECOVERY_S = 40.0
"""What an agent may take over the time-out until a shell that does not come back is replaced, on a machine with other work."""
MAX_SESSIONS = 8


class Talk:
    """One session of a box: a script per line."""

    def __init__(self, box: Box, name: str, *, tty: bool = False) -> None:
        self.box = box
        self.name = name
        self._tty = tty

    def op(self, script: str, *, timeout_s: float = 20.0, limit: int = 65_536) -> Session:
        return Session(name=self.name, script=script, timeout_s=timeout_s, tty=self._tty, output_limit_bytes=limit)

    async def ask(self, script: str, *, timeout_s: float = 20.0, limit: int = 65_536) -> OperationResult:
        op = self.op(script, timeout_s=timeout_s, limit=limit)
        return await self.box.run(op, timeout_s=timeout_s + RECOVERY_S)

    async def run(self, script: str, *, timeout_s: float = 20.0, limit: int = 65_536) -> SessionResult:
        return expect.kind(await self.ask(script, timeout_s=timeout_s, limit=limit), SessionResult)

    async def text(self, script: str) -> str:
        """What a script printed that must succeed and leave the session."""
        result = await self.run(script)
        expect.equal((result.exit_code, result.fate), (0, KEPT), f"status and session after {script!r}")
        return (result.output.head + result.output.tail).decode("utf-8", "replace")

    async def hang(self, script: str) -> SessionResult:
        result = await self.run(script, timeout_s=0.6)
        expect.equal(
            (result.timed_out, result.exit_code, result.signal), (True, None, None), "the end of a hung script"
        )
        return result


@asynccontextmanager
async def talk(rig: Rig, *, tty: bool = False) -> AsyncIterator[Talk]:
    """A session of the shared box, in this check's folder, ended afterwards."""
    box = await rig.box()
    talking = Talk(box, box.dir, tty=tty)
    await talking.text(f"cd {box.dir}")
    yield talking
    await talking.run("exit")


@GROUP.positive()
async def folder_and_variables_are_kept(rig: Rig) -> None:
    """Working directory and variables, exported ones too, are there in the next call."""
    async with talk(rig) as session:
        await session.text("mkdir deep; cd deep; A=1; export B='two words'")
        told = await session.text('pwd; echo "$A $B"; sh -c "echo \\$B"')
        expect.that(told.endswith("/deep\n1 two words\ntwo words\n"), f"folder and variables, found {told!r}")


@GROUP.positive()
async def functions_are_kept(rig: Rig) -> None:
    """A function of one call can be called in the next."""
    async with talk(rig) as session:
        await session.text("hello() { echo hello $1; }")
        expect.equal(await session.text("hello you"), "hello you\n", "what the function printed")


@GROUP.positive()
async def the_first_use_starts_it(rig: Rig) -> None:
    """A session starts in the workspace, at the first use of its name, and says so."""
    async with rig.own_box() as box:
        session = Talk(box, "Main_1-a")
        first = await session.run("pwd")
        expect.equal(first.output.head.decode().strip(), rig.spec.workdir, "the first call's folder")
        expect.equal((first.started, (await session.run("true")).started), (Started.FIRST, Started.NO), "started")


@GROUP.positive()
async def sessions_are_apart(rig: Rig) -> None:
    """Two sessions know nothing of each other's folders and variables; a plain command knows nothing of either."""
    async with rig.own_box() as box:
        one, two = Talk(box, "one"), Talk(box, "two")
        await one.text("mkdir sub; cd sub; export A=1")
        expect.equal(await two.text('echo "[$A]"; pwd'), f"[]\n{rig.spec.workdir}\n", "the other session")
        expect.equal(await box.text('echo "[$A]"'), "[]\n", "a plain command")
        expect.equal(await one.text('echo "[$A]"'), "[1]\n", "the first one, afterwards")


@GROUP.positive()
async def status_and_both_streams_come_back(rig: Rig) -> None:
    """The script's status is told, stdout and stderr come as one; a failure does not end the session."""
    async with talk(rig) as session:
        result = await session.run("echo out; echo err >&2; sh -c 'exit 7'")
        expect.equal((result.exit_code, result.fate, result.output.head), (7, KEPT, b"out\nerr\n"), "the result")


@GROUP.positive()
async def stdin_is_empty(rig: Rig) -> None:
    """Who reads from stdin finds its end at once."""
    async with talk(rig) as session:
        expect.equal(await session.text("cat; read x || echo none"), "none\n", "what was read")


@GROUP.positive()
async def descriptors_are_new_for_each_call(rig: Rig) -> None:
    """Closing or redirecting its streams costs a script its own output, never the next one's."""
    async with talk(rig) as session:
        for script in (
            "exec 1>&- 2>&-",
            "exec >/dev/null 2>&1",
            "exec 3>/dev/null 4>/dev/null 5>/dev/null",
            "exec 0<&-",
        ):
            expect.equal((await session.run(script)).fate, KEPT, f"the session after {script}")
            expect.equal(await session.text("echo hi"), "hi\n", f"output after {script}")


@GROUP.positive()
async def here_documents_work(rig: Rig) -> None:
    """Quoted and unquoted here-documents."""
    async with talk(rig) as session:
        told = await session.text("A=1\ncat <<X\n$A\nX\ncat <<'Y'\n$A\nY\n")
        expect.equal(told, "1\n$A\n", "the documents")


@GROUP.positive()
async def a_large_script_runs(rig: Rig) -> None:
    """A script of a mebibyte."""
    async with talk(rig) as session:
        expect.equal(await session.text("x=" + "y" * (1 << 20) + "\necho end"), "end\n", "output")


@GROUP.negative(control=a_large_script_runs)
async def a_script_with_nul_is_refused(rig: Rig) -> None:
    """No shell can be given a NUL byte; the session lives on."""
    async with talk(rig) as session:
        await session.text("A=1")
        expect.refused(await session.ask("echo a\0b"), FailureCode.CANNOT_START)
        expect.equal(await session.text("echo $A"), "1\n", "the session afterwards")


@GROUP.positive()
async def a_syntax_error_is_only_a_status(rig: Rig) -> None:
    """Unterminated quotes and the like neither end the session nor swallow the next call."""
    async with talk(rig) as session:
        await session.text("A=1")
        for script in ('echo "open', "if true; then", "( echo", "echo 'open", "do"):
            result = await session.run(script)
            expect.that(
                result.exit_code not in (0, None) and result.fate is KEPT, f"a failure and a session for {script!r}"
            )
            expect.equal(await session.text("echo $A"), "1\n", f"the next call after {script!r}")


@GROUP.positive()
async def its_own_end_is_told(rig: Rig) -> None:
    """`exit` and `exec` end the session with their status; the next use starts a fresh one and says so."""
    async with talk(rig) as session:
        for script, code in (("exit 3", 3), ("exec true", 0), ("exec sh -c 'exit 4'", 4)):
            await session.run("A=1")
            result = await session.run(f"echo before; {script}; echo after")
            found = (result.exit_code, result.fate, result.output.head)
            expect.equal(found, (code, ENDED, b"before\n"), f"the end by {script}")
            again = await session.run('echo "[$A]"')
            expect.equal((again.started, again.output.head), (Started.AGAIN, b"[]\n"), "the call after it")
            expect.equal((await session.run("true")).started, Started.NO, "the call after that")


@GROUP.positive()
async def a_kill_of_its_shell_is_told(rig: Rig) -> None:
    """A shell that kills itself ends the session, and that alone."""
    async with talk(rig) as session:
        result = await session.run("kill -9 $$")
        expect.equal((result.exit_code, result.signal, result.fate), (None, "SIGKILL", ENDED), "the end")
        expect.equal((await session.run("true")).started, Started.AGAIN, "the call after it")
        await session.box.alive()


@GROUP.positive()
async def a_kill_from_outside_is_told(rig: Rig) -> None:
    """A shell that another command kills between two calls: the next one starts a fresh one and says so."""
    async with talk(rig) as session:
        pid = (await session.text("echo $$")).strip()
        await session.box.text(f"kill -9 {pid}")

        async def gone() -> bool:
            return (await session.run("true")).started is Started.AGAIN

        await until(gone, "a fresh shell")


@GROUP.positive()
async def errexit_ends_it(rig: Rig) -> None:
    """`set -e` does what it says: the failure ends the script, and with it the shell."""
    async with talk(rig) as session:
        result = await session.run("set -e; echo before; false; echo after")
        expect.equal((result.exit_code, result.fate, result.output.head), (1, ENDED, b"before\n"), "the end")


HANGS = ("sleep 30; echo never", "while true; do sleep 0.05; done", "sleep 30 | cat", "sleep 30 & wait", "(sleep 30)")


@GROUP.positive(limit_s=90)
async def a_hung_program_is_interrupted(rig: Rig) -> None:
    """What hangs is killed at the time-out, the rest of its script is not run, and the session goes on."""
    async with talk(rig) as session:
        await session.text("A=1")
        for script in HANGS:
            hung = await session.hang(f"echo early; {script}")
            expect.equal((hung.fate, hung.output.head[:6]), (KEPT, b"early\n"), f"session and output of {script!r}")
            expect.that(b"never" not in hung.output.head, "the rest of the script not to run")
            expect.equal(await session.text("echo $A"), "1\n", f"the session after {script!r}")


@GROUP.positive()
async def a_hung_builtin_is_interrupted(rig: Rig) -> None:
    """An endless loop of the shell itself is interrupted, also after an earlier call unset the traps."""
    async with talk(rig) as session:
        for before in ("A=1", "trap - INT"):
            await session.text(before)
            expect.equal((await session.hang("while :; do :; done")).fate, KEPT, f"the session, after {before}")
        expect.equal(await session.text("echo $A"), "1\n", "the session afterwards")


@GROUP.positive(limit_s=90)
async def a_shell_that_ignores_interrupts_is_replaced(rig: Rig) -> None:
    """It is killed; a fresh one has its folder and exported variables, and the result says so."""
    async with talk(rig) as session:
        await session.text('A=1; export B="it\'s two"; mkdir "a b"; cd "a b"')
        hung = await session.hang("trap '' INT; while :; do :; done")
        expect.equal(hung.fate, RESTARTED, "the session")
        told = await session.text('echo "[$A]$B"; pwd')
        expect.that(told.startswith("[]it's two\n") and told.endswith("/a b\n"), f"what was taken over, found {told!r}")


@GROUP.positive()
async def a_time_out_leaves_no_strays(rig: Rig) -> None:
    """Processes in sessions of their own, double-forked and deaf to signals, end with the call."""
    async with talk(rig) as session:
        beat = "while true; do echo x >> beat; sleep 0.05; done"
        await session.hang(f"trap '' TERM HUP; ( setsid sh -c '{beat}' >/dev/null 2>&1 & ) ; sleep 30")
        before = await session.text("cat beat")
        expect.that(before, "the process to have lived before the time-out")
        await asyncio.sleep(0.4)
        expect.equal(await session.text("cat beat"), before, "the file that it wrote to, later")


@GROUP.positive()
async def a_time_out_spares_earlier_background_work(rig: Rig) -> None:
    """What an earlier call left running, and a plain command beside, live on."""
    async with talk(rig) as session:
        await session.text("sleep 60 & P=$!")
        beside = asyncio.create_task(session.box.sh("sleep 1.5; echo whole"))
        expect.equal((await session.hang("sleep 30")).fate, KEPT, "the session")
        expect.equal(await session.text("kill -0 $P && echo lives"), "lives\n", "the earlier background process")
        expect.equal((await beside).stdout.head, b"whole\n", "the command beside")
        await session.text("kill -9 $P")


@GROUP.positive()
async def output_is_capped(rig: Rig) -> None:
    """Head and tail of a flood are kept, the cut is stated, and the next call has none of it."""
    async with talk(rig) as session:
        await session.box.write("flood", b"x" * 300_000)
        flood = (await session.run("cat flood; echo END", limit=1000)).output
        expect.equal((len(flood.head), flood.tail[-4:], flood.total_bytes), (500, b"END\n", 300_004), "the kept output")
        endless = await session.run("yes", timeout_s=0.6, limit=4096)
        expect.that(endless.timed_out and endless.output.cut_bytes > 0, "a time-out with cut output")
        expect.equal(await session.text("echo quiet"), "quiet\n", "the next call")


@GROUP.positive()
async def bytes_come_as_they_are(rig: Rig) -> None:
    """Output that is no text comes byte for byte."""
    async with talk(rig) as session:
        data = bytes(range(256)) * 40
        await session.box.write("bytes", data)
        expect.equal((await session.run("cat bytes")).output.head, data, "the output")


@GROUP.positive()
async def background_output_between_calls_is_dropped(rig: Rig) -> None:
    """What a background job prints between two calls is in nobody's output, and blocks it not."""
    async with talk(rig) as session:
        await session.text("(sleep 0.3; head -c 200000 /dev/zero; echo done > done) &")

        async def over() -> bool:
            return (await session.box.sh("test -s done")).exit_code == 0

        await until(over, "the background job's end")
        expect.equal(await session.text("echo mine"), "mine\n", "the next call's output")


@GROUP.positive()
async def a_removed_folder_is_no_end(rig: Rig) -> None:
    """A session whose folder was removed can go elsewhere."""
    async with talk(rig) as session:
        await session.run("mkdir gone; cd gone; rmdir ../gone")
        told = await session.text("cd /; pwd")
        expect.that(told.endswith("/\n"), f"to be in /, found {told!r}")  # a shell may complain first


@GROUP.positive()
async def a_retry_runs_nothing_again(rig: Rig) -> None:
    """The same operation id gets the kept result, and has one effect."""
    async with talk(rig) as session:
        call, op = session.box.header(), session.op("echo x >> ran; cat ran")
        first = await session.box.send(op, call)
        expect.equal(await session.box.send(op, call), first, "the result for the retry")
        expect.equal(await session.text("cat ran"), "x\n", "the script's effect")


@GROUP.positive()
async def a_retry_joins_the_running_script(rig: Rig) -> None:
    """A caller that goes away ends nothing; the same operation id gets the result."""
    async with talk(rig) as session:
        call, op = session.box.header(), session.op("echo x >> ran; sleep 0.6; cat ran")
        caller = asyncio.create_task(session.box.send(op, call))

        async def begun() -> bool:
            return (await session.box.sh("test -s ran")).exit_code == 0

        await until(begun, "the script to begin")
        caller.cancel()
        await asyncio.gather(caller, return_exceptions=True)
        result = expect.kind(await session.box.send(op, call), SessionResult)
        expect.equal((result.exit_code, result.output.head), (0, b"x\n"), "the result for the retry")


@GROUP.positive()
async def calls_of_one_session_wait_for_each_other(rig: Rig) -> None:
    """A second call of a session begins when the first has ended; one of another session does not wait."""
    async with talk(rig) as session:
        slow = asyncio.create_task(session.run("echo x > begun; sleep 0.6; echo slow >> order"))

        async def begun() -> bool:
            return (await session.box.sh("test -s begun")).exit_code == 0

        await until(begun, "the slow call to begin")
        other = Talk(session.box, f"{session.name}-b")
        await asyncio.gather(session.run("echo next >> order"), other.run(f"cd {session.box.dir}; echo other >> order"))
        await slow
        expect.equal(await session.text("cat order"), "other\nslow\nnext\n", "the order of effects")
        await other.run("exit")


@GROUP.positive()
async def sessions_outlive_their_host(rig: Rig) -> None:
    """After adoption (a new connection, a newer epoch) the session is as it was."""
    async with rig.own_box() as box:
        await Talk(box, "main").text("A=1; mkdir sub; cd sub")
        again = await leased(await rig.backend.attach(box.id), 2, box.rollout)
        try:
            told = await Talk(again, "main").text("echo $A; pwd")
            expect.equal(told, f"1\n{rig.spec.workdir}/sub\n", "the session under the new lease")
        finally:
            await again.sandbox.aclose()


@GROUP.positive()
async def their_number_is_limited(rig: Rig) -> None:
    """Beyond eight a new name is refused, those that run go on, and one that ends makes room."""
    async with rig.own_box() as box:
        for number in range(MAX_SESSIONS):
            await Talk(box, f"s{number}").text("A=1")
        expect.refused(await Talk(box, "more").ask("true"), FailureCode.CANNOT_START)
        expect.equal(await Talk(box, "s7").text("echo $A"), "1\n", "one of the eight")
        expect.equal((await Talk(box, "s3").run("exit 0")).fate, ENDED, "the one that makes room")
        expect.equal((await Talk(box, "more").run("true")).started, Started.FIRST, "the new one")


@GROUP.positive()
async def a_freeze_ends_them(rig: Rig) -> None:
    """A script that runs is killed by the freeze, and nothing of any session is left."""
    async with rig.own_box() as box:
        await Talk(box, "idle").text("A=1")
        call, op = box.header(), Talk(box, "busy").op("echo x > begun; sleep 30")
        running = asyncio.create_task(box.send(op, call, timeout_s=20 + SLACK_S))

        async def begun() -> bool:
            return (await box.sh("test -s begun")).exit_code == 0

        await until(begun, "the script to begin")
        expect.kind(await box.run(Freeze()), FreezeResult)
        result = expect.kind(await running, SessionResult)
        expect.equal((result.fate, result.signal), (ENDED, "SIGKILL"), "the script that ran")
        expect.equal(await box.send(op, call), result, "its kept result")


@GROUP.positive()
async def a_plain_command_has_no_terminal(rig: Rig) -> None:
    """Neither a command nor a session without `tty` is given a terminal."""
    async with talk(rig) as session:
        script = "test -t 0 || test -t 1 || test -t 2 || echo none"
        expect.equal((await session.text(script), await session.box.text(script)), ("none\n", "none\n"), "terminals")


@GROUP.positive()
async def a_terminal_on_request(rig: Rig) -> None:
    """With `tty` all three streams are a terminal of 80 x 24 without echo, and output is whole and in order."""
    async with talk(rig, tty=True) as session:
        told = await session.text("test -t 0 && test -t 1 && test -t 2 && echo terminal; stty size; A=1")
        expect.equal(told, "terminal\n24 80\n", "what the terminal is")
        for lines in (10, 3000):
            wanted = "".join(f"{number}\n" for number in range(1, lines + 1))
            expect.equal(await session.text(f"seq 1 {lines}"), wanted, f"{lines} lines")
        for script in ("cat", "read x"):
            expect.equal((await session.hang(script)).fate, KEPT, f"the session after a hung {script}")
        expect.equal(await session.text("echo $A"), "1\n", "the session afterwards")


@GROUP.negative(control=a_terminal_on_request)
async def a_session_does_not_change_its_terminal(rig: Rig) -> None:
    """A session without a terminal refuses a call that wants one, and lives on."""
    async with talk(rig) as session:
        await session.text("A=1")
        expect.kind(await Talk(session.box, session.name, tty=True).ask("true"), Failure)
        expect.equal(await session.text("echo $A"), "1\n", "the session afterwards")


@GROUP.positive()
async def a_plain_command_does_not_wait_for_sessions(rig: Rig) -> None:
    """A hung session holds up no command."""
    async with talk(rig) as session:
        hung = asyncio.create_task(session.hang("sleep 30"))
        result = expect.kind(await session.box.run(session.box.shell_op("echo quick")), ExecResult)
        expect.equal(
            (result.stdout.head, hung.done()), (b"quick\n", False), "the command's output, before the session's end"
        )
        await hung
