"""Must-fail siblings: altered in one place, in nothing else, and never to an equal value."""

import ast
from textwrap import dedent

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.graders.tests.literals import alternatives, other_exceptions, value_of
from orchestrator.graders.tests.mutants import Mutant, changed_functions, mutants, normalised
from orchestrator.graders.tests.sites import find_sites
from tests.graders.tests_grader.library import HIDDEN_CORE, HIDDEN_WORDS

VALUES = st.recursive(
    st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


def node_of(value: object) -> ast.expr:
    return ast.parse(repr(value), mode="eval").body


@given(VALUES)
def test_an_alternative_is_of_the_same_type_and_never_equal(value: object) -> None:
    for other in alternatives(node_of(value)):
        new = ast.literal_eval(ast.unparse(other))
        assert type(new) is type(value)
        assert new != value


@given(st.lists(st.integers(), min_size=2, max_size=4))
def test_where_order_does_not_count_a_reordered_list_is_no_alternative(values: list[int]) -> None:
    for other in alternatives(node_of(values), order_counts=False):
        assert sorted(ast.literal_eval(ast.unparse(other))) != sorted(values)


@pytest.mark.parametrize(
    ("value", "first"),
    [
        (17, 18),
        (0, 1),
        (True, False),
        ("a, b", "b, a"),
        ("one two", "two one"),
        ("abc", "bac"),
        ("41", "42"),
        (b"xy", b"yx"),
        (["a", "b"], ["b", "a"]),
        ([1, 2, 3], [1, 3, 3]),
        ({"a": 1, "b": 2}, {"a": 2, "b": 1}),
    ],
)
def test_the_first_alternative_is_a_plausible_one(value: object, first: object) -> None:
    assert value_of(alternatives(node_of(value))[0]) == first


@pytest.mark.parametrize("expression", ["None", "''", "[]", "f(1)", "x", "[x]", "...", "1j"])
def test_what_has_no_alternative(expression: str) -> None:
    assert alternatives(ast.parse(expression, mode="eval").body) == []


def test_another_exception_is_neither_above_nor_below() -> None:
    assert "KeyError" not in other_exceptions("LookupError")
    assert "ValueError" in other_exceptions("KeyError")
    assert other_exceptions("MyError") == []


def sites(code: str) -> list[tuple[str, bool]]:
    tree = ast.parse(normalised(dedent(code)))
    names = frozenset({"test_it", "TestIt::test_it"})
    return [(ast.unparse(site.node), site.sound) for site in find_sites(tree, names)]


def test_sites() -> None:
    assert sites("def test_it():\n    assert f(1) == 2") == [("2", True)]
    assert sites("def test_it():\n    assert 2 == f(1) and g() == 'x'") == [("2", True), ("'x'", True)]
    assert sites("def test_it():\n    assert f() is True") == [("True", True)]
    assert sites("class TestIt:\n    def test_it(self):\n        self.assertEqual(f(1), 2, msg='m')") == [("2", True)]
    assert sites("def test_it():\n    with raises(KeyError):\n        assert f() == 2") == [("KeyError", True)]
    assert sites("def test_it():\n    with open('x') as file:\n        assert f() == 2") == [("2", True)]
    assert sites("def test_it():\n    assert f() == approx(0.5)") == [("0.5", True)]
    assert sites("def test_it():\n    assert set(f()) == set([1, 2])") == [("[1, 2]", True)]
    assert sites("def test_it():\n    want = 3\n    assert f() == want") == [("3", True)]
    assert sites("def test_it():\n    for a, want in [(1, 2), (3, 4)]:\n        assert f(a) == want") == [
        ("2", True),
        ("4", True),
    ]
    assert sites(
        "@mark.parametrize('a, want', [(1, 2), param(3, 4)])\ndef test_it(a, want):\n    assert f(a) == want"
    ) == [
        ("2", True),
        ("4", True),
    ]


def test_sites_that_need_proof() -> None:
    assert sites("def test_it():\n    if g():\n        assert f() == 2") == [("2", False)]
    assert sites("def test_it():\n    for x in f():\n        assert x == 2") == [("2", False)]
    assert sites("def test_it():\n    return\n    assert f() == 2") == [("2", False)]
    assert sites("def test_it():\n    want = 3\n    assert f(want) == want") == [("3", False)]
    assert sites("def test_it():\n    with suppress(Exception):\n        assert f() == 2") == [("2", False)]
    assert sites("def test_it():\n    for x in [1, 2]:\n        if x: continue\n        assert f() == 2") == [
        ("2", False)
    ]
    assert sites("def test_it():\n    assert f() == [A(1)]") == [("1", False)]


def test_what_is_no_site() -> None:
    for body in (
        "assert f()",
        "assert f() != 2",
        "assert f() < 2",
        "assert not f() == 2",
        "assert f() == 2 or g()",
        "f(2)",
    ):
        assert sites(f"def test_it():\n    {body}") == [], body
    assert sites("def test_other():\n    assert f() == 2") == []
    assert sites("def test_it():\n    self.assertAlmostEqual(f(), 2, 1)") == []


HIDDEN = normalised(HIDDEN_CORE)
FUNCTIONS = frozenset({"test_median_of_two", "test_median_of_four", "test_median_of_six", "test_runs"})


def made(text: str = HIDDEN, limit: int = 12, functions: frozenset[str] = FUNCTIONS) -> tuple[Mutant, ...]:
    return mutants(text, functions, "seed", limit)


def test_a_sibling_differs_in_the_tests_it_names_alone_and_is_printed_like_the_real_one() -> None:
    assert len(made()) == 12
    assert len({mutant.text for mutant in made()}) == 12
    for mutant in made():
        assert changed_functions(HIDDEN, mutant.text) == mutant.functions <= FUNCTIONS
        assert normalised(mutant.text) == mutant.text
        assert len(mutant.text.splitlines()) == len(HIDDEN.splitlines())


def test_the_same_task_has_the_same_siblings_and_another_seed_others() -> None:
    assert mutants(HIDDEN, FUNCTIONS, "seed", 4) == made(limit=4)
    assert any(mutants(HIDDEN, FUNCTIONS, f"seed {n}", 4) != made(limit=4) for n in range(5))


def test_two_tests_exchange_their_values() -> None:
    exchanged = [mutant for mutant in made() if len(mutant.functions) == 2]
    assert exchanged
    for mutant in exchanged:
        constants = [sorted(repr(n.value) for n in ast.walk(ast.parse(t)) if isinstance(n, ast.Constant)) for t in (HIDDEN, mutant.text)]  # fmt: skip
        assert constants[0] == constants[1]


def test_text_that_is_not_ascii_is_altered_in_the_right_place() -> None:
    text = normalised('def test_it():\n    assert ("ünï", f("ö")) and f("é") == "ä b" and g() == 1\n')
    found = mutants(text, frozenset({"test_it"}), "s", 4)
    assert found
    for mutant in found:
        assert normalised(mutant.text) == mutant.text
        assert '"é"' in mutant.text.replace("'", '"')


def test_a_file_without_expected_literals_has_none() -> None:
    text = normalised("def test_it():\n    assert f() is None\n    assert g()\n")
    assert mutants(text, frozenset({"test_it"}), "s", 4) == ()


def test_exceptions_come_last() -> None:
    text = normalised("def test_it():\n    with raises(KeyError):\n        f()\n    assert g() == True\n")
    assert mutants(text, frozenset({"test_it"}), "s", 2)[0].how == "test_it: True -> False"
    assert len(mutants(text, frozenset({"test_it"}), "s", 9)) > 1


def test_changes_outside_any_test_are_seen() -> None:
    assert changed_functions(HIDDEN_WORDS, HIDDEN_WORDS) == frozenset()
    assert (
        changed_functions(HIDDEN_WORDS, HIDDEN_WORDS.replace("class TestTop", "class TestTop(object)")) == frozenset()
    )
    assert changed_functions(HIDDEN_WORDS, HIDDEN_WORDS.replace('== "AC"', '== "CA"')) == {"test_initials"}
    moved = HIDDEN_WORDS.replace('top("d c b a", 1) == ["a"]', 'top("d c b a", 1) == ["b"]')
    assert changed_functions(HIDDEN_WORDS, moved) == {"TestTop::test_count"}
