"""Named shells against the real agent: what they keep, what ends them, what a hung one leaves."""

import asyncio
from pathlib import Path

import pytest

from orchestrator.models import Epoch
from orchestrator.operations import (
    Failure,
    FailureCode,
    Freeze,
    OperationResult,
    Session,
    SessionFate,
    SessionResult,
    Started,
)
from tests.agent.conftest import ROLLOUT, Box, until
from tests.needs import needs

pytestmark = [pytest.mark.anyio, needs("root")]
KEPT, RESTARTED, LOST, ENDED = SessionFate.KEPT, SessionFate.RESTARTED, SessionFate.LOST, SessionFate.ENDED


async def asked(box: Box, script: str, *, name: str = "main", timeout_s: float = 10, **more: object) -> OperationResult:
    return await box.run(Session(name=name, script=script, timeout_s=timeout_s, **more))  # type: ignore[arg-type]


async def run(box: Box, script: str, *, name: str = "main", timeout_s: float = 10, **more: object) -> SessionResult:
    result = await asked(box, script, name=name, timeout_s=timeout_s, **more)
    assert isinstance(result, SessionResult), result
    return result


async def text(box: Box, script: str, *, name: str = "main", tty: bool = False, **more: int) -> str:
    result = await run(box, script, name=name, tty=tty, **more)
    assert (result.exit_code, result.fate) == (0, KEPT), result
    return (result.output.head + result.output.tail).decode()


async def test_a_session_keeps_what_a_shell_keeps(box: Box) -> None:
    first = await run(box, "mkdir -p d; cd d; A=1; export B=2; f() { echo fun; }; umask 027; set -- x y")
    assert (first.started, first.fate, first.exit_code, first.output.total_bytes) == (Started.FIRST, KEPT, 0, 0)
    second = await run(box, "pwd; echo $A $B $1 $2; f; umask; id -u")
    assert second.started is Started.NO
    assert second.output.head.decode().split() == [
        *(str(box.workspace / "d"), "1", "2", "x", "y", "fun", "0027", str(box.uid))
    ]


async def test_two_sessions_know_nothing_of_each_other(box: Box) -> None:
    await asyncio.gather(run(box, "A=one; cd /", name="one"), run(box, "A=two", name="two"))
    assert await text(box, "echo $A; pwd", name="one") == "one\n/\n"
    assert await text(box, "echo $A; pwd", name="two") == f"two\n{box.workspace}\n"


async def test_status_and_both_streams(box: Box) -> None:
    result = await run(box, "echo out; echo err >&2; (exit 7)")
    assert (result.exit_code, result.fate, result.output.head) == (7, KEPT, b"out\nerr\n")


async def test_scripts_have_no_descriptor_but_their_own(box: Box) -> None:
    assert (await text(box, "ls /proc/self/fd")).split() == ["0", "1", "2", "3"], "and the listing's own"
    assert await text(box, "read x; echo $?; readlink /proc/self/fd/0") == "1\n/dev/null\n"


async def test_scripts_cannot_be_found_or_changed(box: Box) -> None:
    folder = box.root / "run" / "sessions"
    assert f"{folder}/" in await text(box, 'echo "${BASH_SOURCE[0]}"')
    probe = f"ls {folder} 2>/dev/null; (echo x > {folder}/main) 2>/dev/null; (: > {folder}/new) 2>/dev/null; echo end"
    assert await text(box, probe) == "end\n"
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("script", "code", "signal"),
    [
        ("exit 3", 3, None),
        ("exec true", 0, None),
        ("exec false", 1, None),
        ("kill -9 $$", None, "SIGKILL"),
        ("set -e; false", 1, None),
    ],
)
async def test_the_shells_own_end_is_told(box: Box, script: str, code: int | None, signal: str | None) -> None:
    await run(box, "A=1")
    ended = await run(box, f"echo before; {script}; echo after")
    assert (ended.exit_code, ended.signal, ended.fate, ended.output.head) == (code, signal, ENDED, b"before\n")
    again = await run(box, 'echo "[$A]"')
    assert (again.started, again.fate, again.output.head) == (Started.AGAIN, KEPT, b"[]\n")
    assert (await run(box, "true")).started is Started.NO


async def test_a_shell_killed_between_calls_is_told(box: Box) -> None:
    pid = (await text(box, "echo $$")).strip()
    await box.text(f"kill -9 {pid}")
    await until(lambda: not box.pids(), "the shell to be gone")
    assert (await run(box, "true")).started is Started.AGAIN


HANGS = {
    "a child": "sleep 100; echo never; sleep 100",
    "a loop over a child": "while true; do sleep 0.01; done",
    "a builtin": "while :; do :; done",
    "a pipe": "sleep 100 | cat",
    "a child that ignores signals": "sh -c \"trap '' INT TERM HUP; while :; do sleep 1; done\"",
    "a child in a session of its own": "setsid sleep 100 & wait",
    "a double-forked child": "( (setsid sleep 100 >/dev/null 2>&1 &) & ); sleep 100",
    "itself stopped": "kill -STOP $$; sleep 100",
    "a substitution": "x=$(sleep 100); echo never",
    "a function": "g() { sleep 100; }; g; g",
    "read of a pipe": "mkfifo ~/p; read x < ~/p",
}


@pytest.mark.parametrize("script", HANGS.values(), ids=HANGS)
async def test_a_hung_script_is_interrupted_and_the_session_kept(box: Box, script: str) -> None:
    await run(box, "A=1; cd /")
    before = set(box.pids())
    hung = await run(box, f"echo early; {script}", timeout_s=0.5)
    assert (hung.timed_out, hung.exit_code, hung.signal, hung.fate) == (True, None, None, KEPT)
    assert hung.output.head.startswith(b"early\n")
    assert b"never" not in hung.output.head
    assert set(box.pids()) == before, "what the script started is gone"
    assert await text(box, "echo $A; pwd") == "1\n/\n"


STUCK = {
    "traps unset": "trap - INT; while :; do :; done",
    "traps ignored": "trap '' INT; while :; do :; done",
    "a trap of its own": "trap 'echo mine' INT; while :; do :; done",
    "replaced by a program": "exec sleep 100",
    "no execution": "set -n\necho x",
}


@pytest.mark.parametrize("script", STUCK.values(), ids=STUCK)
async def test_a_shell_that_does_not_come_back_is_restarted_where_it_was(box: Box, script: str) -> None:
    quote = 'it\'s\n"odd"  $HOME'
    await run(
        box,
        f'A=1; export B=\'{quote.replace(chr(39), chr(39) + chr(92) + chr(39) * 2)}\'; f() {{ echo fun; }}; mkdir "$B"; cd "$B"',
    )
    hung = await run(box, script, timeout_s=0.4)
    assert (hung.timed_out, hung.exit_code, hung.signal, hung.fate) == (True, None, None, RESTARTED)
    after = await run(box, 'printf %s "[$A]$B"; f; pwd')
    assert after.started is Started.NO
    assert after.output.head.decode() == f"[]{quote}fun\n{box.workspace}/{quote}\n"
    assert len(box.pids()) == 1


async def test_more_state_than_is_kept_is_lost_and_told(box: Box) -> None:
    await run(box, "f() { :; }; for i in 1 2 3 4 5 6; do export V$i=$(head -c 60000 /dev/zero | tr '\\0' x); done")
    hung = await run(box, "trap '' INT; while :; do :; done", timeout_s=0.4)
    assert hung.fate is LOST
    assert (await run(box, 'echo "[$V1]"')).started is Started.AGAIN


async def test_interrupts_work_again_after_traps_were_unset(box: Box) -> None:
    await run(box, "A=1; trap - INT; trap 'echo bye' EXIT")
    assert (await run(box, "while :; do :; done", timeout_s=0.3)).fate is KEPT
    assert await text(box, "echo $A") == "1\n"


async def test_a_time_out_spares_what_earlier_calls_left_running(box: Box) -> None:
    await run(box, "sleep 200 & P=$!")
    hung = await run(box, "sleep 100", timeout_s=0.3)
    assert hung.fate is KEPT
    await text(box, "kill -0 $P")
    beside = asyncio.create_task(box.sh("mkfifo go; read x < go; echo whole"))
    await until(lambda: (box.workspace / "go").exists(), "the command beside to run")
    stuck = await run(box, "trap '' INT; while :; do :; done", timeout_s=0.3)
    assert stuck.fate is RESTARTED
    assert len(box.pids()) == 3, "the fresh shell, the earlier sleep, and the command beside"
    await box.text("echo > go")
    assert (await beside).stdout.head == b"whole\n"


@pytest.mark.parametrize(
    "script",
    ["if then fi (", 'echo "unterminated', "cat <<X", "f() {", "echo $((", "case x in", ")", "`", "${", "a=(1 2", "\\"],
)
async def test_a_syntax_error_neither_ends_the_session_nor_swallows_the_next_call(box: Box, script: str) -> None:
    await run(box, "A=1")
    assert (await run(box, script)).fate is KEPT
    assert await text(box, "echo $A") == "1\n"


async def test_what_a_script_does_to_its_descriptors_ends_with_it(box: Box) -> None:
    for script in (
        "exec 1>&- 2>&-",
        "exec >/dev/null 2>&1",
        "exec 3>/dev/null 4>&3 5>&3",
        "exec 0>&-",
        "exec 3<&- 4>&- 5>&-",
    ):
        assert (await run(box, script)).fate is KEPT, script
        assert await text(box, "echo hi") == "hi\n", script


async def test_closing_all_descriptors_is_told_or_harmless(box: Box) -> None:
    await run(box, 'for i in $(seq 3 255); do eval "exec $i>&-" 2>/dev/null; done; echo done', timeout_s=2)
    after = await run(box, "echo alive")
    assert (after.output.head, after.fate) == (b"alive\n", KEPT)


async def test_odd_settings_of_the_shell_do_not_show(box: Box) -> None:
    for script in (
        "set -x",
        "set -u",
        "set -v",
        "set -f",
        "IFS=x",
        "echo() { :; }; pwd() { :; }; cd() { :; }; trap() { :; }; read() { :; }",
    ):
        assert (await run(box, script)).fate is KEPT, script
    result = await run(box, "set +xv; command echo hi")
    assert result.output.head.endswith(b"hi\n")
    assert b"_tiltyard" not in result.output.head
    assert (await run(box, "while :; do :; done", timeout_s=0.3)).fate is KEPT


async def test_output_is_capped_and_cut_between_characters(box: Box) -> None:
    flood = (await run(box, "head -c 300000 /dev/zero | tr '\\0' x; echo END", output_limit_bytes=1000)).output
    assert (len(flood.head), flood.tail[-4:], flood.total_bytes) == (500, b"END\n", 300_004)
    cut = (
        await run(box, "i=0; while [ $i -lt 999 ]; do printf '😀é'; i=$((i+1)); done", output_limit_bytes=1001)
    ).output
    assert cut.head.decode() + cut.tail.decode()
    endless = await run(box, "yes", timeout_s=0.5, output_limit_bytes=4096)
    assert (endless.fate, len(endless.output.head) + len(endless.output.tail) <= 4096) == (KEPT, True)
    assert await text(box, "echo quiet") == "quiet\n"


async def test_binary_output_comes_whole(box: Box) -> None:
    await box.text("head -c 50000 /dev/urandom > r")
    result = await run(box, "cat r")
    assert result.output.head == (box.workspace / "r").read_bytes()


async def test_background_output_between_calls_is_dropped_and_holds_nothing_up(box: Box) -> None:
    await run(box, "mkfifo go; (read x < go; head -c 300000 /dev/zero; echo done > done) &")
    await box.text("echo now > go")
    await until(lambda: (box.workspace / "done").exists(), "the background job to end, its output read")
    assert await text(box, "echo mine") == "mine\n"


async def test_heredocs_large_scripts_and_nul(box: Box) -> None:
    assert await text(box, "A=1\ncat <<X\n$A\nX\ncat <<'Y'\n$A\nY\n") == "1\n$A\n"
    large = "x=" + "y" * (1 << 20) + "\necho ${#x}"
    assert await text(box, large) == f"{1 << 20}\n"
    refused = await asked(box, "echo a\0b")
    assert isinstance(refused, Failure)
    assert refused.code is FailureCode.CANNOT_START
    assert await text(box, "echo ${#x}") == f"{1 << 20}\n"


async def test_a_removed_folder_is_no_end(box: Box) -> None:
    await run(box, "mkdir gone; cd gone; rmdir ../gone")
    assert (await run(box, "echo hi; cd ..")).output.head.startswith(b"hi\n")
    await run(box, "cd /; mkdir -p /tmp/x; cd; mkdir -p ~/gone; cd ~/gone; rmdir ~/gone; export C=1")
    assert (await run(box, "trap '' INT; while :; do :; done", timeout_s=0.3)).fate is RESTARTED
    assert await text(box, "echo $C; pwd") == f"1\n{box.workspace}\n"


async def test_the_same_id_replays_and_runs_once(box: Box) -> None:
    call = box.header()
    op = Session(name="main", script="echo x >> log; cat log", timeout_s=10)
    assert await box.send(op, call) == await box.send(op, call)
    assert await text(box, "cat log") == "x\n"


async def test_calls_of_one_session_wait_for_each_other(box: Box) -> None:
    slow = asyncio.create_task(run(box, "sleep 0.5; echo slow >> order"))
    await until(lambda: len(box.pids()) == 2, "the slow call to run")
    quick, beside = await asyncio.gather(run(box, "echo quick >> order"), box.sh("echo beside >> order"))
    await slow
    assert quick.exit_code == beside.exit_code == 0
    assert (box.workspace / "order").read_text().split() == ["beside", "slow", "quick"]


async def test_sessions_outlive_their_host(box: Box) -> None:
    await run(box, "A=1; cd /")
    await box.client.aclose()
    other = box.client = box.another_client()
    try:
        await other.lease(ROLLOUT, Epoch(2))
        assert await text(box, "echo $A; pwd") == "1\n/\n"
    finally:
        await other.aclose()


async def test_there_are_at_most_eight(box: Box) -> None:
    for number in range(8):
        await run(box, "A=1", name=f"s{number}")
    refused = await asked(box, "true", name="s8")
    assert isinstance(refused, Failure)
    assert refused.code is FailureCode.CANNOT_START
    await run(box, "exit", name="s3")
    assert (await run(box, "true", name="s8")).started is Started.FIRST
    assert isinstance(await asked(box, "true", name="s3"), Failure)


async def test_shells_that_somebody_killed_are_not_counted(box: Box) -> None:
    """As when all commands of a box are killed at once: their names are not used again, and new ones are."""
    for number in range(8):
        await run(box, "echo $$ > shell.$$", name=f"s{number}")
    await box.text("kill -9 $(cat shell.*)")
    await until(lambda: not box.pids(), "the shells to be gone")
    for number in range(8):
        assert (await run(box, "echo on", name=f"t{number}")).started is Started.FIRST
    assert isinstance(await asked(box, "echo", name="one-more"), Failure)


async def test_a_freeze_ends_them(box: Box) -> None:
    await run(box, "A=1")
    running = asyncio.create_task(run(box, "sleep 100", name="busy", timeout_s=60))
    await until(lambda: len(box.pids()) == 3, "both shells and the sleep")
    await box.own(Freeze())
    result = await running
    assert (result.fate, result.signal) == (ENDED, "SIGKILL")
    assert box.pids() == []


async def test_a_terminal_of_its_own(box: Box) -> None:
    script = "test -t 0 && test -t 1 && test -t 2 && echo tty; stty size; tty; echo $TERM; (echo hi > /dev/tty); test -O $(tty) && echo own"
    lines = (await text(box, script, tty=True, rows=30, columns=100)).split("\n")
    assert lines[0] == "tty"
    assert lines[1] == "30 100"
    assert lines[2].startswith("/dev/pts/")
    assert lines[3:] == ["dumb", "hi", "own", ""]
    assert await text(box, "A=1; cd /; stty -a | grep -o -- '-echo '", tty=True) == "-echo \n"
    assert await text(box, "echo $A; pwd", tty=True) == "1\n/\n"
    assert await text(box, "test -t 1 || echo none", name="other") == "none\n"
    refused = await asked(box, "true", name="other", tty=True)
    assert isinstance(refused, Failure)
    assert refused.code is FailureCode.EXISTS


async def test_terminal_output_is_whole_and_belongs_to_its_call(box: Box) -> None:
    for number in range(30):
        assert await text(box, f"seq 1 {number * 100}; echo E{number}", tty=True) == "".join(
            f"{line}\n" for line in [*range(1, number * 100 + 1), f"E{number}"]
        )


async def test_a_hung_reader_of_the_terminal_is_interrupted(box: Box) -> None:
    await run(box, "A=1", tty=True)
    for script in ("cat", "read x", "sh -c 'cat >/dev/null'"):
        hung = await run(box, script, tty=True, timeout_s=0.4)
        assert (hung.timed_out, hung.fate) == (True, KEPT), script
    assert await text(box, "echo $A", tty=True) == "1\n"


async def test_a_script_that_meddles_with_the_shells_own_channels_fools_itself_at_most(box: Box) -> None:
    await run(box, "A=1")
    meddle = "for fd in /proc/$$/fd/*; do case $fd in */[0-9]) ;; *) (echo x 0; echo 99 end) > $fd ;; esac; done 2>/dev/null; (exit 9)"
    assert (await run(box, meddle)).exit_code == 9
    assert await text(box, "echo $A") == "1\n"
    flood = await run(
        box, "for fd in /proc/$$/fd/1?; do (yes 2>/dev/null | head -c 3000000) > $fd; done 2>/dev/null; (exit 4)"
    )
    assert (flood.exit_code, flood.fate) == (4, KEPT)
    assert await text(box, "echo $A") == "1\n"


async def test_what_is_stuffed_into_the_terminal_reaches_nobody_else(box: Box) -> None:
    """TIOCSTI, where the kernel has it, types into the session's own terminal, and there nobody reads."""
    stuff = "python3 -c \"import fcntl, termios; [fcntl.ioctl(0, termios.TIOCSTI, c.encode()) for c in 'echo stuffed >> f; exit 5\\n']\""
    assert (await run(box, stuff, tty=True)).fate is KEPT
    assert await text(box, "echo mine", tty=True) == "mine\n"
    assert await text(box, "echo other", name="other") == "other\n"
    assert not (box.workspace / "f").exists()
    assert (await box.sh("true")).exit_code == 0


async def test_a_stopped_terminal_holds_nobody_up(box: Box) -> None:
    await run(box, "A=1", tty=True)
    await run(box, "python3 -c 'import termios; termios.tcflow(1, termios.TCOOFF)'", tty=True, timeout_s=5)
    stuck = await run(box, "echo lost", tty=True, timeout_s=2)
    assert stuck.fate in (KEPT, RESTARTED)
    assert (await box.sh("echo beside")).stdout.head == b"beside\n"
    await run(box, "python3 -c 'import termios; termios.tcflow(1, termios.TCOON)'", tty=True, timeout_s=2)
    assert (await run(box, "echo back", tty=True)).output.head.endswith(b"back\n")


async def test_a_fork_runner_in_a_session_ends_with_its_call(box: Box) -> None:
    await run(box, "A=1")
    runner = "run() { while :; do ( (sleep 0.01) & ); done; }; for i in 1 2 3 4 5 6; do run & done; wait"
    hung = await run(box, runner, timeout_s=1)
    assert hung.timed_out
    assert hung.fate in (KEPT, RESTARTED)
    assert len(box.pids()) == 1, "the shell alone"
    assert (await run(box, "echo well")).output.head == b"well\n"


async def test_many_sessions_at_once_keep_apart(box: Box) -> None:
    async def count(name: str) -> list[bytes]:
        return [(await run(box, "N=$((N+1)); echo $N-$ME", name=name)).output.head for _ in range(20)]

    names = [f"s{number}" for number in range(8)]
    await asyncio.gather(*(run(box, f"N=0; ME={name}", name=name) for name in names))
    counted = await asyncio.gather(*(count(name) for name in names))
    for name, found in zip(names, counted, strict=True):
        assert found == [f"{number}-{name}\n".encode() for number in range(1, 21)]


async def test_a_dead_sessions_resources_are_given_back(box: Box) -> None:
    def descriptors() -> int:
        return len(list(Path(f"/proc/{box.agent_pid}/fd").iterdir()))

    for tty in (False, True):  # threads and connections that later calls use anyway
        await run(box, "exit", name=f"first-{tty}", tty=tty)
    before = descriptors()
    for number in range(20):
        tty = number % 2 == 1
        await run(box, "true", name=f"n{number}", tty=tty)
        await run(box, "exit", name=f"n{number}", tty=tty)
    await until(lambda: descriptors() <= before and not box.pids() and not box.zombies(), "all of it to be given back")


async def test_no_shell_comes_back_after_a_freeze(box: Box) -> None:
    """A call that is just replacing its shell when the freeze comes leaves none."""
    stuck = asyncio.create_task(asked(box, "trap '' INT; while :; do sleep 0.01; done", timeout_s=0.3))
    await until(lambda: len(box.pids()) >= 1, "the shell to run")
    await asyncio.sleep(0.5)  # somewhere between the time-out and the replacement
    await box.own(Freeze())
    result = await stuck
    assert isinstance(result, SessionResult)
    assert result.fate in (ENDED, LOST)
    assert box.pids() == []


FORGE = """command() {
    [[ $1 == eval && $2 =~ echo\\ ([A-Z0-9]+) ]] && builtin echo "${BASH_REMATCH[1]} %s" >&4
    builtin "$@"
}"""
"""A function that the loop calls for its own `command`: it sees the marks, and descriptor 4."""


@pytest.mark.parametrize(("forged", "told"), [("7", 7), ("-5", 3), ("256", 3), ("9223372036854775807", 3)])
async def test_a_forged_status_is_one_that_a_shell_can_have(box: Box, forged: str, told: int) -> None:
    """A script can deceive those who use its session, but it cannot have the agent say what the host takes for a broken agent."""
    await run(box, FORGE % forged)
    assert (await run(box, "(exit 3)")).exit_code == told
