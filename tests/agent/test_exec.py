"""Commands against the real agent: what goes in, what comes out, when the reply comes."""

# ruff: noqa: ASYNC240  (small local files and /proc, read at once)

import asyncio
import time
from pathlib import Path

import aiohttp
import pytest

from orchestrator.operations import Exec, ExecResult, Failure, FailureCode
from tests.agent.conftest import Box, OpenBox, until
from tests.needs import needs

pytestmark = [pytest.mark.anyio, needs("root")]


async def test_output_status_and_identity(box: Box) -> None:
    result = await box.sh("id -u; id -g; pwd; exit 3")
    assert result.exit_code == 3
    assert result.signal is None
    assert result.stdout.head.decode().split() == [str(box.uid), str(box.uid), str(box.workspace)]


async def test_streams_apart_and_merged(box: Box) -> None:
    script = "echo one; echo two >&2; echo three"
    merged = await box.sh(script)
    assert (merged.stdout.head, merged.stderr.head) == (b"one\ntwo\nthree\n", b"")
    apart = await box.sh(script, merge_stderr=False)
    assert (apart.stdout.head, apart.stderr.head) == (b"one\nthree\n", b"two\n")


async def test_stdin_of_two_megabytes_and_unread_stdin(box: Box) -> None:
    data = bytes(range(256)) * 8192
    counted = await box.exec("wc", "-c", stdin=data)
    assert counted.stdout.head.strip() == str(len(data)).encode()
    assert (await box.sh("exit 4", stdin=data)).exit_code == 4
    assert (await box.exec("cat", timeout_s=5)).stdout.head == b""


async def test_environment_is_the_configs_and_the_operations(box: Box) -> None:
    result = await box.exec("env", "-0", env={"MINE": "a b\n=ä", "LANG": "C"})
    found = dict(item.split("=", 1) for item in result.stdout.head.decode().split("\0") if item)
    assert found == {"MINE": "a b\n=ä", "LANG": "C", "PATH": box.config.env["PATH"], "HOME": box.config.home}


async def test_descriptors_session_and_limits(box: Box) -> None:
    script = (
        "ls /proc/self/fd; grep -E '^(Cap(Inh|Prm|Eff|Amb)|NoNewPrivs|Groups):' /proc/self/status; "
        "cat /proc/self/oom_score_adj; umask; ulimit -c; cut -d' ' -f6 /proc/$$/stat; echo $$"
    )
    lines = (await box.text(script)).splitlines()
    descriptors, rest = lines[:4], lines[4:]
    assert descriptors == ["0", "1", "2", "3"], "0, 1, 2 and the listing's own"
    status = dict(line.split(":\t") for line in rest[:6])
    assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {"0" * 16}
    assert status["NoNewPrivs"] == "1"
    assert len(status["Groups"].split()) == 1, "the tag alone"
    adjustment, umask, core, session, pid = rest[6:]
    assert (adjustment, umask, core) == ("1000", "0022", "0")
    assert session == pid


async def test_events_come_by_a_channel_of_their_own(box: Box) -> None:
    result = await box.sh("echo seen; echo told >&3", events=True)
    assert (result.stdout.head, result.events, result.events_cut) == (b"seen\n", b"told\n", False)
    without = await box.sh("(echo told >&3) 2>/dev/null || echo none")
    assert (without.stdout.head, without.events) == (b"none\n", b"")


async def test_events_are_capped_at_four_mebibytes(box: Box) -> None:
    result = await box.sh("head -c 5000000 /dev/zero >&3", events=True)
    assert (len(result.events), result.events_cut) == (4 * 1024 * 1024, True)


@pytest.mark.parametrize(("size", "cut"), [(999, False), (1000, False), (1001, True), (70_000, True)])
async def test_caps_keep_head_and_tail(box: Box, size: int, cut: bool) -> None:
    sent = bytes(65 + index % 26 for index in range(size))
    out = (await box.exec("cat", stdin=sent, output_limit_bytes=1000)).stdout
    assert out.total_bytes == size
    if not cut:
        assert (out.head, out.tail, out.cut_bytes) == (sent, b"", 0)
    else:
        assert (out.head, out.tail, out.cut_bytes) == (sent[:500], sent[-500:], size - 1000)


@pytest.mark.parametrize("shift", range(4))
async def test_cuts_are_never_inside_a_character(box: Box, shift: int) -> None:
    sent = b"x" * shift + "😀é€".encode() * 3000
    out = (await box.exec("cat", stdin=sent, output_limit_bytes=1001)).stdout
    assert sent.startswith(out.head)
    assert sent.endswith(out.tail)
    assert out.head.decode() + out.tail.decode()
    assert 990 <= len(out.head) + len(out.tail) <= 1001
    assert out.cut_bytes == out.total_bytes - len(out.head) - len(out.tail)


async def test_no_output_may_be_kept_at_all(box: Box) -> None:
    out = (await box.sh("echo hello", output_limit_bytes=0)).stdout
    assert (out.head, out.tail, out.cut_bytes) == (b"", b"", 6)


async def test_reply_does_not_wait_for_children_that_hold_the_pipes(box: Box) -> None:
    began = time.monotonic()
    result = await box.sh("sleep 30 & echo started")
    assert result.stdout.head == b"started\n"
    assert time.monotonic() - began < 5
    assert len(box.pids()) == 1, "the child lives on"


async def test_reply_does_not_wait_for_a_flood_in_the_background(box: Box) -> None:
    began = time.monotonic()
    result = await box.sh("yes & echo started")
    assert b"started\n" in result.stdout.head
    assert time.monotonic() - began < 5


async def test_background_work_lives_on_and_its_output_goes_nowhere(box: Box) -> None:
    await box.text("mkfifo go; (read x < go; head -c 300000 /dev/zero; echo done > done) & true")
    await box.text("echo now > go")
    await until(lambda: (box.workspace / "done").exists(), "the background process to end, its pipe read to the end")


async def test_orphans_are_reaped(box: Box) -> None:
    await box.text("for i in 1 2 3 4 5; do (true &) ; done; (setsid sh -c 'exit 7' &)")
    await until(lambda: not box.pids() and not box.zombies(), "no process and no zombie of the box")


async def test_statuses_survive_a_storm_of_orphans(box: Box) -> None:
    """The one place that waits tells a command's status from an orphan's, with many of both."""
    storm = "for i in 1 2 3 4 5 6 7 8; do (true &); done; exit "
    results = await asyncio.gather(*(box.sh(f"{storm}{code}") for code in range(40)))
    assert [result.exit_code for result in results] == list(range(40))


async def test_death_by_signal_is_named(box: Box) -> None:
    for number, name in ((9, "SIGKILL"), (15, "SIGTERM"), (11, "SIGSEGV")):
        result = await box.sh(f"kill -{number} $$; sleep 5")
        assert (result.exit_code, result.signal, result.timed_out) == (None, name, False)


@pytest.mark.parametrize(
    ("argv", "cwd", "words"),
    [
        (("no-such-program",), ".", "command not found"),
        (("./missing",), ".", "no such file"),
        (("./plain",), ".", "permission denied"),
        (("./garbage",), ".", "not an executable format"),
        (("true",), "no/such/folder", "working directory"),
        (("true", "a\0b"), ".", "NUL"),
        (("",), ".", "command not found"),
    ],
)
async def test_what_cannot_start_says_why(box: Box, argv: tuple[str, ...], cwd: str, words: str) -> None:
    await box.text("echo x > plain; printf '\\1\\2\\3' > garbage; chmod +x garbage")
    result = await box.run(Exec(argv=argv, cwd=cwd, timeout_s=5))
    assert isinstance(result, Failure)
    assert result.code is FailureCode.CANNOT_START
    assert words in result.message


async def test_principals_have_uids_of_their_own(box: Box) -> None:
    result = await box.exec("id", "-u", principal=5)
    assert result.stdout.head == b"%d\n" % (box.uid + 5)
    beyond = await box.run(Exec(argv=("id",), timeout_s=5, principal=64))
    assert isinstance(beyond, Failure)
    assert beyond.code is FailureCode.PERMISSION


async def test_trusted_commands_run_where_granted_alone(box: Box, open_box: OpenBox) -> None:
    refused = await box.run(Exec(argv=("id",), timeout_s=5, principal="trusted"))
    assert isinstance(refused, Failure)
    assert refused.code is FailureCode.PERMISSION
    async with open_box(allow_root_exec=True) as grader:
        script = "id -u; grep CapEff /proc/self/status; env | grep ^TILTYARD | sort"
        lines = (await grader.sh(script, principal="trusted")).stdout.head.decode().splitlines()
        config = grader.config
        assert lines[:2] == ["0", "CapEff:\t00000000000000e0"]
        assert lines[2:] == [
            f"TILTYARD_TRUSTED_DIR={config.trusted_dir}",
            f"TILTYARD_UID_BASE={config.uid_base}",
            f"TILTYARD_UID_COUNT={config.uid_count}",
            f"TILTYARD_WORKSPACE={config.workspace}",
        ]


async def test_output_can_be_followed_while_the_command_runs(box: Box) -> None:
    call = box.header()
    await box.text("mkfifo go")
    running = asyncio.create_task(
        box.send(Exec(argv=("sh", "-c", "echo first; read x < go; echo last"), timeout_s=10), call)
    )
    await until(lambda: len(box.pids()) == 1, "the command to run")
    connector = aiohttp.UnixConnector(path=box.config.socket)
    async with aiohttp.ClientSession(connector=connector) as session:
        url = f"http://agent/v1/ops/{call.key}/0/stream"
        async with session.get(url, headers=box.client._fence) as response:
            assert response.status == 200
            first = await response.content.readany()
            assert first.startswith(b"first\n")
            await box.text("echo > go")
            assert (await response.content.read()).endswith(b"last\n")
    result = await running
    assert isinstance(result, ExecResult)
    assert result.stdout.head == b"first\nlast\n"


async def test_nothing_of_the_agents_own_environment_reaches_commands(open_box: OpenBox) -> None:
    async with open_box(prefix=("env", "CANARY=planted")) as box:
        environ = Path(f"/proc/{box.agent_pid}/environ").read_bytes()
        assert b"CANARY=planted" in environ, "the agent itself was given it"
        assert "CANARY" not in await box.text(
            "env; cat /proc/1/environ 2>/dev/null; cat /proc/*/environ 2>/dev/null; true"
        )


async def test_streams_left_in_the_background_are_bounded(box: Box) -> None:
    """One process collects the output ends of many commands; the agent keeps 256 of them open, not all."""
    keeper = "import os, socket\ns = socket.socket(socket.AF_UNIX)\ns.bind('keep'); s.listen(99)\nheld = []\nos.close(1); os.close(2)\n"
    keeper += "while True:\n    c, _ = s.accept()\n    held.append(socket.recv_fds(c, 9, 9)); c.close()\n"
    giver = "import socket\ns = socket.socket(socket.AF_UNIX); s.connect('keep'); socket.send_fds(s, [b'x'], [1]); s.recv(1)\n"
    await box.text(
        f"cat > keeper.py <<'E'\n{keeper}E\ncat > giver.py <<'E'\n{giver}E\npython3 keeper.py >/dev/null 2>&1 & true"
    )
    await until((box.workspace / "keep").exists, "the keeper")
    for _ in range(13):
        results = await asyncio.gather(*(box.exec("python3", "-I", "-S", "giver.py") for _ in range(25)))
        assert {result.exit_code for result in results} == {0}
    held = len(list(Path(f"/proc/{box.agent_pid}/fd").iterdir()))
    assert 256 <= held <= 256 + 80, held
