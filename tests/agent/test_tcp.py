"""The agent over a network: who is heard, who is not, and what a box is seeded with. Here the network is loopback, which pods refuse."""

# ruff: noqa: ASYNC240  (small local files, read at once)

import asyncio
import base64
import io
import json
import os
import socket
import stat
import subprocess
import tarfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from orchestrator.agent.binary import agent_binary
from orchestrator.agent.client import AgentClient
from orchestrator.agent.tokens import TokenSigner, load_signer
from orchestrator.agent.transport import TcpEndpoint
from orchestrator.errors import AgentProtocolError, Misconfigured, SandboxError, SandboxLost
from orchestrator.models import CallKey, Epoch, OpId, PendingCall, SandboxId
from orchestrator.operations import Delta, DeltaResult, Exec, ExecResult, Freeze, FreezeResult
from tests.agent.conftest import ROLLOUT, lay_out, lost, start_agent, stop_agent
from tests.needs import needs

pytestmark = [pytest.mark.anyio, needs("root")]

BOX = SandboxId("pod-1")
SIGNER = TokenSigner(bytes(range(32)))
RLIMITS = {"nofile": 333, "nproc": 77, "fsize_bytes": 600_000_000}


@dataclass(frozen=True, slots=True)
class Pod:
    port: int
    client: AgentClient
    workspace: Path

    def another(self, token: Callable[[int], str]) -> AgentClient:
        return AgentClient(BOX, TcpEndpoint(host="127.0.0.1", port=self.port, token=token), explain_loss=lost)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@asynccontextmanager
async def pod(root: Path, *, allow_loopback: bool = True) -> AsyncIterator[Pod]:
    port = free_port()
    config = lay_out(
        root,
        listen=f"127.0.0.1:{port}",
        box=BOX,
        public_key_b64=SIGNER.public_key_b64,
        allow_loopback=allow_loopback,
        rlimits=RLIMITS,
    )
    process = await start_agent(root)
    endpoint = TcpEndpoint(host="127.0.0.1", port=port, token=lambda epoch: SIGNER.token(BOX, epoch))
    client = AgentClient(BOX, endpoint, explain_loss=lost)
    try:
        yield Pod(port, client, Path(config.workspace))
    finally:
        await client.aclose()
        await stop_agent(process)


async def run(client: AgentClient, command: str, key: str = "c1") -> ExecResult:
    call = PendingCall(key=CallKey(key), sequence=1, tool="shell", arguments={}, operations=0)
    op = Exec(argv=("sh", "-c", command), timeout_s=10)
    result = await client.run(op, op_id=OpId(call=call.key, number=0), deadline=time.monotonic() + 20, call=call)
    assert isinstance(result, ExecResult), result
    return result


async def test_a_host_with_a_token_has_everything(short_path: Path) -> None:
    async with pod(short_path) as box:
        assert (await box.client.wait_ready(time.monotonic() + 10)).rollout is None
        await box.client.lease(ROLLOUT, Epoch(1))
        result = await run(
            box.client, "ulimit -n; awk '/Max processes/ {print $3}' /proc/self/limits; echo made > file; cat file"
        )
        assert result.stdout.head == b"333\n77\nmade\n"
        await box.client.acknowledge([CallKey("c1")])
        op_id, deadline = OpId(call=CallKey("host"), number=0), time.monotonic() + 20
        delta = await box.client.run(
            Delta(root=".", manifest={}, ignore=(), max_entries=10), op_id=op_id, deadline=deadline
        )
        assert isinstance(delta, DeltaResult)
        assert [change.path for change in delta.changes] == ["file"]
        assert isinstance(await box.client.run(Freeze(), op_id=op_id, deadline=deadline), FreezeResult)


def signed(claims: dict[str, object], seed: bytes = bytes(range(32))) -> str:
    signer = TokenSigner(seed)
    return signer._sign(claims)  # type: ignore[arg-type]


NOW = int(time.time())
BAD_TOKENS = {
    "none": "",
    "garbage": "a.b",
    "no signature": SIGNER.token(BOX, 1).partition(".")[0],
    "another key": signed({"box": BOX, "epoch": 1, "exp": NOW + 300}, bytes(32)),
    "another box": signed({"box": "pod-2", "epoch": 1, "exp": NOW + 300}),
    "expired": signed({"box": BOX, "epoch": 1, "exp": NOW - 60}),
    "good for too long": signed({"box": BOX, "epoch": 1, "exp": NOW + 90_000}),
    "another field": signed({"box": BOX, "epoch": 1, "exp": NOW + 300, "more": 1}),
    "another epoch": signed({"box": BOX, "epoch": 2, "exp": NOW + 300}),
    "long": "x" * 5000,
}


@pytest.mark.parametrize("token", BAD_TOKENS.values(), ids=BAD_TOKENS.keys())
async def test_without_a_good_token_nothing_is_heard(short_path: Path, token: str) -> None:
    async with pod(short_path) as box:
        await box.client.wait_ready(time.monotonic() + 10)
        stranger = box.another(lambda epoch: token)
        with pytest.raises(AgentProtocolError):
            await stranger.lease(ROLLOUT, Epoch(1))
        await stranger.aclose()
        headers = {"Tiltyard-Token": token, "Tiltyard-Rollout": "job/trace", "Tiltyard-Epoch": "1"}
        async with aiohttp.ClientSession() as session:
            for method, path in (
                ("PUT", "/v1/ops/k/0"),
                ("PUT", "/v1/seed"),
                ("POST", "/v1/freeze"),
                ("GET", "/v1/none"),
            ):
                if token == BAD_TOKENS["another epoch"] and path == "/v1/seed":
                    continue  # of this box, before any lease: good for that, were the header not of another
                async with session.request(method, f"http://127.0.0.1:{box.port}{path}", headers=headers) as reply:
                    assert reply.status == 401
        assert (await box.client.lease(ROLLOUT, Epoch(1))).pending == ()


async def test_commands_of_the_box_are_turned_away(short_path: Path) -> None:
    """Loopback is theirs. The control is every other test here."""
    async with pod(short_path, allow_loopback=False) as box:
        await asyncio.sleep(0.5)
        with pytest.raises(TimeoutError):
            await box.client.wait_ready(time.monotonic() + 1)


async def test_who_only_connects_takes_no_place_from_a_host(short_path: Path) -> None:
    """A flood of idle connections from the box's own address holds 64 places at most, and each for 5 s."""
    async with pod(short_path) as box:
        await box.client.wait_ready(time.monotonic() + 10)
        idle = [socket.create_connection(("127.0.0.1", box.port)) for _ in range(200)]
        try:
            deadline = time.monotonic() + 20
            while True:
                try:
                    await box.client.lease(ROLLOUT, Epoch(1))
                    break
                except SandboxLost:
                    assert time.monotonic() < deadline
                    await asyncio.sleep(0.2)
            assert (await run(box.client, "echo up")).stdout.head == b"up\n"
        finally:
            for one in idle:
                one.close()


def packed(*entries: tuple[str, str, bytes]) -> io.BytesIO:
    """(name, kind, content or target)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, kind, content in entries:
            entry = tarfile.TarInfo(name)
            entry.mode = 0o755 if kind in ("x", "d") else 0o644
            entry.type = {"l": tarfile.SYMTYPE, "d": tarfile.DIRTYPE, "h": tarfile.LNKTYPE}.get(kind, tarfile.REGTYPE)
            if kind in ("l", "h"):
                entry.linkname = content.decode()
                tar.addfile(entry)
            else:
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    out.seek(0)
    return out


async def test_a_new_box_is_seeded_and_a_leased_one_is_not(short_path: Path) -> None:
    tree = (("src", "d", b""), ("src/run", "x", b"#!/bin/sh\n"), ("src/a", "f", b"a\n"), ("to", "l", b"/etc/passwd"))
    async with pod(short_path) as box:
        await box.client.wait_ready(time.monotonic() + 10)
        await box.client.seed(packed(*tree), deadline=time.monotonic() + 10)
        owner = box.workspace.stat().st_uid
        assert (box.workspace / "src" / "run").stat().st_mode & 0o777 == 0o755
        assert os.readlink(box.workspace / "to") == "/etc/passwd"
        assert {path.lstat().st_uid for path in box.workspace.rglob("*")} == {owner}
        await box.client.lease(ROLLOUT, Epoch(1))
        with pytest.raises(SandboxError, match="before its lease"):
            await box.client.seed(packed(*tree), deadline=time.monotonic() + 10)


HOSTILE_SEEDS = {
    "through a link": (("out", "l", b"OUTSIDE"), ("out/seeded", "f", b"x")),
    "upwards": (("../seeded", "f", b"x"),),
    "absolute": (("/tmp/seeded", "f", b"x"),),
    "hard link": (("x", "f", b"x"), ("y", "h", b"x")),
    "no whole tar": None,
}


@pytest.mark.parametrize("entries", HOSTILE_SEEDS.values(), ids=HOSTILE_SEEDS.keys())
async def test_a_seed_stays_in_the_workspace(
    short_path: Path, entries: tuple[tuple[str, str, bytes], ...] | None
) -> None:
    async with pod(short_path) as box:
        await box.client.wait_ready(time.monotonic() + 10)
        outside = str(short_path).encode()
        within = [(name, kind, content.replace(b"OUTSIDE", outside)) for name, kind, content in entries or ()]
        body = packed(*within) if entries else io.BytesIO(b"x" * 700)
        with pytest.raises(SandboxError):
            await box.client.seed(body, deadline=time.monotonic() + 10)
        assert not (short_path / "seeded").exists()
        assert not Path("/tmp/seeded").exists()


async def test_closing_the_client_ends_what_waits(short_path: Path) -> None:
    """A pod that ended answers no more, and nothing on the wire says so."""
    async with pod(short_path) as box:
        await box.client.wait_ready(time.monotonic() + 10)
        await box.client.lease(ROLLOUT, Epoch(1))
        waiting = asyncio.create_task(run(box.client, "sleep 8"))
        await asyncio.sleep(0.5)
        began = time.monotonic()
        await box.client.aclose()
        with pytest.raises(SandboxLost):
            await waiting
        assert time.monotonic() - began < 3


def install(root: Path, *more: str, user: int = 0) -> subprocess.CompletedProcess[str]:
    config = json.dumps({"workspace": "/workspace"})
    words = [str(agent_binary()), "install", "--to", str(root / "run"), "--config", config, "--uid", "4242", *more]
    prefix = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"] if user else []
    return subprocess.run([*prefix, *words], capture_output=True, text=True, timeout=20, check=False)


def test_install_brings_the_program_and_the_folders_and_may_run_again(short_path: Path) -> None:
    folders = f"{short_path}/disk/workspace,{short_path}/disk/tmp"
    for _ in range(2):
        done = install(short_path, "--folders", folders)
        assert done.returncode == 0, done.stderr
    assert (short_path / "run" / "tiltyard-agent").read_bytes() == agent_binary().read_bytes()
    assert json.loads((short_path / "run" / "config.json").read_text()) == {"workspace": "/workspace"}
    workspace, tmp = (short_path / "disk" / name for name in ("workspace", "tmp"))
    assert (workspace.stat().st_uid, stat.S_IMODE(workspace.stat().st_mode)) == (4242, 0o755)
    assert stat.S_IMODE(tmp.stat().st_mode) == 0o1777


def test_install_works_without_root_where_it_may_write(short_path: Path) -> None:
    short_path.chmod(0o777)
    (short_path / "run").mkdir()
    (short_path / "run").chmod(0o777)
    program = short_path / "agent"
    program.write_bytes(agent_binary().read_bytes())
    program.chmod(0o755)
    words = [str(program), "install", "--to", str(short_path / "run"), "--config", "{}", "--uid", "4242"]
    words += ["--folders", str(short_path / "workspace")]
    command = ["setpriv", "--reuid=4242", "--regid=4242", "--clear-groups", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 0, done.stderr
    assert (short_path / "workspace").stat().st_uid == 4242


@pytest.mark.parametrize("config", ["[]", "{", ""])
def test_install_refuses_what_is_no_configuration(short_path: Path, config: str) -> None:
    words = [str(agent_binary()), "install", "--to", str(short_path / "run"), "--config", config]
    done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 1
    assert not (short_path / "run" / "config.json").exists()


def test_a_token_is_kept_for_half_of_its_life() -> None:
    now = [1000.0]
    signer = TokenSigner(bytes(32), clock=lambda: now[0])
    first = signer.token(BOX, 1)
    assert signer.token(BOX, 1) == first
    assert signer.token(BOX, 2) != first
    now[0] += 200
    assert signer.token(BOX, 1) != first
    payload = json.loads(base64.urlsafe_b64decode(first.partition(".")[0] + "=="))
    assert payload == {"box": BOX, "epoch": 1, "exp": 1300}


def test_the_key_is_made_once_and_is_its_owners(tmp_path: Path) -> None:
    path = tmp_path / "deployment" / "agent.key"
    first = load_signer(path)
    assert load_signer(path).public_key_b64 == first.public_key_b64
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_bytes(b"short")
    with pytest.raises(Misconfigured, match="damaged"):
        load_signer(path)
