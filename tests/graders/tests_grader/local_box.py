"""A grading box without an engine: namespaces, real uids, the three capabilities that the in-box agent keeps, and the real runner.

For root on a plain Linux machine. It stands in for a backend's grader box so that forgeries are tried for real; it is no boundary against
kernel attacks, and offers only the operations that the grader uses.
"""

import asyncio
import fcntl
import json
import os
import secrets
import signal
import sys
import sysconfig
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from orchestrator.graders.tests.box import _tar
from orchestrator.models import Evidence, FileChange, Task
from orchestrator.operations import (
    Exec,
    ExecResult,
    Failure,
    FailureCode,
    Operation,
    OperationResult,
    Output,
    Principal,
    Put,
    PutResult,
    Read,
    ReadResult,
)

PYTHON = "/srv/venv/bin/python"
WORKSPACE = "/srv/workspace"
TRUSTED = "/srv/trusted"
UID_COUNT = 64

INIT = """
import json, os, signal, subprocess, sys
wish = json.loads(sys.argv[1])
me = os.readlink("/proc/self")  # as the outer /proc names it
def mount(*words): subprocess.run(["mount", *words], check=True)
mount("-t", "proc", "proc", "/proc")
mount("-t", "tmpfs", "-o", "mode=755,size=256m", "tmpfs", "/srv")
for source, target in wish["binds"]:  # before /tmp is hidden: the environment may lie below it
    os.makedirs(target)
    mount("--bind", source, target)
for folder in ("/tmp", "/var/tmp", "/dev/shm"):
    os.makedirs(folder, exist_ok=True)
    mount("-t", "tmpfs", "-o", "mode=1777,size=64m", "tmpfs", folder)
os.makedirs("/srv/venv/bin")
os.symlink(wish["python"], "/srv/venv/bin/python")
with open("/srv/venv/pyvenv.cfg", "w") as settings:
    settings.write("home = " + os.path.dirname(wish["python"]) + "\\ninclude-system-site-packages = false\\n")
os.mkdir("/srv/workspace"); os.chown("/srv/workspace", wish["uid"], wish["uid"])
os.mkdir("/srv/trusted")
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # orphans are reaped by the kernel
print(me, flush=True)
while True: signal.pause()
"""

CAPABILITIES = "-all,+setuid,+setgid,+kill"
NAMESPACES = ("--mount", "--pid", "--ipc", "--net")


def _interpreter() -> tuple[list[tuple[str, str]], str]:
    """Binds that make this environment's packages, and its interpreter if need be, readable for any uid; the interpreter's path."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    binds = [(sysconfig.get_path("purelib"), f"/srv/venv/lib/{version}/site-packages")]
    if sys.base_prefix == "/usr":
        return binds, f"/usr/bin/{version}"
    return [*binds, (sys.base_prefix, "/srv/python")], f"/srv/python/bin/{version}"


@dataclass(slots=True)
class LocalBox:
    """`orchestrator.interfaces.GraderBox`."""

    init_pid: str
    uid: int

    async def run(self, op: Operation) -> OperationResult:
        match op:
            case Exec():
                return await self._exec(op)
            case Put(path=path, tar=tar, principal=principal):
                root = TRUSTED if principal == "trusted" else WORKSPACE
                done = await self._exec(
                    Exec(
                        argv=("tar", "xp", "--no-same-owner", "-C", f"{root}/{path}"),
                        stdin=tar,
                        timeout_s=60,
                        principal=principal,
                    )
                )
                if done.exit_code != 0:
                    return Failure(code=FailureCode.IO, message=done.stdout.head.decode())
                return PutResult(files=0, size_bytes=len(tar))
            case Read(path=path):
                done = await self._exec(
                    Exec(argv=("cat", f"{WORKSPACE}/{path}"), timeout_s=10, output_limit_bytes=1 << 20)
                )
                if done.exit_code != 0:
                    return Failure(code=FailureCode.NOT_FOUND, message=path)
                data = done.stdout.head
                return ReadResult(data=data, size_bytes=len(data), eof=True, sha256=None)
        raise NotImplementedError(type(op).__name__)

    async def _exec(self, op: Exec) -> ExecResult:
        read_end, write_end = os.pipe()
        high = fcntl.fcntl(write_end, fcntl.F_DUPFD_CLOEXEC, 20)
        os.close(write_end)
        events = asyncio.create_task(asyncio.to_thread(_read_all, read_end))
        with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as output:
            given.write(op.stdin)
            given.seek(0)
            try:
                third = f"3>&{high} {high}>&-" if op.events else f"{high}>&-"
                process = await asyncio.create_subprocess_exec(
                    *("nsenter", "-t", self.init_pid, *NAMESPACES, "--"),
                    *("bash", "-c", f'cd "$0" && exec "$@" {third}', WORKSPACE),
                    *_privileges(op.principal, self.uid),
                    *op.argv,
                    stdin=given,
                    stdout=output,  # a file: the command's end is its own end, whatever it left in the background
                    stderr=asyncio.subprocess.STDOUT,
                    env=self._env(op),
                    pass_fds=(high,),
                    start_new_session=True,
                )
            finally:
                os.close(high)
            timed_out = False
            try:
                await asyncio.wait_for(process.wait(), op.timeout_s)
            except TimeoutError:
                os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
                timed_out = True
            output.seek(0)
            text = output.read()
        code = process.returncode
        assert code is not None
        return ExecResult(
            exit_code=code if code >= 0 else None,
            signal=None if code >= 0 else str(-code),
            timed_out=timed_out,
            stdout=Output(head=text, total_bytes=len(text)),
            events=await events,
        )

    def _env(self, op: Exec) -> dict[str, str]:
        env = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME": "/nonexistent", **op.env}
        if op.principal == "trusted":
            env |= {"TILTYARD_WORKSPACE": WORKSPACE, "TILTYARD_TRUSTED_DIR": TRUSTED}
            env |= {"TILTYARD_UID_BASE": str(self.uid), "TILTYARD_UID_COUNT": str(UID_COUNT)}
        return env


def _privileges(principal: Principal, uid: int) -> tuple[str, ...]:
    keep = (
        "--bounding-set",
        CAPABILITIES if principal == "trusted" else "-all",
        "--inh-caps",
        "-all",
        "--no-new-privs",
        "--",
    )
    if principal == "trusted":
        return ("setpriv", *keep)
    return ("setpriv", "--reuid", str(uid), "--regid", str(uid), "--clear-groups", *keep)


def _read_all(fd: int) -> bytes:
    with os.fdopen(fd, "rb") as file:
        return file.read()


@asynccontextmanager
async def local_box(files: Mapping[str, str]) -> AsyncIterator[LocalBox]:
    """A box whose workspace holds `files`; gone with everything in it at the end."""
    uid = 1_500_000_000 + secrets.randbelow(1_000_000) * UID_COUNT  # limits count per uid, machine-wide
    binds, python = _interpreter()
    wish = json.dumps({"binds": binds, "python": python, "uid": uid})
    process = await asyncio.create_subprocess_exec(
        *("unshare", *NAMESPACES, "--fork", "--kill-child", "--propagation", "private"),
        *(sys.executable, "-I", "-S", "-c", INIT, wish),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        pid = (await process.stdout.readline()).decode().strip()
        assert pid, "the box did not start"
        box = LocalBox(init_pid=pid, uid=uid)
        await box.run(Put(path=".", tar=_tar({path: (0o644, text.encode()) for path, text in files.items()})))
        yield box
    finally:
        process.kill()
        await process.wait()


@dataclass(slots=True)
class LocalBench:
    """`orchestrator.interfaces.Bench` over local boxes."""

    task: Task
    evidence: Evidence
    files: Mapping[str, str]
    blobs: Mapping[str, bytes]
    boxes: int = field(default=0)

    @asynccontextmanager
    async def fresh_box(self) -> AsyncIterator[LocalBox]:
        self.boxes += 1
        async with local_box(self.files) as box:
            yield box

    async def blob(self, change: FileChange) -> bytes:
        assert change.blob is not None
        return self.blobs[change.blob]
