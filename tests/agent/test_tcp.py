"""The agent over a network: who is heard and who is not. Here the network is loopback, which pods refuse."""

import asyncio
import io
import json
import os
import socket
import stat
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from orchestrator.agent.client import AgentClient
from orchestrator.agent.config import AgentConfig
from orchestrator.agent.tokens import TokenSigner
from orchestrator.agent.transport import TcpEndpoint
from orchestrator.errors import AgentProtocolError, Misconfigured, SandboxLost
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
    socket: Path

    def another(self, token: Callable[[int], str]) -> AgentClient:
        return AgentClient(BOX, TcpEndpoint(host="127.0.0.1", port=self.port, token=token), explain_loss=lost)


async def talk(port: int, request: bytes, *, timeout_s: float = 15) -> bytes:
    """Send raw bytes; everything until the agent closes, or is silent for a while after a reply."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        await writer.drain()
        async with asyncio.timeout(timeout_s):
            return await reader.read(65536)
    finally:
        writer.close()


async def closed(reader: asyncio.StreamReader, *, within_s: float) -> bool:
    try:
        async with asyncio.timeout(within_s):
            while await reader.read(65536):
                pass
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    return True


def signed_by_nobody(epoch: int) -> str:
    return TokenSigner(bytes(32)).token(BOX, epoch)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@asynccontextmanager
async def pod(
    root: Path, *, prefix: tuple[str, ...] = (), ready_run: Callable[[Path], None] | None = None, **changes: object
) -> AsyncIterator[Pod]:
    """`ready_run` has the last word about the agent's run folder."""
    port = free_port()
    network = {"listen": f"127.0.0.1:{port}", "box": BOX, "public_key_b64": SIGNER.public_key_b64}
    config = lay_out(root, **{**network, "allow_loopback": True, "rlimits": RLIMITS, **changes})
    if ready_run is not None:
        ready_run(root / "run")
    process = await start_agent(root, prefix=tuple(part.format(uid=config.uid_base) for part in prefix))
    endpoint = TcpEndpoint(host="127.0.0.1", port=port, token=lambda epoch: SIGNER.token(BOX, epoch))
    client = AgentClient(BOX, endpoint, explain_loss=lost)
    try:
        yield Pod(port, client, Path(config.workspace), Path(config.socket))
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
            box.client,
            "awk '/Max (open files|processes|file size)/ {print $(NF-2), $(NF-1)}' /proc/self/limits; echo made > file; cat file",
        )
        assert result.stdout.head == b"600000000 600000000\n77 77\n333 333\nmade\n"
        assert not box.socket.exists()
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


async def test_closing_the_client_ends_a_connection_that_is_being_made() -> None:
    """A pod whose machine is gone takes no connection and refuses none: here, one with its backlog full."""
    async with silent() as port:
        endpoint = TcpEndpoint(host="127.0.0.1", port=port, token=lambda epoch: "")
        client = AgentClient(BOX, endpoint, explain_loss=lost)
        waiting = [asyncio.create_task(client.health()), asyncio.create_task(client.wait_ready(time.monotonic() + 30))]
        await asyncio.sleep(0.3)
        assert not any(task.done() for task in waiting), "the control"
        began = time.monotonic()
        await client.aclose()
        for task in waiting:
            with pytest.raises(SandboxLost):
                await task
        assert time.monotonic() - began < 1


@asynccontextmanager
async def silent() -> AsyncIterator[int]:
    with socket.socket() as listener, ExitStack() as held:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            one = held.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(listener.getsockname())
        await asyncio.sleep(0.05)
        yield int(listener.getsockname()[1])


async def test_a_machine_that_does_not_answer_is_lost_and_no_time_out() -> None:
    async with silent() as port:
        endpoint = TcpEndpoint(host="127.0.0.1", port=port, token=lambda epoch: "")
        client = AgentClient(BOX, endpoint, explain_loss=lost)
        began = time.monotonic()
        with pytest.raises(SandboxLost):
            await client.seed(b"", deadline=time.monotonic() + 60)
        assert 4 < time.monotonic() - began < 8
        await client.aclose()


async def test_nobody_at_the_port_is_a_loss() -> None:
    endpoint = TcpEndpoint(host="127.0.0.1", port=free_port(), token=lambda epoch: "")
    client = AgentClient(BOX, endpoint, explain_loss=lost)
    with pytest.raises(SandboxLost):
        await client.health()
    with pytest.raises(SandboxLost):
        await client.seed(b"", deadline=time.monotonic() + 10)
    with pytest.raises(TimeoutError):
        await client.wait_ready(time.monotonic() + 0.3)
    await client.aclose()


@pytest.mark.parametrize("method", ["OPTIONS *", "OPTIONS /v1/health", "PRI *", "HEAD /v1/health", "CONNECT a:1"])
async def test_no_method_goes_past_the_token(short_path: Path, method: str) -> None:
    """Go's server answers `OPTIONS *` by itself unless told otherwise."""
    async with pod(short_path) as box:
        await box.client.wait_ready(time.monotonic() + 10)
        reply = await talk(box.port, f"{method} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        assert reply.split(b" ")[1] in (b"401", b"400", b"505")


@pytest.mark.parametrize("length", [1, 200_000, 1 << 40])
async def test_who_is_refused_holds_no_connection_by_a_body_that_never_comes(short_path: Path, length: int) -> None:
    async with pod(short_path) as box:
        await box.client.wait_ready(time.monotonic() + 10)
        reader, writer = await asyncio.open_connection("127.0.0.1", box.port)
        writer.write(f"PUT /v1/seed HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.split(b" ")[1] == b"401"
        assert b"Tiltyard-Protocol: 2" in head
        assert await closed(reader, within_s=4)
        writer.close()


async def test_headers_that_are_too_long_or_too_slow_end_the_connection(short_path: Path) -> None:
    async with pod(short_path) as box:
        await box.client.wait_ready(time.monotonic() + 10)
        long = f"GET /v1/health HTTP/1.1\r\nHost: a\r\nTiltyard-Token: {'x' * 40_000}\r\n\r\n".encode()
        assert (await talk(box.port, long)).split(b" ")[1] == b"431"
        reader, writer = await asyncio.open_connection("127.0.0.1", box.port)
        writer.write(b"GET /v1/health HTTP/1.1\r\nHost: a\r\n")
        assert await closed(reader, within_s=8)
        writer.close()


async def test_an_epoch_that_another_host_was_given_is_not_ours_to_use(short_path: Path) -> None:
    """A host that was fenced off has tokens of its own epoch only."""
    async with pod(short_path) as box:
        await box.client.wait_ready(time.monotonic() + 10)
        await box.client.lease(ROLLOUT, Epoch(1))
        late = box.another(lambda epoch: SIGNER.token(BOX, 1))
        with pytest.raises(AgentProtocolError, match="bad_token"):
            await late.lease(ROLLOUT, Epoch(2))
        await late.lease(ROLLOUT, Epoch(1))
        await late.aclose()
        assert (await box.client.health()).epoch == 1
        await box.client.lease(ROLLOUT, Epoch(2))
        assert (await run(box.client, "echo mine")).stdout.head == b"mine\n"


async def test_an_agent_with_one_uid_starts_in_a_folder_that_is_not_its_own(short_path: Path) -> None:
    """As in a restricted pod: the node's folder is root's, open to the pod's group."""

    def as_mounted(run_folder: Path) -> None:
        os.chown(run_folder, 0, 0)
        run_folder.chmod(0o2777)

    drop = ("setpriv", "--reuid={uid}", "--regid={uid}", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all")
    async with pod(short_path, mode="one_uid", prefix=drop, ready_run=as_mounted) as box:
        health = await box.client.wait_ready(time.monotonic() + 10)
        assert health.mode == "one_uid"
        state = box.socket.parent / "state"
        assert stat.S_IMODE(state.stat().st_mode) & 0o777 == 0o700
        await box.client.seed(io.BytesIO(bytes(1024)), deadline=time.monotonic() + 10)
        await box.client.lease(ROLLOUT, Epoch(1))
        assert (await run(box.client, "id -u")).stdout.head.decode().strip() == str(box.workspace.stat().st_uid)


BAD_CONFIGS: dict[str, dict[str, object]] = {
    "no name": {"box": ""},
    "no key": {"public_key_b64": ""},
    "a short key": {"public_key_b64": "AAAA"},
    "nowhere": {"listen": ""},
    "an unknown limit": {"rlimits": {"stack": 1}},
    "a limit below none": {"rlimits": {"nofile": -1}},
    "no address": {"listen": "here"},
}


@pytest.mark.parametrize("changes", BAD_CONFIGS.values(), ids=BAD_CONFIGS.keys())
async def test_what_cannot_be_honoured_is_refused_at_the_start(short_path: Path, changes: dict[str, object]) -> None:
    lay_out(short_path, listen="127.0.0.1:0", box=BOX, public_key_b64=SIGNER.public_key_b64)
    path = short_path / "run" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    process = await start_agent(short_path)
    assert await asyncio.wait_for(process.wait(), 10) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"listen": "0.0.0.0:1"},
        {"box": "b"},
        {"public_key_b64": "k"},
        {"listen": "0.0.0.0:1", "box": "b"},
        {"box": "b", "public_key_b64": "k"},
        {"allow_loopback": True},
        {"rlimits": {"stack": 1}},
    ],
)
def test_such_a_configuration_is_not_even_written(changes: dict[str, Any]) -> None:
    with pytest.raises(Misconfigured):
        AgentConfig(uid_base=1000, **changes)


def test_an_older_agent_reads_what_does_not_concern_a_network() -> None:
    written = json.loads(AgentConfig(uid_base=1000).to_json())
    assert not {"listen", "box", "public_key_b64", "allow_loopback", "rlimits"} & written.keys()
    assert json.loads(AgentConfig(uid_base=1000, rlimits={"nofile": 9}).to_json())["rlimits"] == {"nofile": 9}
