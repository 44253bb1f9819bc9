"""Every forgery is tried for real, over real uids and processes; none is worth more than an honest failure, and its honest twin is not hurt."""

import random
from dataclasses import replace

import pytest

from orchestrator.graders.tests import TestsGrader as Grader
from orchestrator.graders.tests.box import _tar
from orchestrator.graders.tests.grader import run_plan
from orchestrator.graders.tests.plan import draw, suite
from orchestrator.operations import Exec, ExecResult, Put
from tests.graders.tests_grader.forgeries import IN_PROCESS, PLANTED, Files, Fools, Forgery
from tests.graders.tests_grader.library import BASE, FIXED_CORE, FIXED_WORDS, GOLD, SPEC, TASK, bench
from tests.graders.tests_grader.local_box import PYTHON, local_box
from tests.needs import needs

pytestmark = [pytest.mark.anyio, needs("root")]


def rows(*fools: Fools) -> list[object]:
    return [pytest.param(each, id=each.name) for each in (*IN_PROCESS, *PLANTED) if each.fools in fools]


@pytest.mark.parametrize("forgery", rows(*Fools))
async def test_a_forgery_earns_nothing(forgery: Forgery) -> None:
    grade = await Grader().grade(bench(forgery.files))
    assert grade.score == 0.0
    assert not grade.passed
    assert grade.violation == forgery.violation, grade


@pytest.mark.parametrize("forgery", rows(Fools.EXIT_CODE))
async def test_it_takes_in_whoever_believes_the_exit_code(forgery: Forgery) -> None:
    """Positive control: the fixture is a working forgery."""
    files = {path: content for path, content in forgery.files.items() if content is not None}
    files |= {file.path: file.text for file in SPEC.hidden}
    env = {"PYTHONPATH": "."} if forgery.name == "sitecustomize" else {}
    if "dist-info" not in forgery.name:
        env["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # our own environment's plugins are slow to load
    async with local_box(BASE) as box:
        await box.run(Put(path=".", tar=_tar({path: (0o644, _bytes(content)) for path, content in files.items()})))
        done = await box.run(Exec(argv=(PYTHON, "-m", "pytest", "-q", "tests"), timeout_s=60, env=env))
    assert isinstance(done, ExecResult)
    assert done.exit_code == 0, done.stdout.head.decode()


def _bytes(content: str | bytes) -> bytes:
    return content.encode() if isinstance(content, str) else content


@pytest.mark.parametrize("forgery", rows(Fools.EVENTS))
async def test_it_takes_in_a_grader_without_siblings(forgery: Forgery) -> None:
    """Positive control: separate processes, private events and exact ids alone would give it the full score."""
    plan = draw(TASK, suite(TASK), random.Random(1))
    unpaired = replace(plan, children=tuple(child for child in plan.children if child.must_fail is None))
    grade = await run_plan(bench(forgery.files), unpaired)
    assert grade.score == 1.0, grade


async def test_their_honest_twins_in_code_pass() -> None:
    """All at once: each only adds to the same two modules."""
    head = "\n".join(each.twin for each in IN_PROCESS if isinstance(each.twin, str)) + "\n\n"
    await assert_passes({"tally/core.py": head + FIXED_CORE, "tally/words.py": head + FIXED_WORDS})


async def test_their_honest_twins_beside_the_code_pass() -> None:
    """All at once: files of different names."""
    twins = [each.twin for each in PLANTED if not isinstance(each.twin, str)]
    files = {path: content for twin in twins for path, content in twin.items()}
    assert len(files) == sum(len(twin) for twin in twins)
    await assert_passes({**GOLD, **files})


async def assert_passes(files: Files) -> None:
    grade = await Grader().grade(bench(files))
    assert (grade.score, grade.passed, grade.violation) == (1.0, True, False), grade
