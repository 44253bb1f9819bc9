"""A real server process over a real engine, and a trainer that never gives up: what the end-to-end and fault tests share."""

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

PLAIN_GIT = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_AUTHOR_NAME": "t",
    "GIT_AUTHOR_EMAIL": "t@localhost",
    "GIT_COMMITTER_NAME": "t",
    "GIT_COMMITTER_EMAIL": "t@localhost",
}
HIDDEN_TEST = "from calc import add\n\n\ndef test_add():\n    assert add(2, 3) == 5\n\n\ndef test_zero():\n    assert add(0, 0) == 0\n"
BROKEN, MENDED = "def add(a, b):\n    return a - b\n", "def add(a, b):\n    return a + b\n"
RETRY_S = 90.0


def make_repository(path: Path) -> str:
    """A repository with a bug, and a later commit that mends it; returns the commit before."""
    path.mkdir(parents=True)

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", *words], cwd=path, env={**os.environ, **PLAIN_GIT}, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    git("init", "-q", "-b", "main")
    (path / "calc.py").write_text(BROKEN)
    (path / "README.md").write_text("A calculator.\n")
    git("add", ".")
    git("commit", "-qm", "Add calc")
    base = git("rev-parse", "HEAD")
    (path / "calc.py").write_text(MENDED)
    git("commit", "-qam", "FUTURE-MARK mend add")
    return base


def task_rows(repo: Path, commit: str, **extra: object) -> list[dict[str, object]]:
    """One `tests` task and one `file_f1` task."""
    common = {"repo": str(repo), "commit": commit, "image": "tiltyard/python:3.11", "prompt": "Mend add()."}
    common |= {"limits": {"memory_mib": 256, "disk_mib": 64, "pids": 128}} | extra
    tests = {"hidden": [{"path": "test_calc.py", "text": HIDDEN_TEST}], "fail_to_pass": ["test_calc.py::test_add"]}
    tests |= {"pass_to_pass": ["test_calc.py::test_zero"]}
    return [
        {"id": "calc-tests", **common, "grader": "tests", "tests": tests},
        {"id": "calc-files", **common, "grader": "file_f1", "file_f1": {"source": "submitted", "gold": ["calc.py"]}},
    ]


@dataclass(slots=True)
class Server:
    """`tiltyard serve` as a child process that can be killed and started again on the same port."""

    folder: Path
    tasks: Path
    deployment: str
    state: Path
    env: dict[str, str] = field(default_factory=dict)
    prefix: tuple[str, ...] = ()
    """What runs the server: a `setpriv` that makes it another user's, say."""
    port: int = 0
    process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    async def start(self, **env: str) -> None:
        """Returns when it takes connections. AssertionError with its log when it does not."""
        self.port = self.port or free_port()
        settings = {
            "TILTYARD_STATE_DIR": str(self.state),
            "TILTYARD_DEPLOYMENT": self.deployment,
            "TILTYARD_HOST_ID": "e2e",
            "TILTYARD_MEMORY_LIMIT_MIB": "8192",
            "TILTYARD_ACCEPT_OLD_RUNC": "1",
        }
        command = [*self.prefix, sys.executable, "-m", "orchestrator.cli.main", "serve"]
        command += ["--tasks", str(self.tasks), "--port", str(self.port), "--insecure-loopback", "--accept-old-runc"]
        with (self.folder / "server.log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *command,
                env={**os.environ, **settings, **self.env, **env},
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        assert self.process.stdout is not None
        line = await asyncio.wait_for(self.process.stdout.readline(), 60)
        assert b"serving on" in line, self.log()[-3000:]

    def log(self) -> str:
        return (self.folder / "server.log").read_text(errors="replace")

    async def kill(self) -> None:
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGKILL)
        await self.process.wait()

    async def died(self) -> int:
        assert self.process is not None
        return await asyncio.wait_for(self.process.wait(), 60)

    async def stop(self) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(self.process.wait(), 60)
            except TimeoutError:
                await self.kill()
                raise

    def boxes(self) -> dict[str, tuple[str, int]]:
        """Sandbox id -> (container id, pid of its agent) of the running agent boxes of this deployment (grading boxes apart)."""
        found: dict[str, tuple[str, int]] = {}
        for shown in inspect(self.containers()):
            labels = shown["Config"]["Labels"]
            if labels.get("tiltyard.grader") not in ("true", "1", "yes"):
                found[labels["tiltyard.sandbox"]] = (shown["Id"], shown["State"]["Pid"])
        return found

    def containers(self) -> list[str]:
        listed = subprocess.run(
            ["docker", "ps", "-aq", "--filter", f"label=tiltyard.deployment={self.deployment}"],
            capture_output=True,
            text=True,
            check=True,
        )
        return listed.stdout.split()

    def mounts(self) -> list[str]:
        state = str(self.state)
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        return [line for line in lines if state in line]

    def loops(self) -> list[str]:
        listed = subprocess.run(["losetup", "-l", "-n", "-O", "BACK-FILE"], capture_output=True, text=True, check=True)
        return [line for line in listed.stdout.splitlines() if str(self.state) in line]

    def leftovers(self) -> list[str]:
        return self.containers() + self.mounts() + self.loops()

    async def settled(self, timeout_s: float = 30.0) -> list[str]:
        """Leftovers once removal had time to finish; empty when all is gone."""
        for _ in range(int(timeout_s / 0.2)):
            if not self.leftovers():
                return []
            await asyncio.sleep(0.2)
        return self.leftovers()

    def sweep(self) -> None:
        env = {**os.environ, "TILTYARD_STATE_DIR": str(self.state), "TILTYARD_HOST_ID": "e2e"}
        command = [sys.executable, "-m", "orchestrator.cli.main", "sweep", "--deployment", self.deployment]
        subprocess.run(command, env=env, check=True, capture_output=True, timeout=120)


def inspect(ids: Sequence[str]) -> list[dict[str, dict[str, object]] | object]:
    if not ids:
        return []
    done = subprocess.run(["docker", "inspect", *ids], capture_output=True, text=True, check=False)
    parsed: list[object] = json.loads(done.stdout or "[]")
    return parsed


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


def write_tasks(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@asynccontextmanager
async def serving(
    folder: Path,
    rows: Sequence[Mapping[str, object]],
    *,
    state: Path | None = None,
    prefix: tuple[str, ...] = (),
    **env: str,
) -> AsyncIterator[Server]:
    """A started server; at the end it is stopped and what it left is swept.

    Its state lies in a short folder of its own: unix sockets below it have 107 bytes for their path.
    """
    with tempfile.TemporaryDirectory(prefix="ty-") as short:
        async with _serving(folder, rows, state or Path(short), env, prefix) as server:
            yield server


@asynccontextmanager
async def _serving(
    folder: Path, rows: Sequence[Mapping[str, object]], state: Path, env: dict[str, str], prefix: tuple[str, ...]
) -> AsyncIterator[Server]:
    name = re.sub(r"[^a-z0-9]+", "-", folder.name.lower()).strip("-")[:20]
    server = Server(
        folder=folder,
        tasks=write_tasks(folder / "tasks.jsonl", rows),
        deployment=f"{name}-{os.getpid()}",
        state=state,
        env=env,
        prefix=prefix,
    )
    try:
        await server.start()
        yield server
    finally:
        with contextlib.suppress(TimeoutError):
            await server.stop()
        if (state / server.deployment / "boxes").is_dir():
            await asyncio.to_thread(server.sweep)


@dataclass(slots=True)
class Trainer:
    """Plays one rollout, and repeats a request until it is answered, as long as the server is being killed."""

    server: Server
    trace_id: str
    task_id: str
    session: aiohttp.ClientSession
    replies: dict[str, tuple[dict[str, object], bytes]] = field(default_factory=dict)

    async def call(self, call_id: str, tool: str, **arguments: object) -> str:
        body = {
            "type": "function_call",
            "id": f"fc-{call_id}",
            "call_id": call_id,
            "name": tool,
            "arguments": json.dumps(arguments),
            "trace_id": self.trace_id,
            "item": {"task_id": self.task_id},
        }
        raw = await self.post("/tools", body)
        known = self.replies.setdefault(call_id, (body, raw))
        assert known[1] == raw, f"{self.trace_id} {call_id}: a retry answered other bytes"
        output = json.loads(raw)["output"]
        assert isinstance(output, str)
        return output

    async def again(self, call_id: str) -> bytes:
        """Send a finished call once more; the reply's bytes."""
        return await self.post("/tools", self.replies[call_id][0])

    async def grade(self, text: str = "Done.") -> float:
        sample = {"output_text": text, "output_tools": []}
        raw = await self.post(
            "/grade", {"sample": sample, "item": {"task_id": self.task_id}, "trace_id": self.trace_id}
        )
        score = json.loads(raw)["score"]
        assert isinstance(score, float)
        return score

    async def post(self, path: str, body: Mapping[str, object]) -> bytes:
        until = time.monotonic() + RETRY_S
        last = ""
        while time.monotonic() < until:
            try:
                async with self.session.post(self.server.url + path, json=body) as response:
                    raw = await response.read()
                    if response.status == 200:
                        return raw
                    last = f"{response.status} {raw[:300]!r}"
                    assert response.status >= 500, last
            except (aiohttp.ClientError, ConnectionError, asyncio.IncompleteReadError) as error:
                last = repr(error)
            await asyncio.sleep(0.1)
        raise AssertionError(f"{path} was never answered: {last}\n{self.server.log()[-3000:]}")
