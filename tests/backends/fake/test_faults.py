"""Each fault comes at the occurrence that was ordered, and nowhere else."""

import asyncio
import time

import pytest

from orchestrator.backends.fake import (
    BadStart,
    CreateReplyLost,
    DestroyFails,
    DiesLater,
    FakeBackend,
    FakeWorld,
    Faults,
    Lies,
    LostReply,
    NeverStarts,
    ReplyLost,
    SlowExec,
    SlowStart,
)
from orchestrator.errors import AgentProtocolError, EngineUnavailable, SandboxDead, SandboxLost, StartFailed
from orchestrator.interfaces import OwnedSandbox
from orchestrator.models import SandboxId
from orchestrator.operations import ExecResult, Note, NoteResult
from tests.backends.fake.conftest import SPEC, open_box, soon

pytestmark = pytest.mark.anyio


def backend_with(world: FakeWorld, *orders: object) -> FakeBackend:
    return FakeBackend(Faults(orders=orders), world=world)  # type: ignore[arg-type]


async def test_slow_start_takes_its_time_and_others_do_not(world: FakeWorld) -> None:
    backend = backend_with(world, SlowStart(seconds=0.2, nth=(2,)))
    taken = []
    for name in ("a", "b", "c"):
        began = time.monotonic()
        await open_box(backend, name)
        taken.append(time.monotonic() - began >= 0.2)
    assert taken == [False, True, False]


async def test_slow_start_beyond_the_deadline_fails_and_leaves_nothing(world: FakeWorld) -> None:
    backend = backend_with(world, SlowStart(seconds=60))
    with pytest.raises(StartFailed):
        await backend.create(SandboxId("a"), SPEC, deadline=soon(0.05))
    assert await backend.owned() == []


async def test_never_started_box_fails_at_its_deadline(world: FakeWorld) -> None:
    backend = backend_with(world, NeverStarts(nth=(1,)))
    began = time.monotonic()
    with pytest.raises(StartFailed):
        await backend.create(SandboxId("a"), SPEC, deadline=soon(0.1))
    assert time.monotonic() - began >= 0.1
    assert await backend.owned() == []
    await open_box(backend, "a")


async def test_bad_start_fails_at_once_and_the_next_succeeds(world: FakeWorld) -> None:
    backend = backend_with(world, BadStart(nth=(1,)))
    with pytest.raises(StartFailed):
        await backend.create(SandboxId("a"), SPEC, deadline=soon())
    assert (await open_box(backend, "a")).id == "a"


async def test_lost_create_reply_leaves_a_box_that_owned_knows(world: FakeWorld) -> None:
    backend = backend_with(world, CreateReplyLost(nth=(1,)))
    with pytest.raises(EngineUnavailable):
        await backend.create(SandboxId("a"), SPEC, deadline=soon())
    assert [box.id for box in await backend.owned()] == ["a"]
    await (await backend.attach(SandboxId("a"))).aclose()


@pytest.mark.parametrize(("dead", "error"), [(False, SandboxLost), (True, SandboxDead)])
async def test_box_dies_after_so_many_operations(world: FakeWorld, dead: bool, error: type[Exception]) -> None:
    backend = backend_with(world, DiesLater(after_operations=2, dead=dead, boxes=("doomed",)))
    doomed, other = await open_box(backend, "doomed"), await open_box(backend, "other")
    for _ in range(2):
        await doomed.text("true")
        await other.text("true")
    with pytest.raises(error):
        await doomed.text("true")
    with pytest.raises(error):
        await backend.attach(SandboxId("doomed"))
    await other.text("true")
    assert {box.id: box.running for box in await backend.owned()} == {"doomed": False, "other": True}


async def test_lost_reply_runs_once_and_the_retry_gets_it(world: FakeWorld) -> None:
    box = await open_box(backend_with(world, LostReply(nth=(1,))))
    call, op = box.header(), box.shell_op("echo x >> runs; cat runs")
    with pytest.raises(ReplyLost):
        await box.send(op, call)
    result = await box.send(op, call)
    assert isinstance(result, ExecResult)
    assert result.stdout.head == b"x\n"


async def test_lost_reply_of_a_running_command_is_joined(world: FakeWorld) -> None:
    box = await open_box(backend_with(world, LostReply(nth=(1,))))
    call, op = box.header(), box.shell_op("sleep 0.1; echo x >> runs; cat runs")
    with pytest.raises(ReplyLost):
        await box.send(op, call)
    result = await box.send(op, call)
    assert isinstance(result, ExecResult)
    assert result.stdout.head == b"x\n"


async def test_slow_command_counts_against_its_time_out(world: FakeWorld) -> None:
    box = await open_box(backend_with(world, SlowExec(seconds=5, nth=(2,))))
    assert (await box.sh("echo quick")).stdout.head == b"quick\n"
    assert (await box.sh("echo slow", timeout_s=0.1)).timed_out


async def test_lying_box_is_a_protocol_error_once(world: FakeWorld) -> None:
    box = await open_box(backend_with(world, Lies(nth=(1,))))
    call = box.header()
    with pytest.raises(AgentProtocolError):
        await box.send(Note(data=b"x"), call)
    assert await box.send(Note(data=b"y"), call) == NoteResult(data=b"x")


async def test_destroy_fails_as_often_as_ordered(world: FakeWorld) -> None:
    backend = backend_with(world, DestroyFails(nth=(1, 2)))
    await open_box(backend, "a")
    for _ in range(2):
        with pytest.raises(EngineUnavailable):
            await backend.destroy(SandboxId("a"))
    await backend.destroy(SandboxId("a"))
    assert await backend.owned() == []


async def test_stray_box_is_owned_until_destroyed() -> None:
    stray = OwnedSandbox(id=SandboxId("stray"), created_at=1.0, running=True)
    backend = FakeBackend(Faults(strays=(stray,)))
    assert await backend.owned() == [stray]
    await backend.destroy(stray.id)
    assert await backend.owned() == []


async def test_world_outlives_its_hosts(world: FakeWorld) -> None:
    before = await open_box(FakeBackend(world=world))
    call, op = before.header(), before.shell_op("echo x >> runs; cat runs")
    first = await before.send(op, call)
    running = asyncio.create_task(before.sh("sleep 0.2; echo done > done"))
    await asyncio.sleep(0.05)
    running.cancel()
    again = await FakeBackend(world=world).attach(before.id)
    lease = await again.lease(before.rollout, before.epoch)
    assert lease.pending[0].key == call.key
    after = type(before)(again, before.rollout, before.epoch)
    assert await after.send(op, call) == first
    await after.text("sleep 0.3")
    assert await after.text("cat done") == "done\n"


@pytest.mark.parametrize(("dead", "error"), [(False, SandboxLost), (True, SandboxDead)])
async def test_killed_box_ends_its_commands(world: FakeWorld, dead: bool, error: type[Exception]) -> None:
    box = await open_box(FakeBackend(world=world))
    running = asyncio.create_task(box.sh("sleep 60", timeout_s=90))
    await asyncio.sleep(0.05)
    world.kill(box.id, dead=dead)
    with pytest.raises(error):
        await running
    with pytest.raises(error):
        await box.text("true")
