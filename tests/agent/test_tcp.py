"""The agent over a network: who is heard and who is not. Here the network is loopback, which pods refuse."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from orchestrator.agent.client import AgentClient
from orchestrator.agent.tokens import TokenSigner
from orchestrator.agent.transport import TcpEndpoint
from orchestrator.errors import AgentProtocolError, SandboxLost
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
