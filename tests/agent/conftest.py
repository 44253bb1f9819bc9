"""Real agents in boxes of their own: a private mount and pid namespace, a block of uids, folders as a backend lays them out."""

import asyncio
import contextlib
import itertools
import os
import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from orchestrator.agent.binary import agent_binary
from orchestrator.agent.client import AgentClient
from orchestrator.agent.config import AgentConfig
from orchestrator.errors import SandboxLost, TiltyardError
from orchestrator.models import CallKey, Epoch, JobId, OpId, PendingCall, RolloutKey, SandboxId, TraceId
from orchestrator.operations import Exec, ExecResult, Operation, OperationResult

ROLLOUT = RolloutKey(job=JobId("job"), trace_id=TraceId("trace/ä 1"))
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
UIDS = 64
SANDBOX = "box-1"
_blocks = itertools.count(1_500_000_000 + secrets.randbelow(100_000) * UIDS, UIDS)


@dataclass(kw_only=True)
class Box:
    """One agent and the folders it serves. `run` gives each operation a call of its own."""

    root: Path
    config: AgentConfig
    process: asyncio.subprocess.Process
    client: AgentClient
    _sequence: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    @property
    def workspace(self) -> Path:
        return self.root / "workspace"

    @property
    def uid(self) -> int:
        return self.config.uid_base

    def header(self, tool: str = "test") -> PendingCall:
        key = CallKey(secrets.token_hex(16))
        return PendingCall(key=key, sequence=next(self._sequence), tool=tool, arguments={"a": [1, "ä"]}, operations=0)

    async def send(
        self, op: Operation, call: PendingCall, number: int = 0, *, timeout_s: float = 20
    ) -> OperationResult:
        op_id = OpId(call=call.key, number=number)
        deadline = time.monotonic() + timeout_s
        return await self.client.run(op, op_id=op_id, deadline=deadline, call=None if number else call)

    async def run(self, op: Operation, *, timeout_s: float = 20) -> OperationResult:
        return await self.send(op, self.header(), timeout_s=timeout_s)

    async def own(self, op: Operation) -> OperationResult:
        """One of the host's own operations."""
        op_id = OpId(call=CallKey("host"), number=0)
        return await self.client.run(op, op_id=op_id, deadline=time.monotonic() + 30)

    async def exec(self, *argv: str, timeout_s: float = 15, **more: object) -> ExecResult:
        result = await self.run(Exec(argv=argv, timeout_s=timeout_s, **more))  # type: ignore[arg-type]
        assert isinstance(result, ExecResult), result
        return result

    async def sh(self, script: str, *, timeout_s: float = 15, **more: object) -> ExecResult:
        return await self.exec("sh", "-c", script, timeout_s=timeout_s, **more)

    async def text(self, script: str) -> str:
        result = await self.sh(script)
        assert result.exit_code == 0, result
        return result.stdout.head.decode()

    def pids(self) -> list[int]:
        """The machine's pids of everything that runs as a uid of this box."""
        block = range(self.config.uid_base, self.config.uid_base + self.config.uid_count)
        return [pid for pid, uid, state in processes() if uid in block and state not in "ZX"]

    def zombies(self) -> list[int]:
        block = range(self.config.uid_base, self.config.uid_base + self.config.uid_count)
        return [pid for pid, uid, state in processes() if uid in block and state == "Z"]

    @property
    def agent_pid(self) -> int:
        """The machine's pid of the agent: the one child of unshare."""
        return first_child(self.process.pid)

    def another_client(self) -> AgentClient:
        return AgentClient(SandboxId(SANDBOX), Path(self.config.socket), explain_loss=lost)


def processes() -> Iterator[tuple[int, int, str]]:
    """(pid, uid, state) of the machine's processes that are not root's."""
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError, ValueError):
                uid = os.stat(f"/proc/{entry}/task").st_uid
                if uid == 0:
                    continue  # root's, or undumpable
                state = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[0]
                yield int(entry), uid, state


async def lost() -> TiltyardError:
    return SandboxLost("the test's box is lost")


async def until(true: Callable[[], bool], what: str, *, timeout_s: float = 10) -> None:
    """Wait for something that gives no signal: another process's state in /proc."""
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, f"in {timeout_s} s: {what}"
        await asyncio.sleep(0.01)


def lay_out(root: Path, **changes: object) -> AgentConfig:
    """Folders as a backend makes them, and the file that names them."""
    root.chmod(0o755)
    run = root / "run"
    run.mkdir(mode=0o755)
    config = AgentConfig(
        socket=str(run / "agent.sock"),
        state_dir=str(run / "state"),
        trusted_dir=str(run / "trusted"),
        workspace=str(root / "workspace"),
        home=str(root / "home"),
        tmp=str(root / "tmp"),
        uid_base=next(_blocks),
        uid_count=UIDS,
        env={"PATH": PATH, "LANG": "C.UTF-8"},
    )
    config = replace(config, **changes)  # type: ignore[arg-type]
    for folder in (config.workspace, config.home, config.tmp):
        Path(folder).mkdir(mode=0o755)
        os.chown(folder, config.uid_base, config.uid_base)
    if config.mode == "one_uid":
        os.chown(run, config.uid_base, config.uid_base)  # the agent's, and so the commands', own
    (run / "config.json").write_bytes(config.to_json())
    return config


async def start_agent(
    root: Path, *, prefix: tuple[str, ...] = (), env: Mapping[str, str] | None = None
) -> asyncio.subprocess.Process:
    command = ("unshare", "-pmf", "--mount-proc", "--kill-child", *prefix, str(agent_binary()))
    log = (root / "log").open("ab")
    with log:
        return await asyncio.create_subprocess_exec(
            *command, "serve", "--config", str(root / "run" / "config.json"), stdout=log, stderr=log, env=env
        )


async def stop_agent(process: asyncio.subprocess.Process) -> None:
    """Kill the namespace's first process: unshare ends when that, and so everything in the namespace, is gone."""
    if process.returncode is None:
        with contextlib.suppress(OSError, IndexError):
            os.kill(first_child(process.pid), signal.SIGKILL)
            await process.wait()
        if process.returncode is None:
            process.kill()
    await process.wait()


def first_child(pid: int) -> int:
    """Raises OSError, IndexError."""
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


OpenBox = Callable[..., AbstractAsyncContextManager[Box]]


@pytest.fixture
def open_box() -> Iterator[OpenBox]:
    """`async with open_box(journal_limit_bytes=...) as box`; `leased=False` leaves the lease to the test.

    `prefix` is a command that runs the agent; "{workspace}" and "{uid}" in it are the box's.
    """
    made: list[Path] = []

    @asynccontextmanager
    async def opened(*, leased: bool = True, prefix: tuple[str, ...] = (), **changes: object) -> AsyncIterator[Box]:
        root = Path(tempfile.mkdtemp(prefix="test-agent-"))
        made.append(root)
        config = lay_out(root, **changes)
        known = {"workspace": config.workspace, "uid": config.uid_base}
        process = await start_agent(root, prefix=tuple(part.format_map(known) for part in prefix))
        client = AgentClient(SandboxId(SANDBOX), Path(config.socket), explain_loss=lost)
        box = Box(root=root, config=config, process=process, client=client)
        try:
            await ready(box)
            if leased:
                await client.lease(ROLLOUT, Epoch(1))
            yield box
        finally:
            await client.aclose()
            await stop_agent(box.process)

    yield opened
    for root in made:
        shutil.rmtree(root)


async def ready(box: Box) -> None:
    try:
        await box.client.wait_ready(time.monotonic() + 10)
    except TimeoutError:
        pytest.fail(f"the agent did not start: {(box.root / 'log').read_text()}")


@pytest.fixture
async def box(open_box: OpenBox) -> AsyncIterator[Box]:
    async with open_box() as opened:
        yield opened
