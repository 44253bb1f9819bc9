"""The record's promises over a real SQLite file: first wins, the fence, group commit, lists."""

import asyncio
from dataclasses import replace

import pytest

from orchestrator.errors import Misconfigured, StaleLease, StoreError
from orchestrator.models import (
    CallKey,
    Epoch,
    JobId,
    Reward,
    RolloutKey,
    RolloutState,
    SandboxId,
    ToolReply,
    TraceId,
)
from orchestrator.store.sql import SqlStore
from orchestrator.store.writes import MAX_FINDINGS
from tests.store.values import HOST, OTHER, TASK, call, evidence, reward, rollout

pytestmark = pytest.mark.anyio

HOSTILE = "\x00\x1a0000\ud800 \U0001f600 ; DROP TABLE calls --"


async def test_a_new_binding_is_open_with_epoch_one(store: SqlStore) -> None:
    bound = await store.bind(rollout(), TASK, HOST)
    assert (bound.host, bound.epoch, bound.state, bound.sandbox, bound.tainted) == (
        HOST,
        1,
        RolloutState.OPEN,
        None,
        "",
    )
    assert await store.binding(rollout()) == bound
    assert await store.binding(rollout(1)) is None


async def test_of_many_first_calls_one_binds(store: SqlStore, url: str) -> None:
    """Over two stores on one file, as two gateways would be."""
    async with SqlStore.open(url) as neighbour:
        asked = [(store, HOST), (neighbour, OTHER)] * 50
        bound = await asyncio.gather(*(each.bind(rollout(), TASK, host) for each, host in asked))
    assert len({(one.host, one.epoch, one.created_at) for one in bound}) == 1
    assert await store.binding(rollout()) == bound[0]


async def test_each_write_of_a_former_owner_is_refused(store: SqlStore) -> None:
    old = await store.bind(rollout(), TASK, HOST)
    new = await store.adopt(old, OTHER)
    assert (new.host, new.epoch) == (OTHER, 2)
    foreign = replace(new, host=HOST)
    unknown = replace(new, rollout=rollout(7))
    for stale in (old, foreign, unknown):
        key = stale.rollout
        for attempt in (
            lambda stale=stale: store.attach_sandbox(stale, SandboxId("box"), None),
            lambda stale=stale: store.adopt(stale, HOST),
            lambda stale=stale: store.close(stale, RolloutState.LOST, "x"),
            lambda stale=stale: store.touch(stale),
            lambda stale=stale, key=key: store.record(stale, call(key, 1)),
            lambda stale=stale, key=key: store.put_evidence(stale, evidence(key)),
            lambda stale=stale, key=key: store.put_reward(stale, reward(key)),
        ):
            with pytest.raises(StaleLease):
                await attempt()
    assert await store.binding(rollout()) == new
    assert list(await store.calls(rollout())) == []
    assert await store.evidence(rollout()) is None
    assert await store.reward(rollout()) is None


async def test_each_write_of_the_owner_counts(store: SqlStore) -> None:
    """The control of the test above."""
    owned = await store.adopt(await store.bind(rollout(), TASK, HOST), OTHER)
    owned = await store.attach_sandbox(owned, SandboxId("box"), "boot")
    assert (owned.sandbox, owned.boot_id) == ("box", "boot")
    await store.touch(owned)
    await store.record(owned, call(rollout(), 1))
    assert await store.put_evidence(owned, evidence(rollout())) == evidence(rollout())
    assert await store.put_reward(owned, reward(rollout())) == reward(rollout())
    closed = await store.close(owned, RolloutState.GRADED, "graded")
    assert closed.state is RolloutState.GRADED
    assert await store.evidence(rollout()) == evidence(rollout())
    assert await store.reward(rollout()) == reward(rollout())
    assert await store.calls(rollout()) == [call(rollout(), 1)]


async def test_of_two_adopters_one_wins(store: SqlStore, url: str) -> None:
    bound = await store.bind(rollout(), TASK, HOST)
    async with SqlStore.open(url) as neighbour:
        done = await asyncio.gather(
            *(each.adopt(bound, OTHER) for each in (store, neighbour) for _ in range(10)), return_exceptions=True
        )
    assert sum(isinstance(one, StaleLease) for one in done) == 19
    standing = await store.binding(rollout())
    assert standing is not None
    assert standing.epoch == Epoch(2)


async def test_a_stale_write_fails_alone(store: SqlStore) -> None:
    """All of these go into one batch."""
    mine = await store.bind(rollout(0), TASK, HOST)
    lost = await store.bind(rollout(1), TASK, HOST)
    await store.adopt(lost, OTHER)
    done = await asyncio.gather(
        *(store.record(binding, call(binding.rollout, n)) for n in range(1, 6) for binding in (mine, lost)),
        return_exceptions=True,
    )
    assert [type(one) for one in done] == [type(None), StaleLease] * 5
    assert len(await store.calls(rollout(0))) == 5
    assert len(await store.calls(rollout(1))) == 0


async def test_the_same_key_twice_is_the_first_ones(store: SqlStore) -> None:
    bound = await store.bind(rollout(), TASK, HOST)
    first = call(rollout(), 1, text="first")
    again = replace(first, sequence=2, reply=ToolReply(text="second"))
    await asyncio.gather(store.record(bound, first), *(store.record(bound, again) for _ in range(20)))
    await store.record(bound, again)
    assert await store.calls(rollout()) == [first]
    assert await store.recorded(rollout(), first.key) == first
    assert await store.recorded(rollout(), CallKey("f" * 32)) is None
    assert await store.recorded(rollout(1), first.key) is None


async def test_a_sequence_that_is_taken_fails_its_own_write_alone(store: SqlStore) -> None:
    bound = await store.bind(rollout(), TASK, HOST)
    await store.record(bound, call(rollout(), 1))
    clash = replace(call(rollout(), 1), key=CallKey("e" * 32))
    done = await asyncio.gather(
        store.record(bound, call(rollout(), 2)),
        store.record(bound, clash),
        store.record(bound, call(rollout(), 3)),
        return_exceptions=True,
    )
    assert [type(one) for one in done] == [type(None), StoreError, type(None)]
    assert [one.sequence for one in await store.calls(rollout())] == [1, 2, 3]


async def test_a_score_that_is_no_number_fails_its_own_write_alone(store: SqlStore) -> None:
    one, other = [await store.bind(rollout(n), TASK, HOST) for n in range(2)]
    done = await asyncio.gather(
        store.put_reward(one, reward(one.rollout, float("nan"))),
        store.put_reward(other, reward(other.rollout)),
        return_exceptions=True,
    )
    assert [type(each) for each in done] == [StoreError, Reward]
    assert await store.reward(one.rollout) is None
    assert await store.put_reward(one, reward(one.rollout)) == reward(one.rollout)


async def test_the_first_evidence_and_reward_stay(store: SqlStore) -> None:
    bound = await store.bind(rollout(), TASK, HOST)
    answers = [evidence(rollout(), final_answer=str(n)) for n in range(10)]
    stored = await asyncio.gather(*(store.put_evidence(bound, one) for one in answers))
    assert set(stored) == {answers[0]}
    assert await store.put_evidence(bound, answers[5]) == answers[0]
    scores = await asyncio.gather(*(store.put_reward(bound, reward(rollout(), n / 10)) for n in range(10)))
    assert {one.score for one in scores} == {0.0}
    assert await store.reward(rollout()) == reward(rollout(), 0.0)


async def test_an_infra_error_is_kept_without_a_score(store: SqlStore) -> None:
    bound = await store.bind(rollout(), TASK, HOST)
    assert await store.put_reward(bound, reward(rollout(), None)) == reward(rollout(), None)
    assert await store.reward(rollout()) == reward(rollout(), None)


async def test_a_tombstone_never_moves(store: SqlStore) -> None:
    for number, final in enumerate(
        (RolloutState.GRADED, RolloutState.EXPIRED, RolloutState.RELEASED, RolloutState.LOST)
    ):
        bound = await store.bind(rollout(number), TASK, HOST)
        grading = await store.close(bound, RolloutState.GRADING, "evidence is stored")
        assert grading.state is RolloutState.GRADING
        assert (await store.close(grading, RolloutState.OPEN, "reopen")).state is RolloutState.GRADING
        closed = await store.close(grading, final, "first")
        assert (closed.state, closed.reason) == (final, "first")
        for state in RolloutState:
            assert await store.close(closed, state, "second") == closed
        assert (await store.bind(rollout(number), TASK, OTHER)).state is final


async def test_a_taint_is_remembered_before_and_after_binding(store: SqlStore) -> None:
    assert await store.tainted(rollout()) == ""
    await store.taint(rollout(), "no such task")
    await store.taint(rollout(), "later")
    assert await store.tainted(rollout()) == "no such task"
    assert (await store.bind(rollout(), TASK, HOST)).tainted == "no such task"
    await store.bind(rollout(1), TASK, HOST)
    await asyncio.gather(*(store.taint(rollout(1), f"{n}") for n in range(5)))
    bound = await store.binding(rollout(1))
    assert bound is not None
    assert bound.tainted == "0"
    assert await store.tainted(rollout(2)) == ""


async def test_open_bindings_are_the_hosts_own_that_live(store: SqlStore) -> None:
    bound = [await store.bind(rollout(n), TASK, HOST) for n in range(4)]
    await store.bind(rollout(9), TASK, OTHER)
    await store.close(bound[1], RolloutState.GRADING, "")
    await store.close(bound[2], RolloutState.EXPIRED, "idle")
    assert [one.rollout for one in await store.open_bindings(HOST)] == [rollout(0), rollout(1), rollout(3)]


async def test_touch_moves_forward_only(url: str) -> None:
    clock = iter([100.0, 200.0, 150.0])
    async with SqlStore.open(url, now=lambda: next(clock)) as store:
        bound = await store.bind(rollout(), TASK, HOST)
        await store.touch(bound)
        await store.touch(bound)
        standing = await store.binding(rollout())
    assert standing is not None
    assert (standing.created_at, standing.touched_at) == (100.0, 200.0)


async def test_findings_are_kept_once_and_bounded(store: SqlStore) -> None:
    for _ in range(3):
        await store.add_finding(rollout(), "forged_handle", "x")
    assert await store.findings(rollout()) == [("forged_handle", "x")]
    await asyncio.gather(*(store.add_finding(rollout(), "n", str(n)) for n in range(2 * MAX_FINDINGS)))
    assert len(await store.findings(rollout())) == MAX_FINDINGS
    assert await store.findings(rollout(1)) == []


async def test_hostile_texts_come_back_as_they_were(store: SqlStore) -> None:
    key = RolloutKey(job=JobId(HOSTILE), trace_id=TraceId(HOSTILE))
    bound = await store.bind(key, TASK, HOST)
    said = replace(
        call(key, 1),
        call_id=HOSTILE,
        tool=HOSTILE,
        arguments_text=HOSTILE,
        reply=ToolReply(text=HOSTILE, is_error=True),
    )
    await store.record(bound, said)
    assert await store.calls(key) == [said]
    assert await store.binding(key) == bound
    told = replace(evidence(key), final_answer=HOSTILE, submitted=(HOSTILE, ""))
    assert await store.put_evidence(bound, told) == told
    assert await store.evidence(key) == told
    await store.taint(key, HOSTILE)
    assert await store.tainted(key) == HOSTILE


async def test_the_list_is_newest_first_bounded_and_by_job(url: str) -> None:
    seconds = iter(range(1000))
    async with SqlStore.open(url, now=lambda: float(next(seconds))) as store:
        for number in range(5):
            bound = await store.bind(rollout(number, job="a" if number % 2 else "b"), TASK, HOST)
            for sequence in range(1, number + 1):
                await store.record(bound, call(bound.rollout, sequence))
            if number == 3:
                await store.put_reward(bound, reward(bound.rollout))
        every = await store.rollouts(None, 10)
        assert [(one.binding.rollout.trace_id, one.calls) for one in every] == [
            (f"trace_{n}", n) for n in (4, 3, 2, 1, 0)
        ]
        assert [one.reward for one in every] == [None, reward(rollout(3, job="a")), None, None, None]
        assert [one.calls for one in await store.rollouts(None, 2)] == [4, 3]
        assert [one.calls for one in await store.rollouts(JobId("a"), 10)] == [3, 1]
        assert await store.rollouts(JobId("c"), 10) == []


async def test_more_writes_than_a_batch_holds(store: SqlStore) -> None:
    bound = await asyncio.gather(*(store.bind(rollout(n), TASK, HOST) for n in range(700)))
    await asyncio.gather(*(store.record(each, call(each.rollout, s)) for each in bound for s in (1, 2)))
    assert sum(one.calls for one in await store.rollouts(None, 1000)) == 1400


async def test_a_cancelled_callers_write_is_carried_out(store: SqlStore) -> None:
    bound = await store.bind(rollout(), TASK, HOST)
    writing = asyncio.create_task(store.record(bound, call(rollout(), 1)))
    await asyncio.sleep(0)
    writing.cancel()
    await store.record(bound, call(rollout(), 2))
    assert len(await store.calls(rollout())) == 2
    assert writing.cancelled()


async def test_what_waits_is_committed_at_close_and_later_writes_are_refused(url: str) -> None:
    async with SqlStore.open(url) as store:
        bound = await store.bind(rollout(), TASK, HOST)
        writing = [asyncio.create_task(store.record(bound, call(rollout(), n))) for n in range(1, 20)]
        await asyncio.sleep(0)
        await store.aclose()
        await store.aclose()
        await asyncio.gather(*writing)
        with pytest.raises(StoreError, match="closed"):
            await store.record(bound, call(rollout(), 20))
    async with SqlStore.open(url) as store:
        assert len(await store.calls(rollout())) == 19


async def test_an_error_in_the_body_comes_out_as_it_is(url: str) -> None:
    with pytest.raises(KeyError, match="mine"):
        async with SqlStore.open(url):
            raise KeyError("mine")


@pytest.mark.parametrize(
    "url", ["", "record.db", "postgresql://h/db", "sqlite://", "sqlite:///:memory:", "sqlite:////x?mode=ro"]
)
async def test_a_url_that_cannot_be_honoured_is_refused(url: str) -> None:
    with pytest.raises(Misconfigured, match="sqlite:////absolute"):
        async with SqlStore.open(url):
            pass
