"""Once per id: replays, acknowledgements, leases, restarts, a full journal."""

# ruff: noqa: ASYNC240  (small local files and /proc, read at once)

import asyncio
import json
import os
import secrets
import zlib
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from orchestrator.agent.client import AgentClient
from orchestrator.errors import ReplayDiverged, SandboxError, SandboxLost, StaleLease
from orchestrator.models import Epoch, JobId, PendingCall, RolloutKey, SandboxId, TraceId
from orchestrator.operations import Exec, ExecResult, Failure, FailureCode, Note, NoteResult, Write
from tests.agent.conftest import ROLLOUT, SANDBOX, Box, OpenBox, lost, start_agent, stop_agent, until
from tests.needs import needs

pytestmark = [pytest.mark.anyio, needs("root")]


async def raw(box: Box, path: str) -> bytes:
    """The very bytes of a reply."""
    connector = aiohttp.UnixConnector(path=box.config.socket)
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.get(f"http://agent{path}", headers=box.client._fence) as response,
    ):
        return await response.read()


async def test_twenty_at_once_run_once_and_get_the_same(box: Box) -> None:
    call, op = box.header(), Exec(argv=("sh", "-c", "echo x >> ran; sleep 0.2; cat ran; date +%N"), timeout_s=10)
    results = await asyncio.gather(*(box.send(op, call) for _ in range(20)))
    assert len({repr(result) for result in results}) == 1
    assert isinstance(results[0], ExecResult)
    assert results[0].stdout.head.startswith(b"x\n")
    first, second = [await raw(box, f"/v1/ops/{call.key}/0") for _ in range(2)]
    assert first == second
    assert (box.workspace / "ran").read_text() == "x\n"


async def test_refusals_are_kept_too(box: Box) -> None:
    call, op = box.header(), Write(path="f", data=b"x", expected_sha256="absent")
    await box.send(op, call)
    again = box.header()
    refused = await box.send(op, again)
    (box.workspace / "f").unlink()
    assert await box.send(op, again) == refused
    assert not (box.workspace / "f").exists()


async def test_another_body_under_the_same_id_is_refused(box: Box) -> None:
    call, op = box.header(), Exec(argv=("echo", "a"), timeout_s=10)
    result = await box.send(op, call)
    assert await box.send(Exec(argv=("echo", "a"), timeout_s=99), call) == result, "a time-out may differ"
    for other in (
        Exec(argv=("echo", "b"), timeout_s=10),
        Exec(argv=("echo", "a"), timeout_s=10, env={"A": "1"}),
        Note(data=b""),
    ):
        with pytest.raises(ReplayDiverged):
            await box.send(other, call)


async def test_the_first_note_is_what_every_replay_gets(box: Box) -> None:
    call = box.header()
    assert await box.send(Note(data=b"first"), call) == NoteResult(data=b"first")
    assert await box.send(Note(data=b"second"), call) == NoteResult(data=b"first")


async def test_operations_come_one_after_another(box: Box) -> None:
    call = box.header()
    with pytest.raises(SandboxLost, match="operation 0 comes next"):
        await box.send(Note(data=b""), call, number=1)
    await box.send(Note(data=b"0"), call)
    with pytest.raises(SandboxLost, match="operation 1 comes next"):
        await box.send(Note(data=b""), call, number=2)
    assert await box.send(Note(data=b"1"), call, number=1) == NoteResult(data=b"1")


async def test_pending_calls_are_told_in_order_until_acknowledged(box: Box) -> None:
    calls = [box.header(f"tool{number}") for number in range(3)]
    for call in calls:
        await box.send(Note(data=b"x"), call)
    await box.send(Note(data=b"y"), calls[1], number=1)
    lease = await box.client.lease(ROLLOUT, Epoch(2))
    expected = [
        PendingCall(key=c.key, sequence=c.sequence, tool=c.tool, arguments=c.arguments, operations=1 + (c is calls[1]))
        for c in calls
    ]
    assert list(lease.pending) == expected
    await box.client.acknowledge([calls[1].key])
    await box.client.acknowledge([calls[1].key])
    lease = await box.client.lease(ROLLOUT, Epoch(2))
    assert [call.key for call in lease.pending] == [calls[0].key, calls[2].key]


async def test_a_late_duplicate_of_an_acknowledged_call_is_refused(box: Box) -> None:
    call, op = box.header(), Exec(argv=("sh", "-c", "echo x >> ran"), timeout_s=10)
    await box.send(op, call)
    await box.client.acknowledge([call.key])
    with pytest.raises(ReplayDiverged, match="tombstoned"):
        await box.send(op, call)
    unknown = box.header()
    await box.client.acknowledge([unknown.key])
    with pytest.raises(ReplayDiverged, match="tombstoned"):
        await box.send(op, unknown)
    assert (box.workspace / "ran").read_text() == "x\n"


async def test_an_older_epoch_is_fenced(box: Box) -> None:
    newer = box.another_client()
    try:
        await newer.lease(ROLLOUT, Epoch(5))
        with pytest.raises(StaleLease):
            await box.run(Note(data=b""))
        with pytest.raises(StaleLease):
            await box.client.acknowledge([box.header().key])
        with pytest.raises(StaleLease):
            await box.client.lease(ROLLOUT, Epoch(4))
        await newer.lease(ROLLOUT, Epoch(5))
    finally:
        await newer.aclose()
    await box.client.lease(ROLLOUT, Epoch(6))
    assert await box.run(Note(data=b"x")) == NoteResult(data=b"x")


async def test_another_rollout_gets_nothing(box: Box) -> None:
    stranger = box.another_client()
    try:
        for trace in ("other", "trace", "trace/ä 1/"):
            with pytest.raises(SandboxLost, match="another rollout"):
                await stranger.lease(RolloutKey(job=JobId("job"), trace_id=TraceId(trace)), Epoch(9))
    finally:
        await stranger.aclose()


async def test_without_a_lease_nothing_runs(open_box: OpenBox) -> None:
    async with open_box(leased=False) as box:
        with pytest.raises(SandboxLost):
            await box.run(Note(data=b""))
        assert (await box.client.health()).rollout is None
        await box.client.lease(ROLLOUT, Epoch(1))
        assert (await box.client.health()).rollout == "job/trace%2F%C3%A4%201"


async def test_a_restarted_agent_is_a_lost_box(box: Box) -> None:
    await box.run(Note(data=b"x"))
    await stop_agent(box.process)
    with pytest.raises(SandboxLost, match="the test's box is lost"):
        await box.run(Note(data=b"x"))
    Path(box.config.socket).unlink()
    box.process = await start_agent(box.root)
    await until(Path(box.config.socket).exists, "the second agent")
    assert json.loads(await raw(box, "/v1/health"))["error"] == "lost_boot"
    fresh = AgentClient(SandboxId(SANDBOX), Path(box.config.socket), explain_loss=lost)
    try:
        with pytest.raises(SandboxLost, match="the test's box is lost"):
            await fresh.lease(ROLLOUT, Epoch(2))
        with pytest.raises(SandboxLost, match="the test's box is lost"):
            await box.client.health()
        with pytest.raises(SandboxLost, match="the test's box is lost"):
            await box.run(Note(data=b"y"))
    finally:
        await fresh.aclose()


def records(journal: bytes) -> Iterator[tuple[str, bytes]]:
    """(kind, data) of each record whose checksum holds; acknowledged ones are holes."""
    while journal:
        size, check = int.from_bytes(journal[:4], "little"), int.from_bytes(journal[4:8], "little")
        payload, journal = journal[8 : 8 + size], journal[8 + size :]
        if zlib.crc32(payload) == check:
            yield chr(payload[0]), payload[1:]


async def test_the_journal_holds_what_happened_in_order(box: Box) -> None:
    call, big = box.header(), b"b" * 500_000
    await box.send(Note(data=big), call)
    journal = Path(box.config.state_dir) / "journal"
    assert oct(Path(box.config.state_dir).stat().st_mode & 0o777) == "0o700"
    assert oct(journal.stat().st_mode & 0o777) == "0o600"
    found = list(records(journal.read_bytes()))
    assert [kind for kind, _ in found] == ["C", "A", "B", "R"]
    assert json.loads(found[1][1]) == call.arguments
    assert json.loads(found[3][1])["type"] == "note"
    before = (await box.client.health()).posture.journal_bytes
    await box.client.acknowledge([call.key])
    found = list(records(journal.read_bytes()))
    assert [kind for kind, _ in found] == ["C", "A", "B", "T"], "the result's blocks were given back"
    assert (await box.client.health()).posture.journal_bytes < before - 500_000
    assert journal.stat().st_blocks * 512 < 200_000


async def test_a_full_journal_refuses_before_any_effect_and_goes_on_after_acks(open_box: OpenBox) -> None:
    async with open_box(journal_limit_bytes=4 * 1024 * 1024) as box:
        calls = [box.header() for _ in range(10)]

        async def fill() -> None:
            for call in calls:
                await box.send(Note(data=secrets.token_bytes(700_000)), call)

        with pytest.raises(SandboxError, match="journal_full"):
            await fill()
        refused = await box.run(Exec(argv=("sh", "-c", "echo x > ran"), timeout_s=5))
        assert isinstance(refused, Failure)
        assert refused.code is FailureCode.NO_SPACE, "the model's text: it filled the journal"
        assert not (box.workspace / "ran").exists()
        await box.client.acknowledge([call.key for call in calls])
        assert (await box.sh("echo x > ran")).exit_code == 0


async def test_an_idle_agent_is_small_after_much_work(box: Box) -> None:
    """At most 8 MB resident (design, section 6), results of a thousand operations on disk."""
    for _ in range(40):
        calls = [box.header() for _ in range(10)]
        await asyncio.gather(*(box.send(Note(data=os.urandom(30_000)), call) for call in calls))
    await box.send(Note(data=bytes(1024 * 1024)), box.header())

    def resident_kib() -> int:
        status = Path(f"/proc/{box.agent_pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0])

    await until(lambda: resident_kib() * 1024 <= 8_000_000, "the agent to be small again", timeout_s=15)
