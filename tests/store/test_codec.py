"""What is stored comes back as it was, whatever a trainer or a model put into it."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import StoreError
from orchestrator.models import (
    BoxEnd,
    Evidence,
    FileChange,
    Finding,
    JobId,
    Outcome,
    Reward,
    RolloutKey,
    TaskId,
    TraceId,
)
from orchestrator.store.codec import evidence_of, evidence_text, reward_of, reward_text
from orchestrator.store.schema import from_stored, to_stored
from tests.store.values import evidence, reward, rollout

TEXT = st.text(st.characters(), max_size=30)  # surrogates and NUL included
NUMBER = st.floats(allow_nan=False, allow_infinity=False)
KEYS = st.builds(lambda job, trace: RolloutKey(job=JobId(job), trace_id=TraceId(trace)), TEXT, TEXT)
FINDINGS = st.lists(st.builds(lambda code, detail: Finding(code=code, detail=detail), TEXT, TEXT), max_size=3).map(
    tuple
)
CHANGES = st.lists(
    st.builds(
        FileChange,
        path=TEXT,
        kind=st.sampled_from(["added", "modified", "deleted"]),
        type=st.sampled_from(["file", "symlink", "other"]),
        mode=st.integers(0, 0o7777),
        size_bytes=st.integers(0, 2**60),
        blob=st.none() | TEXT,
    ),
    max_size=3,
).map(tuple)
EVIDENCE = st.builds(
    Evidence,
    rollout=KEYS,
    task=TEXT.map(TaskId),
    changes=CHANGES,
    truncated=st.booleans(),
    final_answer=TEXT,
    submitted=st.none() | st.lists(TEXT, max_size=3).map(tuple),
    calls=st.integers(0, 1000),
    box_end=st.sampled_from(BoxEnd),
    findings=FINDINGS,
    gathered_at=NUMBER,
)
REWARDS = st.builds(
    Reward,
    rollout=KEYS,
    outcome=st.sampled_from(Outcome),
    score=st.none() | NUMBER,
    reason=TEXT,
    sub_scores=st.dictionaries(TEXT, NUMBER, max_size=3),
    findings=FINDINGS,
    graded_at=NUMBER,
)


@given(EVIDENCE)
def test_evidence_round_trips_through_a_column(value: Evidence) -> None:
    assert evidence_of(from_stored(to_stored(evidence_text(value)))) == value


@given(REWARDS)
def test_reward_round_trips_through_a_column(value: Reward) -> None:
    assert reward_of(from_stored(to_stored(reward_text(value)))) == value


@given(st.text(st.characters()))
def test_stored_text_is_what_databases_take_and_comes_back(text: str) -> None:
    stored = to_stored(text)
    assert "\x00" not in stored
    stored.encode("utf-8")
    assert from_stored(stored) == text


@given(st.text(st.characters()), st.text(st.characters()))
def test_stored_texts_are_equal_only_where_the_texts_are(one: str, other: str) -> None:
    assert (to_stored(one) == to_stored(other)) == (one == other)


def test_escape_characters_themselves_survive() -> None:
    for text in ("\x1a0000", "\x1a", "\x00", "\x1a\x00\ud800", "a\ud83d\ude00b"):
        assert from_stored(to_stored(text)) == text


@pytest.mark.parametrize("score", [float("nan"), float("inf"), float("-inf")])
def test_a_score_that_is_no_number_is_refused(score: float) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        reward_text(reward(rollout(), score))
    assert reward_text(reward(rollout(), 1.0))


@pytest.mark.parametrize("damage", ["", "[]", "{}", "null", "{", '{"job":1}'])
def test_a_damaged_body_is_told(damage: str) -> None:
    for decode in (evidence_of, reward_of):
        with pytest.raises(StoreError, match="damaged"):
            decode(damage)


def test_a_field_of_the_wrong_form_is_told() -> None:
    body = json.loads(evidence_text(evidence(rollout())))
    assert evidence_of(json.dumps(body)) == evidence(rollout())
    for field, wrong in (("box_end", "asleep"), ("changes", [["a"]]), ("findings", [1])):
        with pytest.raises(StoreError, match="damaged"):
            evidence_of(json.dumps({**body, field: wrong}))
