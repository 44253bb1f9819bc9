"""What is carried into a grading box, and what is held against a rollout."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.graders.tests.delta import (
    MAX_CARRIED_BYTES,
    MAX_CARRIED_FILES,
    MAX_JUDGED_BYTES,
    Inspection,
    Rules,
    inspect,
    is_plain,
    to_judge,
)
from orchestrator.graders.tests.delta import test_roots as roots_of
from orchestrator.models import FileChange

RULES = Rules(tests=frozenset({"tests", "conftest.py"}), roots=frozenset({".", "src"}))
HOOKS = b"def pytest_runtest_makereport(item, call):\n    pass\n"
SLOW = b"def pytest_addoption(parser):\n    pass\n\n\ndef pytest_collection_modifyitems(items):\n    pass\n"
FIXTURE = b"import pytest\n\n\n@pytest.fixture\ndef number():\n    return 1\n"


def change(path: str, kind: str = "added", type_: str = "file", size: int = 1, blob: str | None = "b") -> FileChange:
    return FileChange(path=path, kind=kind, type=type_, mode=0o644, size_bytes=size, blob=blob)


def inspected(*changes: FileChange, content: bytes = b"", base: bytes = b"") -> Inspection:
    contents = {each.path: content for each in to_judge(changes, RULES)}
    return inspect(changes, RULES, contents, dict.fromkeys(contents, base) if base else {})


def codes(inspection: Inspection) -> list[str]:
    return [finding.code for finding in inspection.findings]


@pytest.mark.parametrize(
    "path",
    [
        "a.py",
        "src/pkg/core.py",
        "setup.cfg",
        "pyproject.toml",
        "tox.ini",
        "docs/tests.md",
        "testsuite.py",
        "pkg/conftest_of.py",
        "x.sop",
    ],
)
def test_code_is_carried_without_a_word(path: str) -> None:
    found = inspected(change(path))
    assert ([each.path for each in found.carried], found.findings, found.attack, found.refused) == ([path], (), "", "")


@pytest.mark.parametrize(
    "path",
    [".git/config", "a/__pycache__/b.cpython-311.pyc", "b.pyc", "B.PYC", "x.egg-info/PKG-INFO", "x-1.dist-info/RECORD"],
)
def test_by_products_are_passed_over(path: str) -> None:
    found = inspected(change(path))
    assert (found.carried, found.findings, found.attack) == ((), (), "")


@pytest.mark.parametrize(
    "path",
    ["pkg/fast.so", "pkg/fast.cpython-311.so", "pkg/fast.pyd", "lib.so.1", "docs/a.pth", "deep/sitecustomize.py"],
)
def test_what_is_odd_is_told(path: str) -> None:
    found = inspected(change(path))
    assert (found.carried, codes(found), found.attack) == ((), ["not_carried"], "")


@pytest.mark.parametrize("path", ["sitecustomize.py", "src/usercustomize.py", "x.pth", "src/x.PTH"])
def test_start_up_files_where_they_would_work_are_an_attack(path: str) -> None:
    found = inspected(change(path))
    assert found.carried == ()
    assert path in found.attack
    assert codes(found) == ["attack_on_grader"]
    assert inspected(change(path, "deleted")).attack == ""


@pytest.mark.parametrize("path", ["conftest.py", "tests/conftest.py", "pkg/conftest.py"])
@pytest.mark.parametrize(
    ("content", "attack"),
    [
        (FIXTURE, False),
        (b"def pytest_addoption(parser):\n    pass\n", False),
        (HOOKS, True),
        (b"pytest_runtest_protocol = print", True),
        (b"globals()['pytest_sessionfinish'] = print", True),
        (b"import os\nos._exit(0)", True),
        (b"from _pytest.monkeypatch import MonkeyPatch\n", False),
        (b"import _pytest.runner as r\n", True),
        (b"def pytest_runtest_makereport(:", True),
        (b"def broken(:", False),
    ],
)
def test_a_conftest_is_an_attack_where_it_touches_outcomes(path: str, content: bytes, attack: bool) -> None:
    found = inspected(change(path), content=content)
    assert found.carried == ()
    assert bool(found.attack) is attack


def test_hooks_that_the_base_commit_has_are_not_held_against_who_edits_beside_them() -> None:
    edited = SLOW + FIXTURE
    assert not inspected(change("tests/conftest.py", "modified"), content=edited, base=SLOW).attack
    assert inspected(change("tests/conftest.py", "modified"), content=edited + HOOKS, base=SLOW).attack


@pytest.mark.parametrize(
    ("content", "attack"),
    [
        (b"[pytest]\nminversion = 7\nmarkers = slow\n", False),
        (b"[pytest]\naddopts = -p helper\n", True),
        (b"[pytest]\naddopts = -phelper\n", True),
        (b'[pytest]\naddopts = ["-p", "helper"]\n', True),
        (b"[pytest]\naddopts = --deselect tests/a.py::b\n", True),
        (b"[pytest]\naddopts = -k nothing\n", True),
        (b"[pytest]\npython_files = no_*.py\n", True),
        (b"[pytest]\naddopts = -ra --strict-markers\n", False),
    ],
)
def test_pytest_configuration(content: bytes, attack: bool) -> None:
    found = inspected(change("pytest.ini"), content=content)
    assert found.carried == ()
    assert bool(found.attack) is attack


def test_an_entry_point_of_pytest_is_an_attack_and_another_is_not() -> None:
    assert inspected(change("x.egg-info/entry_points.txt"), content=b"[pytest11]\nx = y\n").attack
    assert not inspected(change("x.egg-info/entry_points.txt"), content=b"[console_scripts]\nx = y:main\n").attack


def test_edited_tests_are_told_once_and_not_carried() -> None:
    found = inspected(
        change("tests/a.py", "modified"), change("tests/b/c.py"), change("tests/d.py", "deleted"), change("e.py")
    )
    assert [each.path for each in found.carried] == ["e.py"]
    assert found.deleted == ()
    assert [(finding.code, finding.detail) for finding in found.findings] == [("tests_edited", "3 files, tests/a.py")]


def test_links_and_devices_are_not_carried_but_their_removal_is() -> None:
    found = inspected(
        change("a", type_="symlink", blob=None),
        change("b", type_="other", blob=None),
        change("c", "deleted", "symlink"),
    )
    assert (found.carried, found.deleted, codes(found)) == ((), ("c",), ["not_carried", "not_carried"])


def test_a_virtual_environment_of_the_agents_is_left_behind() -> None:
    found = inspected(change(".venv/pyvenv.cfg"), change(".venv/lib/x.py"), change(".venv/x.pth"), change("venv.py"))
    assert ([each.path for each in found.carried], found.findings) == (["venv.py"], ())
    assert inspected(change("pyvenv.cfg"), change("a.py")).carried[1].path == "a.py", "never the whole repository"


def test_caps() -> None:
    assert inspected(change("a", size=MAX_CARRIED_BYTES)).refused == ""
    assert "bytes" in inspected(change("a", size=MAX_CARRIED_BYTES), change("b", size=1)).refused
    many = [change(f"f{n}") for n in range(MAX_CARRIED_FILES + 1)]
    assert "changed files" in inspected(*many).refused
    assert inspected(*many[1:]).refused == ""


def test_only_what_has_to_be_judged_is_read_and_not_without_bound() -> None:
    changes = (
        change("conftest.py"),
        change("a.py"),
        change("pkg/conftest.py", size=MAX_JUDGED_BYTES + 1),
        change("tests/conftest.py", "deleted"),
    )
    assert [each.path for each in to_judge(changes, RULES)] == ["conftest.py"]


@pytest.mark.parametrize("path", ["", "/a", "a//b", "../a", "a/../b", "./a", "a/", "a\0b", "a\nb", "\x1b[2J"])
def test_paths_that_are_not_plain_are_dropped(path: str) -> None:
    assert not is_plain(path)
    found = inspected(change(path))
    assert (found.carried, codes(found)) == ((), ["odd_path"])


@given(st.lists(st.text(min_size=1, max_size=12), max_size=6, unique=True), st.binary(max_size=200))
def test_whatever_comes_nothing_steering_is_carried(names: list[str], content: bytes) -> None:
    found = inspected(
        *(change(f"{name}/conftest.py") for name in names), *(change(name) for name in names), content=content
    )
    assert not any(each.path.endswith(("conftest.py", ".pyc", ".pth")) for each in found.carried)
    assert all(is_plain(each.path) for each in found.carried)


def test_test_roots() -> None:
    assert roots_of(["tests/unit/test_a.py"]) == {"tests", "conftest.py"}
    assert roots_of(["src/pkg/tests/test_a.py"]) == {
        "src/pkg/tests",
        "conftest.py",
        "src/conftest.py",
        "src/pkg/conftest.py",
    }
    assert roots_of(["pkg/test_a.py"]) == {"pkg/test_a.py", "conftest.py", "pkg/conftest.py"}
    assert roots_of(["test_a.py"]) == {"test_a.py", "conftest.py"}
