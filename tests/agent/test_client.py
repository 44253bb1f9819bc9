"""The client against agents that lie, stall, vanish or answer in pieces. (What the true agent does stands in the other files.)"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from orchestrator.agent.client import AgentClient, ready_pause_s
from orchestrator.errors import AgentProtocolError, SandboxDead, SandboxLost, TiltyardError
from orchestrator.models import CallKey, Epoch, JobId, OpId, PendingCall, RolloutKey, SandboxId, TraceId
from orchestrator.operations import Delta, Exec, Failure, FailureCode, Get, Note, NoteResult, Session

pytestmark = pytest.mark.anyio

ROLLOUT = RolloutKey(job=JobId("j"), trace_id=TraceId("t"))
CALL = PendingCall(key=CallKey("k"), sequence=1, tool="t", arguments={}, operations=0)
DONE = b'{"state":"done","result":{"type":"note","data_b64":"eA=="}}'
LEASE = b'{"boot_id":"B","epoch":1,"frozen":false,"pending":[]}'
Answer = Callable[[bytes, bytes, asyncio.StreamWriter], Awaitable[None]]
"""(request line, body, where the reply goes)."""


def reply(
    body: bytes, *, status: str = "200 OK", boot: str = "B", protocol: str = "1", length: int | None = None
) -> bytes:
    size = len(body) if length is None else length
    head = (
        f"HTTP/1.1 {status}\r\nTiltyard-Protocol: {protocol}\r\nTiltyard-Boot: {boot}\r\nContent-Length: {size}\r\n\r\n"
    )
    return head.encode() + body


async def killed() -> TiltyardError:
    return SandboxDead("the model killed its box")


async def lost() -> TiltyardError:
    return SandboxLost("the box runs but its agent does not answer")


@asynccontextmanager
async def fake(
    folder: Path, answer: Answer, explain: Callable[[], Awaitable[TiltyardError]] = killed
) -> AsyncIterator[AgentClient]:
    """A server that grants the lease and leaves everything else to `answer`."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                size = [int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
                body = await reader.readexactly(size[0]) if size else b""
                line = head.split(b"\r\n")[0]
                if b"/v1/lease" in line:
                    writer.write(reply(LEASE))
                else:
                    await answer(line, body, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_unix_server(serve, folder / "s")
    client = AgentClient(SandboxId("b"), folder / "s", explain_loss=explain)
    try:
        await client.lease(ROLLOUT, Epoch(1))
        yield client
    finally:
        await client.aclose()
        server.close()


async def note(client: AgentClient, *, timeout_s: float = 5) -> object:
    op_id = OpId(call=CALL.key, number=0)
    return await client.run(Note(data=b"x"), op_id=op_id, deadline=time.monotonic() + timeout_s, call=CALL)


def always(data: bytes) -> Answer:
    async def answer(line: bytes, body: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(data)

    return answer


async def test_the_control(tmp_path: Path) -> None:
    async with fake(tmp_path, always(reply(DONE))) as client:
        assert await note(client) == NoteResult(data=b"x")


LIES = {
    "no HTTP": b"HELLO\r\n\r\n",
    "another protocol": reply(DONE, protocol="3"),
    "no protocol": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
    "not JSON": reply(b"x"),
    "not a reply": reply(b"{}"),
    "running as 200": reply(b'{"state":"running"}'),
    "done as 202": reply(DONE, status="202 Accepted"),
    "a failure of no kind": reply(b'{"state":"done","result":{"type":"failure","code":"x","message":""}}'),
    "another kind": reply(b'{"state":"done","result":{"type":"edit","replaced":1,"size_bytes":1,"line":1}}'),
    "more than announced": reply(DONE, length=1 << 40),
    "too much": reply(b"x" * (9 << 20)),
    "a redirect": reply(b"", status="302 Found"),
    "an error of no kind": reply(b"oops", status="500 Internal Server Error"),
    "an unknown error": reply(b'{"error":"new","message":"m"}', status="409 Conflict"),
    "an error that names more": reply(b'{"error":"internal","message":{"a":1}}', status="500 Internal Server Error"),
}


@pytest.mark.parametrize("data", LIES.values(), ids=LIES.keys())
async def test_what_is_no_agents_reply_is_refused(tmp_path: Path, data: bytes) -> None:
    async with fake(tmp_path, always(data)) as client:
        with pytest.raises(AgentProtocolError):
            await note(client)


async def test_another_boot_id_is_a_lost_box(tmp_path: Path) -> None:
    async with fake(tmp_path, always(reply(DONE, boot="other"))) as client:
        with pytest.raises(SandboxDead, match="the model killed its box"):
            await note(client)


async def test_a_box_from_before_sessions_is_not_asked_for_one(tmp_path: Path) -> None:
    """A box may outlive its host's upgrade: everything else works there, and the model is told."""
    seen: list[bytes] = []

    async def older(line: bytes, body: bytes, writer: asyncio.StreamWriter) -> None:
        seen.append(body)
        writer.write(reply(DONE, protocol="1"))

    op_id = OpId(call=CALL.key, number=0)
    op = Session(name="main", script="true", timeout_s=1)
    async with fake(tmp_path, older) as client:
        assert await note(client) == NoteResult(data=b"x")
        refused = await client.run(op, op_id=op_id, deadline=time.monotonic() + 5, call=CALL)
        assert isinstance(refused, Failure)
        assert refused.code is FailureCode.CANNOT_START
        assert len(seen) == 1, "no request was made for it"


async def test_a_closed_connection_is_tried_again_and_an_empty_socket_is_a_loss(tmp_path: Path) -> None:
    seen: list[bytes] = []

    async def flaky(line: bytes, body: bytes, writer: asyncio.StreamWriter) -> None:
        seen.append(body)
        if len(seen) < 3:
            writer.close()
        else:
            writer.write(reply(DONE))

    async with fake(tmp_path, flaky) as client:
        assert await note(client) == NoteResult(data=b"x")
    assert len(seen) == 3
    assert len(set(seen)) == 1, "the same bytes each time"

    async def gone(line: bytes, body: bytes, writer: asyncio.StreamWriter) -> None:
        writer.close()

    (tmp_path / "two").mkdir()
    async with fake(tmp_path / "two", gone) as client:
        with pytest.raises(SandboxDead):
            await note(client)
        (tmp_path / "two" / "s").unlink()
        with pytest.raises(SandboxDead):
            await client.acknowledge([CALL.key])


async def test_a_socket_that_a_box_puts_in_place_of_its_agents_is_not_spoken_to(tmp_path: Path) -> None:
    """Where agent and commands share a uid: neither another agent of its own nor, by a link, somebody else's server."""
    strangers: list[asyncio.StreamWriter] = []

    async def stranger(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        strangers.append(writer)
        writer.close()

    async def true_agent(line: bytes, body: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(reply(DONE) if strangers else b"")
        if not strangers:
            writer.close()  # so that the next request makes a connection of its own

    async with fake(tmp_path, true_agent) as client, await asyncio.start_unix_server(stranger, tmp_path / "theirs"):
        (tmp_path / "s").rename(tmp_path / "moved")
        (tmp_path / "s").symlink_to(tmp_path / "theirs")
        with pytest.raises(SandboxDead):
            await note(client)
        again = AgentClient(SandboxId("b"), tmp_path / "s", explain_loss=killed)
        with pytest.raises(SandboxDead):
            await again.lease(ROLLOUT, Epoch(1))
        await again.aclose()
        _, control = await asyncio.open_unix_connection(str(tmp_path / "s"))
        control.close()
        assert await note(client) == NoteResult(data=b"x"), "the agent that was there first"
    assert len(strangers) == 1


async def test_polling_goes_on_until_done_and_sends_the_body_once(tmp_path: Path) -> None:
    lines: list[tuple[bytes, int]] = []

    async def slow(line: bytes, body: bytes, writer: asyncio.StreamWriter) -> None:
        lines.append((line.split(b"?")[0], len(body)))
        writer.write(reply(DONE) if len(lines) == 3 else reply(b'{"state":"running"}', status="202 Accepted"))

    async with fake(tmp_path, slow) as client:
        assert await note(client) == NoteResult(data=b"x")
    assert [line for line, _ in lines] == [b"PUT /v1/ops/k/0", b"GET /v1/ops/k/0", b"GET /v1/ops/k/0"]
    assert [size > 0 for _, size in lines] == [True, False, False]


async def test_a_deadline_is_kept_by_running_and_by_silent_agents(tmp_path: Path) -> None:
    async def running(line: bytes, body: bytes, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.05)
        writer.write(reply(b'{"state":"running"}', status="202 Accepted"))

    async def silent(line: bytes, body: bytes, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(60)

    for number, answer in enumerate((running, silent)):
        folder = tmp_path / str(number)
        folder.mkdir()
        async with fake(folder, answer, lost) as client:
            began = time.monotonic()
            with pytest.raises(TimeoutError):
                await note(client, timeout_s=0.3)
            assert time.monotonic() - began < 3
            with pytest.raises(TimeoutError):
                await note(client, timeout_s=-1)
            own = OpId(call=CALL.key, number=0)
            with pytest.raises((TimeoutError, AgentProtocolError)):
                await client.run(Delta(root=".", manifest={}), op_id=own, deadline=time.monotonic() + 0.2)


async def test_silence_at_a_deadline_is_the_models_where_that_is_known_at_once(tmp_path: Path) -> None:
    async def silent(line: bytes, body: bytes, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(60)

    async def long_in_doubt() -> TiltyardError:
        await asyncio.sleep(60)
        return await killed()

    for number, (explain, expected) in enumerate(
        ((killed, SandboxDead), (lost, TimeoutError), (long_in_doubt, TimeoutError))
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        async with fake(folder, silent, explain) as client:
            with pytest.raises(expected):
                await note(client, timeout_s=0.3)


async def test_a_tar_over_its_cap_is_refused(tmp_path: Path) -> None:
    async with fake(tmp_path, always(reply(b"x" * (17 << 20)))) as client:
        own = OpId(call=CALL.key, number=0)
        with pytest.raises(AgentProtocolError, match="more than it may"):
            await client.run(Get(root=".", paths=("a",), max_bytes=1000), op_id=own, deadline=time.monotonic() + 5)


async def test_an_operation_too_large_is_refused_before_it_is_sent(tmp_path: Path) -> None:
    async with fake(tmp_path, always(reply(DONE))) as client:
        op = Exec(argv=("a",), timeout_s=1, stdin=bytes(4 << 20))
        result = await client.run(op, op_id=OpId(call=CALL.key, number=0), deadline=time.monotonic() + 5, call=CALL)
        assert isinstance(result, Failure)
        assert result.code is FailureCode.TOO_LARGE


async def test_waiting_for_an_agent_that_never_comes_ends(tmp_path: Path) -> None:
    client = AgentClient(SandboxId("b"), tmp_path / "none", explain_loss=killed)
    try:
        with pytest.raises(TimeoutError):
            await client.wait_ready(time.monotonic() + 0.1)
    finally:
        await client.aclose()
        await client.aclose()
    with pytest.raises(SandboxDead):
        await client.health()


async def test_a_lease_of_another_epoch_is_refused(tmp_path: Path) -> None:
    async with fake(tmp_path, always(reply(DONE))) as client:
        assert json.loads(LEASE)["epoch"] == 1
        with pytest.raises(AgentProtocolError, match="epoch"):
            await client.lease(ROLLOUT, Epoch(2))


def test_a_fresh_agent_is_looked_for_less_often_the_longer_it_takes() -> None:
    assert ready_pause_s(0.0) == ready_pause_s(0.03) == 0.005
    assert ready_pause_s(1.0) == pytest.approx(0.1)
    assert ready_pause_s(600.0) == 0.25


def test_socket_paths_that_the_kernel_would_cut_are_refused() -> None:
    with pytest.raises(ValueError, match="107"):
        AgentClient(SandboxId("b"), Path("/" + "x" * 107), explain_loss=killed)
