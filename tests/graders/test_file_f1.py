"""file_f1: the answer is read strictly, paths are compared canonically, and no list beats the true one."""

from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from orchestrator.errors import Misconfigured
from orchestrator.graders import registry
from orchestrator.graders.file_f1 import MAX_PER_GOLD, NoAnswer, canonical, distinct, f1, grade_answer, parsed
from orchestrator.models import (
    AnswerSource,
    BoxEnd,
    Evidence,
    FileChange,
    FileF1Spec,
    Grade,
    JobId,
    RolloutKey,
    Task,
    TaskId,
    TraceId,
)

NOTHING = Evidence(
    rollout=RolloutKey(job=JobId("j"), trace_id=TraceId("t")),
    task=TaskId("task"),
    changes=(),
    truncated=False,
    final_answer="",
    submitted=None,
    calls=1,
    box_end=BoxEnd.ALIVE,
    findings=(),
    gathered_at=0.0,
)
PATHS = st.text("aB.é /", min_size=1, max_size=8)
NAMES = st.sampled_from([f"src/{name}.py" for name in "abcdefgh"])


def graded(source: AnswerSource, gold: Sequence[str], evidence: Evidence) -> Grade:
    return grade_answer(FileF1Spec(source=source, gold=tuple(gold)), evidence)


def submitted(gold: Sequence[str], *files: str) -> Grade:
    return graded(AnswerSource.SUBMITTED, gold, replace(NOTHING, submitted=files))


def answered(gold: Sequence[str], text: str) -> Grade:
    return graded(AnswerSource.FINAL_ANSWER, gold, replace(NOTHING, final_answer=text))


def edited(gold: Sequence[str], *paths: str, truncated: bool = False) -> Grade:
    changes = tuple(FileChange(path=path, kind="modified", type="file") for path in paths)
    return graded(AnswerSource.EDITED_FILES, gold, replace(NOTHING, changes=changes, truncated=truncated))


@pytest.mark.parametrize(
    ("files", "precision", "recall", "score"),
    [
        (["a", "b"], 1.0, 1.0, 1.0),
        (["a"], 1.0, 0.5, 2 / 3),
        (["a", "b", "c", "d"], 0.5, 1.0, 2 / 3),
        (["a", "c"], 0.5, 0.5, 0.5),
        (["c"], 0.0, 0.0, 0.0),
        ([], 0.0, 0.0, 0.0),
        (["a", "b", "../c"], 2 / 3, 1.0, 0.8),
    ],
)
def test_scores(files: list[str], precision: float, recall: float, score: float) -> None:
    grade = submitted(["a", "b"], *files)
    assert grade.sub_scores == pytest.approx({"precision": precision, "recall": recall, "f1": score})
    assert grade.score == pytest.approx(score)
    assert grade.passed == (score == 1.0)


def test_empty_against_empty_is_right_and_against_something_wrong() -> None:
    assert submitted([]).score == 1.0
    assert submitted([], "a").score == 0.0
    assert submitted(["a"]).score == 0.0
    assert answered([], "[]").score == 1.0
    assert answered([], "").score == 0.0


def test_nothing_submitted_earns_nothing() -> None:
    grade = graded(AnswerSource.SUBMITTED, [], NOTHING)
    assert (grade.score, grade.passed, grade.reason) == (0.0, False, "nothing was submitted")


def test_only_the_declared_source_is_read() -> None:
    """The right answer in each place but the declared one earns nothing; in the declared one it earns all."""
    right: dict[AnswerSource, dict[str, Any]] = {
        AnswerSource.FINAL_ANSWER: {"final_answer": "a"},
        AnswerSource.SUBMITTED: {"submitted": ("a",)},
        AnswerSource.EDITED_FILES: {"changes": (FileChange(path="a", kind="added", type="file"),)},
    }
    for declared in AnswerSource:
        others = {key: value for source, part in right.items() if source is not declared for key, value in part.items()}
        assert graded(declared, ["a"], replace(NOTHING, **others)).score == 0.0
        assert graded(declared, ["a"], replace(NOTHING, **right[declared])).score == 1.0


def test_edited_files_are_those_that_differ_but_for_byproducts() -> None:
    assert edited(["a.py"], "a.py", "__pycache__/a.cpython-311.pyc", "x/.pytest_cache/v/d", "b.pyc").score == 1.0
    assert edited(["a.py"], "a.py", "b.py").score == pytest.approx(2 / 3)
    assert edited(["a.py"]).score == 0.0
    assert edited(["a.py"], "a.py", truncated=True).score == 0.0


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("a.py", ["a.py"]),
        ('["a.py", "b c.py"]', ["a.py", "b c.py"]),
        ("[]", []),
        ("a.py\nb.py\n", ["a.py", "b.py"]),
        ("\n  - a.py\n\n  * b.py\n+ c.py\n1. d.py\n22) e.py", ["a.py", "b.py", "c.py", "d.py", "e.py"]),
        ("- `a b.py`\n`c.py`", ["a b.py", "c.py"]),
        ("The files are:\n```\na.py\nb.py\n```\nThat is all.", ["a.py", "b.py"]),
        ('Here:\n```json\n["a.py"]\n```', ["a.py"]),
        ("-a.py", ["-a.py"]),
        ("1.py", ["1.py"]),
        ("a.py\r\nb.py\r\n", ["a.py", "b.py"]),
    ],
)
def test_what_is_a_list(text: str, items: list[str]) -> None:
    assert parsed(text) == items


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   \n",
        "The files are a.py and b.py.",
        "The files:\n- a.py",
        "a.py b.py",
        "a.py, b.py",
        "- a.py (the parser)",
        "`a.py` and `b.py`",
        '{"files": ["a.py"]}',
        '["a.py", 3]',
        '[["a.py"]]',
        '["a.py"',
        '"a.py"',
        '["a.py"] and more',
        "```\na.py\n```\n```\nb.py\n```",
        "```\na.py",
        "```\n```",
        "[" * 100_000,
        "x" * 300_000,
    ],
)
def test_what_is_not_a_list_earns_nothing(text: str) -> None:
    with pytest.raises(NoAnswer):
        parsed(text)
    grade = answered(["a.py"], text)
    assert (grade.score, grade.passed) == (0.0, False)
    assert len(grade.reason) < 300


@pytest.mark.parametrize(
    ("path", "is_"),
    [
        ("a/b.py", "a/b.py"),
        ("./a/b.py", "a/b.py"),
        ("/workspace/a/b.py", "a/b.py"),
        ("a//b.py", "a/b.py"),
        ("a/./b.py", "a/b.py"),
        (" a.py ", " a.py "),
        ("e\u0301.py", "\u00e9.py"),
        ("A.py", "A.py"),
        ("a\\b.py", "a\\b.py"),
        ("a/", "a"),
        ("..a/b..", "..a/b.."),
        ("workspace/a", "workspace/a"),
        ("", None),
        (".", None),
        ("./", None),
        ("/workspace/", None),
        ("/workspace", None),
        ("/etc/passwd", None),
        ("//workspace/a", None),
        ("../a", None),
        ("a/../b", None),
        ("a/..", None),
        ("a\x00b", None),
        ("a\nb", None),
        ("a\ud800", None),
        ("x" * 5000, None),
    ],
)
def test_canonical_paths(path: str, is_: str | None) -> None:
    assert canonical(path) == is_


@given(PATHS)
def test_canonical_is_stable(path: str) -> None:
    once = canonical(path)
    if once is not None:
        assert canonical(once) == once
        assert canonical(f"./{once}") == once
        assert canonical(f"/workspace/{once}") == once


@given(st.lists(PATHS | NAMES, max_size=12), st.lists(NAMES, max_size=6), st.randoms())
def test_a_score_is_in_range_and_order_and_repetition_do_not_matter(
    files: list[str], gold: list[str], random: Random
) -> None:
    grade = submitted(gold, *files)
    assert 0.0 <= grade.score <= 1.0
    assert all(0.0 <= score <= 1.0 for score in grade.sub_scores.values())
    again = files + files[: len(files) // 2]
    random.shuffle(again)
    assert submitted([*gold, *gold], *again) == grade


def test_gold_that_repeats_itself_allows_no_longer_answer() -> None:
    files = [f"other/{number}.py" for number in range(MAX_PER_GOLD + 1)]
    assert submitted(["a.py", "a.py"], *files) == submitted(["a.py"], *files)


@given(st.sets(NAMES, min_size=1), st.sets(NAMES, min_size=1))
def test_only_the_gold_itself_earns_the_top(files: set[str], gold: set[str]) -> None:
    grade = submitted(sorted(gold), *files)
    assert grade.passed == (grade.score == 1.0) == (files == gold)


@given(st.sets(NAMES, min_size=1), st.integers(1, 500))
def test_naming_every_file_never_beats_naming_the_right_ones(gold: set[str], others: int) -> None:
    every = [*gold, *(f"other/{number}.py" for number in range(others))]
    all_of_them, right = submitted(sorted(gold), *every), submitted(sorted(gold), *gold)
    assert all_of_them.score < right.score == 1.0
    if len(every) > MAX_PER_GOLD * len(gold):
        assert all_of_them.score == 0.0


@given(st.sets(NAMES, min_size=1, max_size=4), st.sets(NAMES, max_size=4), NAMES)
def test_one_more_right_file_raises_and_one_more_wrong_one_lowers(gold: set[str], files: set[str], more: str) -> None:
    assume(more not in files and files & gold)
    before, after = f1(files, gold).f1, f1(files | {more}, gold).f1
    assert after > before if more in gold else after < before


def test_what_is_no_path_is_a_wrong_entry_and_a_finding() -> None:
    grade = submitted(["a"], "a", "../../etc/passwd", "/etc/passwd")
    assert grade.score == pytest.approx(0.5)
    assert {finding.code for finding in grade.findings} == {"bad_path"}
    assert not grade.violation
    assert distinct(["a", "./a", "../x"]) == ({"a"}, {"../x"})


def task(spec: FileF1Spec | None) -> Task:
    return Task(id=TaskId("t"), repo="r", commit="c", image="i", prompt="p", grader="file_f1", file_f1=spec)


def test_a_task_that_cannot_be_graded_is_refused() -> None:
    grader = registry.grader("file_f1")
    for source in AnswerSource:
        grader.check(task(FileF1Spec(source=source, gold=("a.py",))))
    grader.check(task(FileF1Spec(source=AnswerSource.SUBMITTED, gold=())))
    for wrong in (
        None,
        FileF1Spec(source=AnswerSource.SUBMITTED, gold=("../a",)),
        FileF1Spec(source=AnswerSource.SUBMITTED, gold=("/etc/passwd",)),
        FileF1Spec(source=AnswerSource.EDITED_FILES, gold=()),
    ):
        with pytest.raises(Misconfigured):
            grader.check(task(wrong))


def test_an_unknown_grader_is_told() -> None:
    with pytest.raises(Misconfigured, match="file_f1, tests"):
        registry.grader("f1")
    assert registry.grader("file_f1").name == "file_f1"
