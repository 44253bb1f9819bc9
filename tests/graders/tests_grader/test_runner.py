"""The trusted side in the box: what it copies, what it lets children see, and that nothing of a child stays."""

import ast
import random
from textwrap import dedent

import pytest

from orchestrator.graders.tests import box as boxes
from orchestrator.graders.tests.plan import Plan, draw, suite
from orchestrator.operations import Exec, ExecResult, Principal
from tests.graders.tests_grader.library import BASE, TASK
from tests.graders.tests_grader.local_box import PYTHON, TRUSTED, WORKSPACE, LocalBox, local_box
from tests.needs import needs

pytestmark = [pytest.mark.anyio, needs("root")]


def plan() -> Plan:
    return draw(TASK, suite(TASK), random.Random(1))


async def shell(box: LocalBox, command: str, principal: Principal = 0) -> str:
    done = await box.run(Exec(argv=("sh", "-c", command), timeout_s=60, principal=principal))
    assert isinstance(done, ExecResult)
    text = done.stdout.head.decode()
    assert done.exit_code == 0, text
    return text


async def trusted(box: LocalBox, code: str) -> str:
    """Run `code` as the runner does, with `sweep` imported and `uid` and `sweeper` set; what it printed."""
    head = f"import os, sys; sys.path.append({TRUSTED!r})\nfrom tiltyard_runner import sweep\nuid, sweeper = {box.uid + 7}, {box.uid + 63}\n"
    done = await box.run(Exec(argv=(PYTHON, "-I", "-S", "-c", head + dedent(code)), timeout_s=90, principal="trusted"))
    assert isinstance(done, ExecResult)
    text = done.stdout.head.decode()
    assert done.exit_code == 0, text
    return text


LEAVE = """
import ctypes, signal, subprocess, time

def leave():
    sweep.become(uid, uid, uid)
    for place in ("/tmp", "/var/tmp", "/dev/shm"):
        open(f"{place}/note", "w").close()
    os.makedirs("/tmp/locked/inner")
    open("/tmp/locked/inner/note", "w").close()
    os.chmod("/tmp/locked/inner", 0)
    os.chmod("/tmp/locked", 0)
    os.mkdir("/tmp/deep")
    os.chdir("/tmp/deep")
    for _ in range(1500):
        os.mkdir("d")
        os.chdir("d")
    libc = ctypes.CDLL(None)
    assert min(libc.shmget(99, 64, 0o1666), libc.semget(99, 1, 0o1666), libc.msgget(99, 0o1666)) >= 0
    for _ in range(20):
        if os.fork() == 0:
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            if os.fork():
                os._exit(0)
            while True:
                if os.fork():  # never the same pid for long
                    os._exit(0)
                time.sleep(0.02)
    return True

def state():
    running = subprocess.run(["/usr/bin/pgrep", "-c", "-U", str(uid)], capture_output=True, text=True).stdout.strip()
    files = [f"{place}/{name}" for place in ("/tmp", "/var/tmp", "/dev/shm") for name in sorted(os.listdir(place))]
    ipc = sum(str(uid) in line.split() for kind in ("shm", "sem", "msg") for line in open(f"/proc/sysvipc/{kind}"))
    return int(running) > 0, files, ipc
"""


async def test_nothing_of_a_child_stays_and_nothing_else_goes() -> None:
    async with local_box(BASE) as box:
        await boxes.install(box, plan(), TASK.limits)
        await shell(box, "touch /tmp/agents; mkdir /tmp/agents-folder; (setsid sleep 100 &)")
        said = await trusted(
            box,
            LEAVE
            + "assert sweep.in_child(leave)\nbefore = state()\ncleared = sweep.clear(uid, sweeper)\nprint(repr((before, cleared, state())))",
        )
        assert "sleep" in await shell(box, "pgrep -l sleep")
    before, cleared, after = ast.literal_eval(said)
    assert before == (
        True,
        [
            "/tmp/agents",
            "/tmp/agents-folder",
            "/tmp/deep",
            "/tmp/locked",
            "/tmp/note",
            "/var/tmp/note",
            "/dev/shm/note",
        ],
        3,
    )
    assert cleared is True
    assert after == (False, ["/tmp/agents", "/tmp/agents-folder"], 0)


async def test_places_open_to_all_are_closed() -> None:
    async with local_box(BASE) as box:
        await boxes.install(box, plan(), TASK.limits)
        await shell(box, "mkdir -m 777 a a/b; touch a/c; chmod 666 a/c; ln -s /etc/passwd a/d; chmod 777 .")
        await trusted(box, f"assert sweep.close_to_others({box.uid}, [{WORKSPACE!r}])")
        assert await shell(box, "stat -c %a . a a/b a/c") == "775\n775\n775\n664\n"


async def test_the_base_commits_tests_are_copied_without_the_hidden_ones() -> None:
    base = {**BASE, "conftest.py": "", "tests/data/x.txt": "x", "other/conftest.py": "", "other/test_x.py": ""}
    async with local_box(base) as box:
        await shell(
            box,
            "ln -s data/x.txt tests/inside; ln -s /etc/passwd tests/outside; ln -s ../tally tests/folder; mkfifo tests/pipe",
        )
        await boxes.install(box, plan(), TASK.limits)
        found = (await shell(box, f"cd {TRUSTED}/tests && find . -type f | sort")).split()
        assert found == [
            "./conftest.py",
            "./tests/__init__.py",
            "./tests/conftest.py",
            "./tests/data/x.txt",
            "./tests/helpers.py",
            "./tests/inside",
        ]
        assert await shell(box, f"find {TRUSTED} ! -user root; find {TRUSTED} -perm /022") == ""


async def test_the_plan_is_out_of_the_childrens_sight() -> None:
    async with local_box(BASE) as box:
        await boxes.install(box, plan(), TASK.limits)
        for reader in (0, 1):
            uid = str(box.uid + reader)
            code = f"import os\nos.setuid({uid})\nprint(os.access({TRUSTED + '/plan.json'!r}, os.R_OK), os.access({TRUSTED + '/own.ini'!r}, os.R_OK))"
            said = await trusted(box, code)
            assert said == "False True\n"
        assert "median" in await shell(box, f"cat {TRUSTED}/plan.json", principal="trusted")
