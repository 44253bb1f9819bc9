"""What writes may never do to the record, whatever their order: pure, no database."""

from copy import deepcopy
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import StaleLease
from orchestrator.models import Binding, Epoch, HostId, RolloutState, SandboxId
from orchestrator.store.writes import (
    FINAL,
    Adopt,
    AnyWrite,
    AttachSandbox,
    Close,
    HostWrite,
    Ledger,
    Outcome,
    PutEvidence,
    PutReward,
    Record,
    Standing,
    Touch,
    decide,
)
from tests.store.values import HOST, OTHER, TASK, call, evidence, reward, rollout

KEY = rollout()
FIRST = Binding(
    rollout=KEY,
    task=TASK,
    host=HOST,
    epoch=Epoch(1),
    state=RolloutState.OPEN,
    sandbox=None,
    boot_id=None,
    reason="",
    tainted="",
    created_at=0.0,
    touched_at=0.0,
)
HOSTS = st.sampled_from([HOST, OTHER])
BINDINGS = st.builds(lambda host, epoch: replace(FIRST, host=host, epoch=Epoch(epoch)), HOSTS, st.integers(1, 4))
WRITES: st.SearchStrategy[AnyWrite] = st.one_of(
    st.builds(lambda b, h: Adopt(rollout=KEY, binding=b, host=h, now=1.0), BINDINGS, HOSTS),
    st.builds(
        lambda b, s: Close(rollout=KEY, binding=b, state=s, reason=s.value), BINDINGS, st.sampled_from(RolloutState)
    ),
    st.builds(lambda b: AttachSandbox(rollout=KEY, binding=b, sandbox=SandboxId("s"), boot_id="b"), BINDINGS),
    st.builds(lambda b, t: Touch(rollout=KEY, binding=b, now=t), BINDINGS, st.floats(0, 10)),
    st.builds(lambda b, n: Record(rollout=KEY, binding=b, call=call(KEY, n)), BINDINGS, st.integers(1, 3)),
    st.builds(lambda b, t: PutEvidence(rollout=KEY, binding=b, evidence=evidence(KEY, t)), BINDINGS, st.text()),
    st.builds(lambda b, s: PutReward(rollout=KEY, binding=b, reward=reward(KEY, s)), BINDINGS, st.floats(0, 1)),
)


def ledger() -> Ledger:
    return Ledger(standing={KEY: Standing(id=1, binding=FIRST)})


@given(st.lists(WRITES, max_size=25))
def test_invariants(writes: list[AnyWrite]) -> None:
    standing = ledger()
    for write in writes:
        before = deepcopy(standing)
        outcome = decide(standing, write)
        assert isinstance(write, HostWrite)
        check_fence(before, standing, write, outcome)
        check_steps(before.standing[KEY].binding, standing.standing[KEY].binding)
        check_first_wins(before, standing)


def check_fence(before: Ledger, after: Ledger, write: HostWrite[object], outcome: Outcome) -> None:
    """Only who owns it may write; a refused write leaves no mark."""
    owner = before.standing[KEY].binding
    owned = (write.binding.host, write.binding.epoch) == (owner.host, owner.epoch)
    assert isinstance(outcome, StaleLease) == (not owned)
    if not owned:
        assert after == before


def check_steps(before: Binding, after: Binding) -> None:
    """Epochs rise by one with each owner, times never fall, tombstones never move, nothing reopens."""
    assert after.epoch - before.epoch in (0, 1)
    assert after.epoch > before.epoch or after.host == before.host
    assert after.touched_at >= before.touched_at
    if before.state in FINAL:
        assert (after.state, after.reason) == (before.state, before.reason)
    assert not (after.state is RolloutState.OPEN and before.state is not RolloutState.OPEN)


def check_first_wins(before: Ledger, after: Ledger) -> None:
    """What is there stays as it is, and is written once."""
    assert before.evidence.items() <= after.evidence.items()
    assert before.rewards.items() <= after.rewards.items()
    assert len(after.evidence_rows) == len(after.evidence) <= 1
    assert len(after.reward_rows) == len(after.rewards) <= 1
    keys = [row["key"] for row in after.call_rows]
    assert len(keys) == len(set(keys))


def test_the_owner_is_let_through() -> None:
    """The control: not everything is refused."""
    standing = ledger()
    adopted = decide(standing, Adopt(rollout=KEY, binding=FIRST, host=HostId("next"), now=5.0))
    assert isinstance(adopted, Binding)
    assert (adopted.host, adopted.epoch, adopted.touched_at) == ("next", 2, 5.0)
    assert decide(standing, Record(rollout=KEY, binding=adopted, call=call(KEY, 1))) is None
    assert len(standing.call_rows) == 1
    assert isinstance(decide(standing, Touch(rollout=KEY, binding=FIRST, now=6.0)), StaleLease)
