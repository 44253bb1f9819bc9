"""The agent as first process of a container with the capabilities it is meant to have, and no more; and in one-uid mode without any."""

import asyncio
import io
import os
import secrets
import shutil
import subprocess
import tarfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from orchestrator.agent.binary import agent_binary
from orchestrator.agent.client import AgentClient
from orchestrator.models import Epoch, SandboxId
from orchestrator.operations import (
    Delta,
    DeltaResult,
    Exec,
    ExecResult,
    Failure,
    Freeze,
    Note,
    NoteResult,
    OperationResult,
    Read,
    Session,
    SessionFate,
    SessionResult,
    Write,
    WriteResult,
)
from tests.agent.conftest import ROLLOUT, SANDBOX, Box, lay_out, lost
from tests.needs import needs

pytestmark = [pytest.mark.anyio, needs("docker", "root"), pytest.mark.slow]

PROGRAMS = ("sh", "sleep", "cat", "grep", "head", "id", "mkdir", "ls", "rm", "tail", "setsid", "env")


def libraries(program: Path) -> set[str]:
    """What the program is linked with, as ldd names it."""
    listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout.split()
    return {word for word in listed if word.startswith("/")}


@pytest.fixture(scope="module")
def image() -> Iterator[str]:
    """A shell, a few programs, their libraries and mount points: nothing is pulled."""
    name = f"test-agent-{secrets.token_hex(4)}"
    found = [Path(shutil.which(program) or "") for program in PROGRAMS]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", dereference=True) as tar:
        for program in found:
            tar.add(program, f"usr/bin/{program.name}")
        for library in set().union(*(libraries(program) for program in found)):
            tar.add(library, library.lstrip("/"))
        link = tarfile.TarInfo("bin")
        link.type, link.linkname = tarfile.SYMTYPE, "usr/bin"
        tar.addfile(link)
        for folder in ("tmp", "proc", "sys", "dev", "etc", "box"):
            info = tarfile.TarInfo(folder)
            info.type, info.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(info)
    subprocess.run(["docker", "import", "-", name], input=buffer.getvalue(), capture_output=True, check=True)
    yield name
    subprocess.run(["docker", "image", "rm", "-f", name], capture_output=True, check=True)


async def docker(*arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        "docker", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, error = await process.communicate()
    assert process.returncode == 0, error.decode()
    return out.decode().strip()


@asynccontextmanager
async def container(root: Path, image: str, *options: str, **config: object) -> AsyncIterator[Box]:
    """A box whose folders lie at the same paths inside, so that one configuration says it all."""
    layout = lay_out(root, **config)
    name = root.name
    mounts = [f"--volume={path}:{path}" for path in (root / "run", layout.workspace, layout.home, layout.tmp)]
    await docker(
        "run", "--detach", "--name", name, "--label", "test-agent", "--network=none", "--read-only", "--cap-drop=ALL",
        "--security-opt=no-new-privileges", "--memory=96m", "--memory-swap=96m", *options, *mounts,
        f"--volume={agent_binary()}:/tiltyard-agent:ro", "--entrypoint=/tiltyard-agent",
        image, "serve", "--config", str(root / "run" / "config.json"),
    )  # fmt: skip
    client = AgentClient(SandboxId(SANDBOX), Path(layout.socket), explain_loss=lost)
    process = await asyncio.create_subprocess_exec("docker", "wait", name, stdout=asyncio.subprocess.DEVNULL)
    try:
        await client.wait_ready(time.monotonic() + 20)
        await client.lease(ROLLOUT, Epoch(1))
        yield Box(root=root, config=layout, process=process, client=client)
    finally:
        await client.aclose()
        await docker("rm", "--force", "--volumes", name)
        await process.wait()


@pytest.fixture
def root() -> Iterator[Path]:
    path = Path(f"/tmp/test-agent-{secrets.token_hex(6)}")
    path.mkdir(mode=0o755)
    yield path
    shutil.rmtree(path)


THREE = ("--cap-add=SETUID", "--cap-add=SETGID", "--cap-add=KILL")


async def test_three_capabilities_are_enough(root: Path, image: str) -> None:
    async with container(root, image, *THREE, "--pids-limit=200") as box:
        posture = (await box.client.health()).posture
        assert (posture.capabilities, posture.no_new_privs, posture.seccomp) == ("00000000000000e0", True, 2)
        assert posture.pids_limit == 200
        assert posture.gaps == ()
        status = await box.text("grep -E '^(Uid|Cap|NoNewPrivs|Seccomp):?' /proc/self/status")
        assert status.count("0000000000000000") == 4, "all but the bounding set"
        assert isinstance(await box.run(Write(path="a/f", data=b"x")), WriteResult)
        assert os.stat(box.workspace / "a" / "f").st_uid == box.uid
        late = await box.sh("(setsid sleep 100 &); sleep 100", timeout_s=0.4)
        assert (late.timed_out, late.killed_all) == (True, False)
        assert box.pids() == []
        delta = await box.own(Delta(root=str(box.workspace), manifest={}))
        assert isinstance(delta, DeltaResult)
        assert [change.path for change in delta.changes] == ["a/f"]
        await box.text("sleep 100 & true")
        await box.own(Freeze())
        assert box.pids() == []


async def test_a_full_pids_limit_does_not_end_the_agent(root: Path, image: str) -> None:
    """No process limit per uid here: the container's own is used up, and the agent may make no thread any more."""
    async with container(root, image, *THREE, "--pids-limit=100") as box:
        sleepers: list[asyncio.Task[OperationResult]] = []
        while not any(task.done() for task in sleepers):
            sleepers.append(asyncio.create_task(box.run(Exec(argv=("sleep", "100"), timeout_s=100), timeout_s=100)))
            await asyncio.wait(sleepers, timeout=0.02, return_when=asyncio.FIRST_COMPLETED)
        refused = sleepers.pop().result()
        assert isinstance(refused, Failure)
        assert "limit of processes" in refused.message
        for _ in range(5):
            answers = await asyncio.gather(
                *(box.run(Write(path=f"f{number}", data=b"x")) for number in range(20)),
                *(box.run(Read(path="/etc/none")) for _ in range(20)),
                *(box.run(Exec(argv=("id",), timeout_s=5)) for _ in range(20)),
                *(box.run(Note(data=b"x")) for _ in range(20)),
            )
            assert sum(isinstance(answer, WriteResult) for answer in answers) == 20
            assert sum(isinstance(answer, NoteResult) for answer in answers) == 20
        await box.own(Freeze())
        assert box.pids() == []
        await asyncio.gather(*sleepers)


async def test_memory_ends_the_hog_and_is_told(root: Path, image: str) -> None:
    async with container(root, image, *THREE, "--pids-limit=100") as box:
        hog = await box.exec("tail", "/dev/zero", timeout_s=20)
        assert (hog.signal, hog.oom_killed, hog.timed_out) == ("SIGKILL", True, False)
        killed = await box.sh("kill -9 $$", timeout_s=5)
        assert (killed.signal, killed.oom_killed) == ("SIGKILL", False), "the control"
        assert await box.run(Note(data=b"x")) == NoteResult(data=b"x")


async def session(
    box: Box, script: str, *, name: str = "main", timeout_s: float = 10, tty: bool = False
) -> SessionResult:
    result = await box.run(Session(name=name, script=script, timeout_s=timeout_s, tty=tty), timeout_s=40)
    assert isinstance(result, SessionResult), result
    return result


async def test_memory_that_runs_out_in_a_session_is_told(root: Path, image: str) -> None:
    async with container(root, image, *THREE, "--pids-limit=100") as box:
        hog = await session(box, "A=1; tail /dev/zero", timeout_s=20)
        assert (hog.exit_code, hog.oom_killed, hog.fate) == (137, True, SessionFate.KEPT)
        assert (await session(box, "echo $A; sh -c 'kill -9 $$'")).oom_killed is False, "the control"
        assert (await session(box, "echo $A")).output.head == b"1\n"


async def test_one_uid_works_and_says_what_it_lacks(root: Path, image: str) -> None:
    uid = 1_700_000_123
    options = (f"--user={uid}:{uid}", "--pids-limit=100")
    async with container(root, image, *options, mode="one_uid", uid_base=uid, uid_count=1) as box:
        health = await box.client.health()
        assert health.mode == "one_uid"
        assert (health.posture.agent_uid, health.posture.command_uid) == (uid, uid)
        assert health.posture.capabilities == "0" * 16
        assert health.posture.gaps == ("no_tags", "shared_uid")
        assert (await box.text("id -u")).strip() == str(uid)
        assert isinstance(await box.run(Write(path="f", data=b"x")), WriteResult)
        for number in (9, 15, 3, 11, 6, 2):
            await box.sh(f"kill -{number} 1")
        assert await box.run(Note(data=b"x")) == NoteResult(data=b"x")
        for probe in ("cat /proc/1/environ", "cat /proc/1/maps", "ls /proc/1/fd", "cat /proc/1/root/etc/passwd"):
            assert (await box.sh(probe)).exit_code != 0, probe
        beside = asyncio.create_task(box.exec("sleep", "100", timeout_s=100))
        late = await box.sh("(setsid sleep 100 &); sleep 100", timeout_s=0.4)
        assert (late.timed_out, late.killed_all) == (True, False)
        await session(box, "A=1; sleep 90 &")
        hung = await session(box, "(setsid sleep 100 &); sleep 100", timeout_s=0.4)
        assert (hung.timed_out, hung.fate) == (True, SessionFate.KEPT)
        assert (await session(box, "echo $A; kill -0 $! && echo lives")).output.head == b"1\nlives\n"
        assert (await session(box, "trap '' INT; while :; do :; done", timeout_s=0.4)).fate is SessionFate.RESTARTED
        terminal = await session(box, "test -t 1 && echo terminal", name="t", tty=True)
        assert terminal.output.head == b"terminal\n"
        assert not beside.done()
        await box.own(Freeze())
        result = await beside
        assert isinstance(result, ExecResult)
        assert result.signal == "SIGKILL"
