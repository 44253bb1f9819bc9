"""What commands can reach of their agent, and whether they can starve it. Each probe has a control that shows it could have succeeded."""

import asyncio
import json
from pathlib import Path

import pytest

from orchestrator.operations import Exec, ExecResult, Failure, FailureCode, Freeze, Note, NoteResult
from tests.agent.conftest import Box, OpenBox, until
from tests.needs import needs

pytestmark = [pytest.mark.anyio, needs("root")]

KERNEL = Path("/proc/version").read_text().splitlines()[0][:512]

REACH = """
import os, socket, sys, json, ctypes, ctypes.util
libc = ctypes.CDLL(None, use_errno=True)
def tries(what):
    try:
        return bool(what())
    except OSError:
        return False
def trace(pid):
    ok = libc.ptrace(16, pid, 0, 0) == 0  # PTRACE_ATTACH
    if ok:
        os.waitpid(pid, 0); libc.ptrace(17, pid, 0, 0)
    return ok
def reach(pid):
    return {
        "mem": tries(lambda: open(f"/proc/{pid}/mem", "rb")),
        "environ": tries(lambda: open(f"/proc/{pid}/environ", "rb").read() or True),
        "maps": tries(lambda: open(f"/proc/{pid}/maps", "rb").read(1)),
        "root": tries(lambda: os.listdir(f"/proc/{pid}/root")),
        "fd": tries(lambda: os.listdir(f"/proc/{pid}/fd")),
        "cwd": tries(lambda: os.readlink(f"/proc/{pid}/cwd")),
        "oom": tries(lambda: open(f"/proc/{pid}/oom_score_adj", "w")),
        "trace": tries(lambda: trace(pid)),
        "pidfd": tries(lambda: os.pidfd_open(pid) and libc.syscall(438, os.pidfd_open(pid), 0, 0) >= 0),
        "tgkill": tries(lambda: libc.syscall(234, pid, pid, 0) == 0),
    }
def connect(path):
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(path); return True
child = os.fork()
if not child:
    import time; time.sleep(60)
own = socket.socket(socket.AF_UNIX); own.bind("own.sock"); own.listen()
agent = reach(1)
threads = [{k: v for k, v in reach(int(t)).items() if v} for t in os.listdir("/proc/1/task")]
print(json.dumps({
    "child": reach(child), "agent": agent, "threads": [t for t in threads if t],
    "own socket": tries(lambda: connect("own.sock")), "agent socket": tries(lambda: connect(sys.argv[1])),
    "own folder": tries(lambda: os.listdir(".") is not None), "state": tries(lambda: os.listdir(sys.argv[2])),
    "unlink socket": tries(lambda: os.unlink(sys.argv[1]) is None),
    "write trusted": tries(lambda: open(sys.argv[3] + "/x", "w")), "write own": tries(lambda: open("x", "w")),
}))
os.kill(child, 9)
"""


async def test_agent_socket_journal_and_memory_are_out_of_reach(box: Box) -> None:
    config = box.config
    result = await box.exec("python3", "-c", REACH, config.socket, config.state_dir, config.trusted_dir)
    assert result.exit_code == 0, result
    found = json.loads(result.stdout.head)
    assert set(found["child"].values()) == {True}, "the control: all of it works on a process of one's own"
    assert found["agent"] == dict.fromkeys(found["child"], False)
    assert found["threads"] == []
    assert (found["own socket"], found["own folder"], found["write own"]) == (True, True, True)
    assert not any(found[name] for name in ("agent socket", "state", "unlink socket", "write trusted"))


async def test_commands_gain_no_privilege(box: Box) -> None:
    script = """
python3 -c 'import os
for call in (lambda: os.setuid(0), lambda: os.setgroups([0]), lambda: os.chown(".", 0, 0), lambda: os.chroot(".")):
    try: call(); print("gained")
    except OSError: print("refused")'
grep -c . /etc/shadow 2>/dev/null || echo refused
"""
    assert (await box.sh(script)).stdout.head.decode().split() == ["refused"] * 5


async def test_the_container_wide_posture_is_told(box: Box) -> None:
    health = await box.client.health()
    posture = health.posture
    assert (health.protocol, health.mode) == (2, "split")
    assert (posture.agent_uid, posture.command_uid) == (0, box.uid)
    assert posture.capabilities == "00000000000000e0", "all others were given up, although the agent began with them"
    assert posture.no_new_privs
    assert health.kernel.version == KERNEL
    assert set(posture.gaps) <= {"no_pids_limit", "no_seccomp", "no_oom_counters"}


BOMB = (
    "import os,time\nwhile True:\n  try:\n    if not os.fork(): time.sleep(300)\n  except OSError: time.sleep(0.05)\n"
)


async def test_a_bomb_below_its_process_limit_does_not_starve_the_agent(open_box: OpenBox) -> None:
    async with open_box(prefix=("prlimit", "--nproc=60")) as box:
        running = asyncio.create_task(box.exec("python3", "-c", BOMB, timeout_s=4))
        await until(lambda: len(box.pids()) == 60, "the bomb to reach its limit", timeout_s=3)
        for _ in range(20):
            assert await box.run(Note(data=b"x")) == NoteResult(data=b"x")
        last = asyncio.create_task(box.exec("sleep", "60", timeout_s=60))  # the kernel lets one more become the uid
        await until(lambda: len(box.pids()) == 61, "the last process", timeout_s=3)
        refused = await box.run(Exec(argv=("true",), timeout_s=5))
        assert isinstance(refused, Failure)
        assert refused.code is FailureCode.CANNOT_START
        assert "limit of processes" in refused.message
        result = await running
        assert result.timed_out
        assert not result.killed_all
        assert len(box.pids()) == 1, "the command beside it"
        assert (await box.sh("echo fine")).stdout.head == b"fine\n"
        await box.own(Freeze())
        assert (await last).signal == "SIGKILL"


async def test_many_readers_do_not_starve_the_agent(box: Box) -> None:
    """A flood from one command leaves the others their turn."""
    floods = [asyncio.create_task(box.sh("yes", timeout_s=1.5, output_limit_bytes=4096)) for _ in range(4)]
    for _ in range(10):
        assert (await box.sh("echo fine", timeout_s=5)).stdout.head == b"fine\n"
    for flood in floods:
        result = await flood
        assert isinstance(result, ExecResult)
        assert result.timed_out
        assert len(result.stdout.head) + len(result.stdout.tail) <= 4096
        assert result.stdout.total_bytes > 1_000_000
