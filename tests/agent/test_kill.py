"""Time-outs, cancelling, freezing: what they end, and what they spare."""

# ruff: noqa: ASYNC240  (small local files and /proc, read at once)

import asyncio
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from orchestrator.agent.binary import probe_binary
from orchestrator.errors import RolloutClosed
from orchestrator.models import OpId
from orchestrator.operations import (
    Exec,
    ExecResult,
    Freeze,
    FreezeResult,
    Note,
    NoteResult,
    Session,
    SessionFate,
    SessionResult,
    Started,
)
from tests.agent.conftest import Box, OpenBox, until
from tests.needs import needs

pytestmark = [pytest.mark.anyio, needs("root")]

SURVIVORS = {
    "child": "sleep 300 & sleep 300",
    "double fork": "( ( sleep 300 & ) & ); sleep 300",
    "new session": "setsid sleep 300 & sleep 300",
    "nohup": "nohup sleep 300 >/dev/null 2>&1 & sleep 300",
    "ignores signals": "trap '' TERM HUP INT QUIT; sleep 300; sleep 300",
    "daemon": "trap '' TERM HUP; (setsid sh -c 'trap \"\" TERM; (sleep 300 &); while :; do sleep 1; done' >/dev/null 2>&1 </dev/null &) ; sleep 300",
    "stopped": "sh -c 'kill -STOP $$' & sleep 300",
    "empty environment": "env -i setsid sleep 300 & sleep 300",
    "many": "for i in $(seq 100); do (setsid sleep 300 &) ; done; sleep 300",
    "busy": "(while :; do :; done) & sleep 300",
}


@pytest.mark.parametrize("script", SURVIVORS.values(), ids=SURVIVORS.keys())
async def test_time_out_ends_the_whole_tree_and_nothing_beside_it(box: Box, script: str) -> None:
    await box.text("sleep 400 & echo $!")
    earlier = box.pids()
    assert len(earlier) == 1, "the control: background work of an earlier command"
    result = await box.sh(f"echo early; {script}", timeout_s=0.7)
    assert (result.timed_out, result.exit_code, result.signal, result.killed_all) == (True, None, "SIGKILL", False)
    assert result.stdout.head.startswith(b"early\n")
    assert box.pids() == earlier


async def test_the_command_beside_runs_to_its_end(box: Box) -> None:
    await box.text("mkfifo go")
    beside = asyncio.create_task(box.sh("read x < go; echo whole"))
    await until(lambda: len(box.pids()) == 1, "the command to run")
    assert (await box.sh("sleep 60 & sleep 60", timeout_s=0.2)).timed_out
    await box.text("echo > go")
    assert (await beside).stdout.head == b"whole\n"


RUNS = 12
RUNNER = """
import os, time
if os.fork():
    time.sleep(1000)
for _ in range(3):
    os.fork()
os.setsid() if os.getpid() != os.getsid(0) else None
while True:
    if os.fork():
        os._exit(0)
"""


async def test_who_outruns_the_sweep_takes_all_commands_with_it(box: Box) -> None:
    """Runners fork and exit faster than /proc is read. If they are caught all the same, nothing else was touched."""
    beside = asyncio.create_task(box.exec("sleep", "60", timeout_s=60))
    await until(lambda: len(box.pids()) == 1, "the command to run")
    began = time.monotonic()
    result = await box.exec("python3", "-c", RUNNER, timeout_s=0.5)
    assert result.timed_out
    assert time.monotonic() - began < 20
    others = box.pids()
    if result.killed_all:
        victim = await beside
        assert (victim.signal, victim.killed_all, victim.timed_out) == ("SIGKILL", True, False)
        assert box.pids() == []
    else:
        assert len(others) == 1
        await box.own(Freeze())
        await beside
    await until(lambda: not box.zombies(), "every runner to be reaped")


ONE_UID = ("setpriv", "--reuid={uid}", "--regid={uid}", "--clear-groups")


async def test_who_is_held_still_for_a_sweep_goes_on_afterwards(open_box: OpenBox) -> None:
    """Where a tree is known by its environment alone, a sweep stops what is beside it for a moment; what was stopped before stays stopped."""
    async with open_box(mode="one_uid", prefix=ONE_UID) as box:
        stopped, earlier = (await box.text("sleep 400 & kill -STOP $!; echo $!; sleep 401 & echo $!")).split()
        await box.text("mkfifo go")
        beside = asyncio.create_task(box.sh("read x < go; echo whole"))
        await until(lambda: len(box.pids()) >= 4, "the command to run")
        assert (await box.sh("sleep 60 & sleep 60", timeout_s=0.2)).timed_out
        states = await box.text(f"cut -d' ' -f3 /proc/{stopped}/stat /proc/{earlier}/stat")
        assert states.split() == ["T", "S"]
        await box.text("echo > go")
        assert (await beside).stdout.head == b"whole\n"


async def test_a_runner_is_found_although_only_its_environment_tells_whose_it_is(open_box: OpenBox) -> None:
    """Again and again: one that is never the same process may be missed by one look, and by three."""
    async with open_box(mode="one_uid", prefix=ONE_UID) as box:
        runner = Path(box.config.workspace, "probe")
        shutil.copy(probe_binary(), runner)
        runner.chmod(0o755)
        beat = Path(box.config.workspace, "beat")
        for _ in range(RUNS):
            result = await box.sh("./probe runner beat 30; sleep 30", timeout_s=0.15)
            assert result.timed_out
            size = beat.stat().st_size
            await asyncio.sleep(0.05)
            assert beat.stat().st_size == size, "it lives"


async def test_other_uids_are_spared_when_all_commands_must_die(open_box: OpenBox) -> None:
    async with open_box() as box:
        beside = asyncio.create_task(box.exec("sleep", "60", principal=7, timeout_s=60))
        await until(lambda: len(box.pids()) == 1, "the command to run")
        assert (await box.exec("python3", "-c", RUNNER, timeout_s=0.5)).timed_out
        assert len(box.pids()) == 1
        await box.own(Freeze())
        assert (await beside).signal == "SIGKILL"


async def test_cancel_ends_the_tree_and_is_told(box: Box) -> None:
    call = box.header()
    running = asyncio.create_task(box.send(Exec(argv=("sh", "-c", "setsid sleep 60 & sleep 60"), timeout_s=60), call))
    await until(lambda: len(box.pids()) == 3, "the command to run")
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(path=box.config.socket)) as session:
        url = f"http://agent/v1/ops/{call.key}/0"
        async with session.delete(url, headers=box.client._fence) as response:
            assert response.status == 200
            assert (await response.json())["result"]["cancelled"] is True
    result = await running
    assert isinstance(result, ExecResult)
    assert (result.cancelled, result.timed_out, result.signal) == (True, False, "SIGKILL")
    assert box.pids() == []


async def test_cancelling_the_caller_cancels_nothing(box: Box) -> None:
    call, op = (
        box.header(),
        Exec(argv=("sh", "-c", "echo > begun; sleep 0.5; echo done > done; echo result"), timeout_s=10),
    )
    caller = asyncio.create_task(box.send(op, call))
    await until((box.workspace / "begun").exists, "the command to run")
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    result = await box.send(op, call)
    assert isinstance(result, ExecResult)
    assert result.stdout.head == b"result\n"
    assert (box.workspace / "done").read_text() == "done\n"


async def test_a_missed_deadline_is_joined_later(box: Box) -> None:
    call, op = box.header(), Exec(argv=("sh", "-c", "echo x >> ran; sleep 0.5; cat ran"), timeout_s=10)
    with pytest.raises(TimeoutError):
        await box.send(op, call, timeout_s=0.1)
    result = await box.send(op, call)
    assert isinstance(result, ExecResult)
    assert result.stdout.head == b"x\n"


async def test_freeze_ends_everything_and_refuses_what_is_new(box: Box) -> None:
    call, note = box.header(), Note(data=b"kept")
    await box.send(note, call)
    await box.text("for i in 1 2 3; do (setsid sleep 300 &); done; sleep 300 & true")
    running = asyncio.create_task(box.exec("sleep", "300", principal=3, timeout_s=300))
    await until(lambda: len(box.pids()) == 5, "five processes")
    frozen = await box.own(Freeze())
    assert isinstance(frozen, FreezeResult)
    assert frozen.killed == 5
    assert box.pids() == []
    assert (await running).signal == "SIGKILL"
    assert await box.own(Freeze()) == FreezeResult(killed=0)
    with pytest.raises(RolloutClosed):
        await box.run(note)
    assert await box.send(note, call) == NoteResult(data=b"kept")
    lease = await box.client.health()
    assert lease.frozen


async def test_freeze_ends_a_bomb(box: Box) -> None:
    running = asyncio.create_task(box.exec("python3", "-c", f"open('begun', 'w').close()\n{RUNNER}", timeout_s=100))
    await until((box.workspace / "begun").exists, "the bomb to go off")
    await box.own(Freeze())
    assert box.pids() == []
    assert isinstance(await running, ExecResult)


async def test_trusted_time_out_ends_children_that_changed_their_uid(open_box: OpenBox) -> None:
    child = "import os,time; os.setgroups([]); os.setresgid({0},{0},{0}); os.setresuid({0},{0},{0}); time.sleep(300)"
    async with open_box(allow_root_exec=True) as box:
        program = child.format(box.uid + 9)
        script = f"(setsid python3 -c '{program}' &) ; sleep 300"
        beside = asyncio.create_task(box.exec("sleep", "60", principal=2, timeout_s=60))
        result = await box.sh(script, principal="trusted", timeout_s=1.5)
        assert result.timed_out
        assert len(box.pids()) == 1, "the command of the other principal alone"
        await box.own(Freeze())
        await beside


async def test_the_agents_socket_and_proc_are_no_lever(box: Box) -> None:
    """Signals to the agent and its threads, each with a control on a process of one's own."""
    script = """
import os, signal
def sends(pid):
    try:
        os.kill(pid, signal.SIGUSR1); return True
    except PermissionError:
        return False
child = os.fork()
if not child:
    signal.pause()
threads = [int(t) for t in os.listdir("/proc/1/task")]
print(sends(child), any(sends(t) for t in threads), len(threads) > 5)
os.kill(child, 9)
"""
    assert await box.text(f"cat > s.py <<'E'\n{script}\nE\npython3 s.py") == "True False True\n"
    assert Path(f"/proc/{box.agent_pid}").exists()


async def test_the_first_operation_must_bring_the_call(box: Box) -> None:
    first = OpId(call=box.header().key, number=0)
    with pytest.raises(ValueError, match="carries its header"):
        await box.client.run(Note(data=b""), op_id=first, deadline=time.monotonic() + 1)


@pytest.fixture
def frozen_disk(tmp_path: Path) -> Iterator[Path]:
    """A mounted file system on which every write waits uninterruptibly, until `thaw` is called on its folder."""
    image, folder = tmp_path / "disk", Path(tempfile.mkdtemp(prefix="test-frozen-"))
    subprocess.run(["truncate", "--size=8M", image], check=True)
    subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, folder], check=True)
    try:
        folder.chmod(0o777)
        subprocess.run(["fsfreeze", "--freeze", folder], check=True)
        yield folder
        thaw(folder)
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)
        folder.rmdir()


def thaw(folder: Path) -> None:
    subprocess.run(["fsfreeze", "--unfreeze", folder], check=False, stderr=subprocess.DEVNULL)


async def test_what_outlives_the_sweep_costs_all_commands_and_never_the_agent(frozen_disk: Path, box: Box) -> None:
    """A process that no signal ends for now: everything of that uid is killed, each command says so, and the box goes on."""
    beside = asyncio.create_task(box.exec("sleep", "100", timeout_s=100))
    await until(lambda: len(box.pids()) == 1, "the command beside to run")
    began = time.monotonic()
    stuck = await box.sh(f"echo early; echo x > {frozen_disk}/f; sleep 100", timeout_s=0.5)
    assert (stuck.timed_out, stuck.killed_all, stuck.exit_code, stuck.signal) == (True, True, None, "SIGKILL")
    assert stuck.stdout.head == b"early\n"
    assert time.monotonic() - began < 25
    innocent = await beside
    assert (innocent.signal, innocent.killed_all, innocent.timed_out) == ("SIGKILL", True, False)
    assert await box.text("echo alive") == "alive\n"
    thaw(frozen_disk)
    await until(lambda: not box.pids() and not box.zombies(), "the stuck process to be gone once it can be")


async def test_a_session_whose_script_cannot_be_killed_says_what_it_cost(frozen_disk: Path, box: Box) -> None:
    op = Session(name="main", script=f"export A=1; echo x > {frozen_disk}/f", timeout_s=0.5)
    stuck = await box.run(op, timeout_s=60)
    assert isinstance(stuck, SessionResult)
    assert (stuck.timed_out, stuck.killed_all, stuck.fate) == (True, True, SessionFate.RESTARTED)
    thaw(frozen_disk)
    again = await box.run(Session(name="main", script='echo "[$A]"', timeout_s=5))
    assert isinstance(again, SessionResult)
    assert (again.output.head, again.started) == (b"[]\n", Started.NO)
