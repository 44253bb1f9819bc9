"""docs/security.md is what the code says, and no row of it is without evidence, mutant, or a reason."""

import pytest

from orchestrator.conformance import checks
from tests.integrity.controls import CONTROLS, Control, checks_of, evidence_of, mutants_of, named_in, nodes
from tests.integrity.table import PAGE, render, spliced
from tests.integrity.weaken import MUTANTS

IDS = [f"C{number}" for number in range(1, 36)]


def test_the_page_is_current() -> None:
    """To bring it up to date: `python -m tests.integrity.table`."""
    page = PAGE.read_text()
    assert page == spliced(page, render())


def test_no_row_is_missing_or_twice() -> None:
    assert [control.id for control in CONTROLS] == IDS


@pytest.mark.parametrize("control", [pytest.param(each, id=each.id) for each in CONTROLS])
def test_each_row_has_evidence_and_a_mutant_or_says_why_not(control: Control) -> None:
    evidence = [*checks_of(control), *evidence_of(control)]
    assert bool(evidence) != bool(control.absent), "evidence, or the reason why there is none"
    if evidence:
        assert bool(mutants_of(control)) != bool(control.no_mutant), "a mutant, or the reason why there is none"
        assert control.setting


def test_every_test_that_is_named_exists() -> None:
    named = {node for control in CONTROLS for node in (*control.tests, *control.mutants)}
    assert named - nodes().keys() == set()


def test_nothing_names_a_control_that_there_is_not() -> None:
    ids = {named for name in nodes().values() for named in named_in(name)}
    ids |= {each for check in checks() for each in check.controls} | {
        each for mutant in MUTANTS for each in mutant.controls
    }
    assert ids <= set(IDS)


def test_every_check_that_a_mutant_turns_red_exists() -> None:
    assert {name for mutant in MUTANTS for name in mutant.checks} <= {check.id for check in checks()}


@pytest.mark.parametrize(
    ("name", "controls"),
    [("test_C1_C2_none", {"C1", "C2"}), ("test_C20_x", {"C20"}), ("test_a_C3_b", set()), ("test_CPU", set())],
)
def test_names_are_read(name: str, controls: set[str]) -> None:
    assert named_in(name) == controls
