"""Which child runs what; and the tasks that cannot be graded, refused with words that help."""

import random
from dataclasses import replace

import pytest

from orchestrator.errors import Misconfigured
from orchestrator.graders.tests import TestsGrader as Grader
from orchestrator.graders.tests.plan import Plan, command, draw, suite
from orchestrator.models import HiddenFile, Task
from tests.graders.tests_grader.library import FAIL_TO_PASS, HIDDEN_CORE, HIDDEN_WORDS, PASS_TO_PASS, SPEC, TASK

CORE, WORDS = "tests/test_core.py", "tests/test_words.py"


def task(**changes: object) -> Task:
    return replace(TASK, tests=replace(SPEC, **changes))  # type: ignore[arg-type]


def drawn(of: Task = TASK, seed: int = 1) -> Plan:
    return draw(of, suite(of), random.Random(seed))


def test_every_file_has_one_real_run_and_its_siblings() -> None:
    plan = drawn(task(mutants=3))
    for path in (CORE, WORDS):
        family = [child for child in plan.children if child.target == path]
        assert [child.must_fail is None for child in family].count(True) == 1
        assert len(family) == 4
        assert len({child.files[path] for child in family}) == 4
        assert len({child.functions for child in family}) == 1, "what the child is told does not tell which it is"
    assert plan.budget_s == 4 * SPEC.timeout_s


def test_a_child_finds_no_other_hidden_test_file_unless_its_own_imports_it() -> None:
    assert all(set(child.files) == {child.target} for child in drawn().children)
    importing = HIDDEN_WORDS.replace("import pytest\n", "import pytest\nfrom tests import test_core\n", 1)
    of = task(hidden=(SPEC.hidden[0], HiddenFile(path=WORDS, text=importing)))
    files = {child.target: set(child.files) for child in drawn(of).children}
    assert files == {CORE: {CORE}, WORDS: {CORE, WORDS}}


def test_hidden_files_without_ids_are_there_for_every_child() -> None:
    of = task(hidden=(*SPEC.hidden, HiddenFile(path="tests/data.txt", text="1\n")))
    assert drawn(of).always == {"tests/data.txt": "1\n"}


def test_order_and_choice_differ_from_grade_to_grade_but_the_pool_does_not() -> None:
    plans = [drawn(seed=seed) for seed in range(12)]
    assert len({tuple(child.target for child in plan.children) for plan in plans}) > 1
    assert len({tuple(sorted(child.how for child in plan.children)) for plan in plans}) > 1
    assert suite(TASK).pools == suite(replace(TASK, prompt="another")).pools
    assert suite(TASK).pools != suite(replace(TASK, id=type(TASK.id)("another"))).pools


def test_tests_that_must_begin_to_pass_are_altered_before_others() -> None:
    names = {test_id.split("::", 1)[1].split("[")[0] for test_id in FAIL_TO_PASS}
    for pool in suite(TASK).pools.values():
        assert all(mutant.functions <= names for mutant in pool)


def test_written_siblings_take_the_place_of_altered_ones() -> None:
    written = HIDDEN_CORE.replace("== 2.5", "== 3.5")
    ready = suite(task(written_mutants=(HiddenFile(path=CORE, text=written),)))
    assert [(mutant.text, mutant.functions) for mutant in ready.pools[CORE]] == [
        (written, frozenset({"test_median_of_four"}))
    ]
    assert ready.real[CORE] == HIDDEN_CORE, "the author's own formatting, in both"


def test_a_written_sibling_that_changes_a_helper_may_fail_anywhere() -> None:
    helper = "\n\ndef twice(value):\n    return {}\n"
    hidden = (HiddenFile(path=CORE, text=HIDDEN_CORE + helper.format("2 * value")), SPEC.hidden[1])
    written = (HiddenFile(path=CORE, text=HIDDEN_CORE + helper.format("3 * value")),)
    assert suite(task(hidden=hidden, written_mutants=written)).pools[CORE][0].functions == frozenset()


UNALTERABLE = "from tally.core import median\n\n\ndef test_it():\n    assert median([4, 2])\n"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fail_to_pass": ("tests/test_other.py::test_a",)}, "does not hold"),
        ({"fail_to_pass": ()}, "an empty change would pass"),
        ({"fail_to_pass": (*FAIL_TO_PASS, FAIL_TO_PASS[0])}, "twice"),
        ({"pass_to_pass": (*PASS_TO_PASS, FAIL_TO_PASS[0])}, "twice"),
        ({"hidden": (*SPEC.hidden, SPEC.hidden[0])}, "twice"),
        ({"mutants": 0}, "can be forged"),
        ({"mutants": 5000}, "5000 are needed"),
        ({"timeout_s": 0.0}, "positive"),
        ({"command": ()}, "empty"),
        ({"import_roots": ("../x",)}, "relative"),
        ({"import_roots": ("/x",)}, "relative"),
        ({"hidden": (HiddenFile(path=CORE, text="def ("), SPEC.hidden[1])}, "cannot be read"),
        (
            {
                "hidden": (HiddenFile(path=CORE, text=UNALTERABLE),),
                "fail_to_pass": (f"{CORE}::test_it",),
                "pass_to_pass": (),
            },
            "written_mutants",
        ),
        ({"written_mutants": (SPEC.hidden[0],)}, "the file itself"),
    ],
)
def test_a_task_that_cannot_be_graded_is_refused_when_it_is_loaded(changes: dict[str, object], words: str) -> None:
    Grader().check(TASK)
    with pytest.raises(Misconfigured, match=words):
        Grader().check(task(**changes))


def test_a_task_without_tests_is_refused() -> None:
    with pytest.raises(Misconfigured, match="needs the field"):
        Grader().check(replace(TASK, tests=None))


def test_commands() -> None:
    assert command(("pytest", "-x")) == ("python3", ("-x",), ())
    assert command(("/opt/venv/bin/python", "-m", "pytest")) == ("/opt/venv/bin/python", (), ())
    assert command(("make", "check")) == ("python3", (), ("make", "check"))
