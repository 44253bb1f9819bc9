"""A small library with two bugs, its visible tests, the fix, and the hidden tests of the fixed release."""

import hashlib
from collections.abc import Mapping
from textwrap import dedent

from orchestrator import models
from orchestrator.models import BoxEnd, Evidence, FileChange, HiddenFile, JobId, RolloutKey, Task, TaskId, TraceId
from tests.graders.tests_grader.local_box import PYTHON, LocalBench

CORE = dedent(
    '''\
    """Sums and middles."""


    def total(values):
        return sum(values)


    def median(values):
        ordered = sorted(values)
        return ordered[len(ordered) // 2]{median}


    def runs(values):
        """Lengths of runs of equal values."""
        found = []
        for index, value in enumerate(values):
            if index and value == values[index - 1]:
                found[-1] += 1
            else:
                found.append(1)
        return found
    '''
)
WORDS = dedent(
    '''\
    """Words and how often they come."""

    from collections import Counter


    def top(text, count):
        """The most frequent words, most frequent first{ties}."""
        counted = Counter(text.lower().split())
        return {ranked}[:count]


    def initials(text):
        return "".join(word[0].upper() for word in text.split())
    '''
)
BROKEN_CORE = CORE.replace("{median}", "")
FIXED_CORE = CORE.replace("    return ordered[len(ordered) // 2]{median}", "    half = len(ordered) // 2\n"
    "    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2")  # fmt: skip
BROKEN_WORDS = WORDS.replace("{ties}", "").replace("{ranked}", "[word for word, _ in counted.most_common()]")
FIXED_WORDS = WORDS.replace("{ties}", ", equals by the alphabet").replace(
    "{ranked}", "sorted(counted, key=lambda word: (-counted[word], word))"
)

CONFTEST = dedent(
    """\
    import pytest


    @pytest.fixture
    def pangram():
        return "the quick brown fox jumps over the lazy dog"
    """
)
HELPERS = "def numbers(text):\n    return [int(word) for word in text.split()]\n"
VISIBLE = dedent(
    """\
    from tally.core import median, total
    from tests.helpers import numbers


    def test_total():
        assert total(numbers("1 2 3")) == 6


    def test_median_of_three():
        assert median([9, 1, 5]) == 5
    """
)
BASE: Mapping[str, str] = {
    "README.md": "# tally\n",
    "pyproject.toml": '[project]\nname = "tally"\nversion = "1.0"\n',
    "tally/__init__.py": "",
    "tally/core.py": BROKEN_CORE,
    "tally/words.py": BROKEN_WORDS,
    "tests/__init__.py": "",
    "tests/conftest.py": CONFTEST,
    "tests/helpers.py": HELPERS,
    "tests/test_core.py": VISIBLE,
}
GOLD: Mapping[str, str] = {"tally/core.py": FIXED_CORE, "tally/words.py": FIXED_WORDS}

HIDDEN_CORE = VISIBLE + dedent(
    """\


    def test_median_of_two():
        assert median([4, 2]) == 3


    def test_median_of_four():
        assert median([1, 2, 3, 10]) == 2.5


    def test_median_of_equals():
        assert median([7, 7]) == 7


    def test_median_of_six():
        assert median(numbers("6 1 5 2 4 3")) == 3.5


    def test_median_is_not_the_upper_one():
        assert median([10, 20]) == 15


    def test_runs():
        from tally.core import runs

        assert runs("aabccc") == [2, 1, 3]


    def test_total_of_nothing():
        assert total([]) == 0
    """
)
HIDDEN_WORDS = dedent(
    """\
    import pytest

    from tally.words import initials, top


    def test_ties_by_the_alphabet():
        assert top("b a", 2) == ["a", "b"]


    def test_ties_after_the_most_frequent():
        assert top("zoo bee ant zoo", 3) == ["zoo", "ant", "bee"]


    class TestTop:
        def test_case(self):
            assert top("B b A a C", 2) == ["a", "b"]

        def test_count(self):
            assert top("d c b a", 1) == ["a"]


    @pytest.mark.parametrize(("text", "expected"), [("y x", ["x", "y"]), ("r q p", ["p", "q", "r"])])
    def test_rows(text, expected):
        assert top(text, 3) == expected


    def test_pangram(pangram):
        assert top(pangram, 2) == ["the", "brown"]


    def test_initials():
        assert initials("ab cd") == "AC"


    def test_initials_of_nothing():
        assert initials("") == ""
    """
)
FAIL_TO_PASS = (
    "tests/test_core.py::test_median_of_two",
    "tests/test_core.py::test_median_of_four",
    "tests/test_core.py::test_median_of_six",
    "tests/test_core.py::test_median_is_not_the_upper_one",
    "tests/test_words.py::test_ties_by_the_alphabet",
    "tests/test_words.py::test_ties_after_the_most_frequent",
    "tests/test_words.py::TestTop::test_case",
    "tests/test_words.py::TestTop::test_count",
    "tests/test_words.py::test_rows[y x-expected0]",
    "tests/test_words.py::test_rows[r q p-expected1]",
    "tests/test_words.py::test_pangram",
)
PASS_TO_PASS = (
    "tests/test_core.py::test_total",
    "tests/test_core.py::test_median_of_three",
    "tests/test_core.py::test_median_of_equals",
    "tests/test_core.py::test_runs",
    "tests/test_core.py::test_total_of_nothing",
    "tests/test_words.py::test_initials",
    "tests/test_words.py::test_initials_of_nothing",
)
SPEC = models.TestsSpec(
    hidden=(
        HiddenFile(path="tests/test_core.py", text=HIDDEN_CORE),
        HiddenFile(path="tests/test_words.py", text=HIDDEN_WORDS),
    ),
    fail_to_pass=FAIL_TO_PASS,
    pass_to_pass=PASS_TO_PASS,
    command=(PYTHON, "-m", "pytest"),
    timeout_s=20.0,
)
TASK = Task(
    id=TaskId("tally"), repo="tally", commit="0" * 40, image="none", prompt="Mend it.", grader="tests", tests=SPEC
)

Content = str | bytes | None
"""None: the file is deleted. Bytes that begin with b"link:" stand for a symbolic link."""


def changes_of(files: Mapping[str, Content]) -> tuple[tuple[FileChange, ...], dict[str, bytes]]:
    """A delta over BASE, and its blobs."""
    changes, blobs = [], {}
    for path, content in files.items():
        kind = "deleted" if content is None else "modified" if path in BASE else "added"
        data = content.encode() if isinstance(content, str) else content or b""
        if content is None or data.startswith(b"link:"):
            changes.append(FileChange(path=path, kind=kind, type="file" if content is None else "symlink"))
            continue
        digest = hashlib.sha256(data).hexdigest()
        blobs[digest] = data
        changes.append(FileChange(path=path, kind=kind, type="file", mode=0o644, size_bytes=len(data), blob=digest))
    return tuple(changes), blobs


def bench(files: Mapping[str, Content], task: Task = TASK, base: Mapping[str, str] = BASE) -> LocalBench:
    """A bench for a rollout that ended with those changes."""
    changes, blobs = changes_of(files)
    evidence = Evidence(
        rollout=RolloutKey(job=JobId("j"), trace_id=TraceId("t")),
        task=task.id,
        changes=changes,
        truncated=False,
        final_answer="",
        submitted=None,
        calls=1,
        box_end=BoxEnd.ALIVE,
        findings=(),
        gathered_at=0.0,
    )
    return LocalBench(task, evidence, base, blobs)
