"""The grader over real boxes: honest work of every shape, and honest failures."""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest

from orchestrator.errors import GraderError, SandboxDead
from orchestrator.graders.tests import TestsGrader as Grader
from orchestrator.graders.tests.grader import run_plan
from orchestrator.graders.tests.plan import draw, suite
from orchestrator.models import FileChange, Grade, HiddenFile, Task
from orchestrator.operations import Exec, ExecResult, Failure, FailureCode, Operation, OperationResult, Put
from tests.graders.tests_grader.forgeries import Files
from tests.graders.tests_grader.library import BASE, FIXED_CORE, GOLD, HIDDEN_CORE, SPEC, TASK, bench
from tests.graders.tests_grader.local_box import PYTHON, LocalBench, LocalBox
from tests.needs import needs

pytestmark = [pytest.mark.anyio, needs("root")]


def task(**changes: object) -> Task:
    return replace(TASK, tests=replace(SPEC, **changes))  # type: ignore[arg-type]


async def graded(files: Files, of: Task = TASK, base: dict[str, str] | None = None) -> Grade:
    return await Grader().grade(bench(files, of, base or dict(BASE)))


async def test_the_gold_answer_passes() -> None:
    grade = await graded(GOLD)
    assert (grade.score, grade.passed, grade.violation) == (1.0, True, False), grade
    assert grade.sub_scores == {"fail_to_pass": 1.0, "pass_to_pass": 1.0}
    assert grade.reason == "all 18 tests passed"


async def test_no_answer_fails() -> None:
    grade = await graded({})
    assert (grade.score, grade.passed, grade.violation) == (0.0, False, False)
    assert grade.sub_scores == {"fail_to_pass": 0.0, "pass_to_pass": 1.0}
    assert "failed" in grade.reason


async def test_half_an_answer_fails_and_shows_how_far_it_came() -> None:
    grade = await graded({"tally/core.py": FIXED_CORE})
    assert (grade.score, grade.violation) == (0.0, False)
    assert grade.sub_scores == {"fail_to_pass": 4 / 11, "pass_to_pass": 1.0}


async def test_more_siblings_cost_nothing_but_time() -> None:
    assert (await graded(GOLD, task(mutants=3))).score == 1.0


async def test_deleted_replaced_and_added_files_arrive() -> None:
    """A module becomes a package, a directory that was in the way goes, an executable stays one."""
    base = {**BASE, "tally/spare/__init__.py": "", "tally/spare/old.py": "OLD = 1\n"}
    probe = (
        "import os, tally.spare\n\nassert tally.spare.__file__.endswith('spare.py')\n"
        "assert os.access(os.path.join(os.path.dirname(__file__), '..', '..', 'bin', 'run'), os.X_OK)\n"
    )
    files: Files = {
        "tally/core.py": None,
        "tally/core/__init__.py": FIXED_CORE + "\n\n" + probe,
        "tally/words.py": GOLD["tally/words.py"],
        "tally/spare/__init__.py": None,
        "tally/spare/old.py": None,
        "tally/spare.py": "NEW = 1\n",
        "bin/run": "#!/bin/sh\n",
    }
    ready = bench(files, TASK, base)
    modes = tuple(replace(each, mode=0o755) if each.path == "bin/run" else each for each in ready.evidence.changes)
    kinds = tuple(replace(each, kind="deleted") if each.path in base and each.blob is None else each for each in modes)
    ready.evidence = replace(ready.evidence, changes=kinds)
    grade = await Grader().grade(ready)
    assert grade.passed, grade


async def test_a_source_layout_with_import_roots() -> None:
    moved = {path.replace("tally/", "src/tally/"): text for path, text in BASE.items()}
    gold = {f"src/{path}": text for path, text in GOLD.items()}
    assert (await graded(gold, task(import_roots=("src",)), moved)).passed
    assert not (await graded(gold, TASK, moved)).passed


async def test_tests_find_the_repository_as_their_directory_and_a_place_to_write() -> None:
    check = (
        "\n\ndef test_places(tmp_path):\n    import os, tempfile\n\n    (tmp_path / 'x').write_text('y')\n"
        "    assert os.path.exists('README.md')\n    assert os.path.isdir(os.path.expanduser('~'))\n"
        "    open(os.path.join(tempfile.gettempdir(), 'z'), 'w').close()\n"
        "    open(os.path.expanduser('~/z'), 'w').close()\n    assert len(os.listdir('tally')) == 3\n"
    )
    hidden = (HiddenFile(path="tests/test_core.py", text=HIDDEN_CORE + check), SPEC.hidden[1])
    of = task(hidden=hidden, pass_to_pass=(*SPEC.pass_to_pass, "tests/test_core.py::test_places"))
    assert (await graded(GOLD, of)).passed


async def test_the_rebuild_command_runs_on_the_agents_code() -> None:
    build = "python3 - <<'E'\nimport pathlib\np = pathlib.Path('tally/core.py')\np.write_text(p.read_text().replace('@HALF@', '2'))\nE"
    half = {**GOLD, "tally/core.py": FIXED_CORE.replace("len(ordered) // 2", "len(ordered) // @HALF@")}
    assert (await graded(half, task(rebuild=build))).passed
    assert not (await graded(half)).passed


async def test_a_rebuild_that_fails_is_an_honest_failure() -> None:
    grade = await graded(GOLD, task(rebuild="exit 3"))
    assert (grade.score, grade.violation, grade.reason) == (0.0, False, "the rebuild command failed: it exited with 3")
    slow = await graded(GOLD, task(rebuild="sleep 60", timeout_s=0.5))
    assert (slow.score, slow.reason) == (0.0, "the rebuild command failed: it ran out of time")


async def test_what_the_rebuild_leaves_is_gone_before_the_tests() -> None:
    """A daemon as the agent's uid, and a place where children could leave word for each other."""
    build = "(setsid sleep 100 &) ; mkdir -p mail /tmp/mail && chmod 777 mail /tmp/mail"
    spy = (
        "import os\n_pids = [int(p) for p in os.listdir('/proc') if p.isdigit()]\n"
        "_sleeping = [p for p in _pids if b'sleep' in open(f'/proc/{p}/cmdline', 'rb').read()]\n"
        "_box = os.access('mail', os.W_OK) or os.path.exists('/tmp/mail')\n"
        "assert not _sleeping and not _box and os.path.isdir('mail'), (_sleeping, _box)\n"
    )
    grade = await graded({**GOLD, "tally/core.py": spy + FIXED_CORE}, task(rebuild=build))
    assert grade.passed, grade


async def test_tests_that_hang_are_run_once_more_and_then_fail() -> None:
    hang = "import time\ntime.sleep(60)\n"
    grade = await graded({**GOLD, "tally/core.py": hang + FIXED_CORE}, task(timeout_s=3.0))
    assert (grade.score, grade.violation) == (0.0, False)
    assert "tests/test_core.py: ran out of time" in grade.reason


async def test_tests_that_are_late_once_pass() -> None:
    """As on a busy machine: here the first child sleeps, whose uid is the first of the block after the agent's."""
    late = "import os, time\nif os.getuid() % 64 == 1:\n    time.sleep(60)\n"
    mended = {path: late + str(text) for path, text in GOLD.items()}
    grade = await graded(mended, task(timeout_s=4.0))
    assert grade.passed, grade


SEARCH = """
import ctypes, re

def _in_memory(pattern):
    for line in open("/proc/self/maps"):
        span, mode, *_, name = line.split()
        if mode.startswith("rw") and not name.startswith("[v"):
            start, end = (int(edge, 16) for edge in span.split("-"))
            if re.search(pattern, ctypes.string_at(start, end - start)):
                return True
    return False

assert _in_memory(rb'PYTEST_DISABLE_[P]LUGIN'), "what the process was told is found"
assert not _in_memory(rb"zoo bee [a]nt zoo"), "the other file is not: the process it was forked from never read the plan"
"""


async def test_the_plan_is_nowhere_in_a_childs_memory() -> None:
    grade = await graded({**GOLD, "tally/core.py": SEARCH + FIXED_CORE})
    assert grade.passed, grade


LOOK = """
import os, sys

_tests = os.path.dirname(sys.modules["tests.conftest"].__file__)
assert len([name for name in os.listdir(_tests) if name.startswith("test_")]) == 1, os.listdir(_tests)
"""


async def test_a_child_finds_no_other_hidden_test_file() -> None:
    grade = await graded({path: LOOK + str(text) for path, text in GOLD.items()})
    assert grade.passed, grade


HOLD = """
import os, stat

_open = [fd for fd in range(200) if os.path.exists(f"/proc/self/fd/{fd}")]
assert stat.S_ISFIFO(os.fstat(3).st_mode) and not os.get_inheritable(3), "its own pipe"
assert not any(stat.S_ISSOCK(os.fstat(fd).st_mode) for fd in _open), "not the runner's socket"
"""


async def test_a_child_holds_nothing_of_the_runners() -> None:
    grade = await graded({path: HOLD + str(text) for path, text in GOLD.items()})
    assert grade.passed, grade


async def test_too_many_changes_are_an_honest_failure() -> None:
    ready = bench(GOLD)
    ready.evidence = replace(ready.evidence, truncated=True)
    grade = await Grader().grade(ready)
    assert (grade.score, grade.violation, ready.boxes) == (0.0, False, 0)


@pytest.mark.parametrize(
    "changes",
    [
        (FileChange(path="a", kind="added", type="file", size_bytes=1, blob="x"),) * 2,
        (
            FileChange(path="a", kind="added", type="file", size_bytes=1, blob="x"),
            FileChange(path="a/b", kind="added", type="file", size_bytes=1, blob="x"),
        ),
        (FileChange(path="a", kind="added", type="file", size_bytes=1, blob=None),),
        (FileChange(path="a", kind="added", type="file", size_bytes=2, blob="x"),),
    ],
)
async def test_a_delta_that_contradicts_itself_is_our_failure(changes: tuple[FileChange, ...]) -> None:
    ready = bench({})
    ready.blobs = {"x": b"1"}
    ready.evidence = replace(ready.evidence, changes=changes)
    with pytest.raises(GraderError):
        await Grader().grade(ready)


async def test_an_image_without_the_interpreter_is_our_failure() -> None:
    with pytest.raises(GraderError, match="could not be prepared"):
        await graded(GOLD, task(command=("/no/such/python", "-m", "pytest")))


async def test_another_runner_passes_by_its_exit_codes() -> None:
    unit = (
        "import unittest\n\nfrom tally.core import median\n\n\nclass TestIt(unittest.TestCase):\n"
        "    def test_a(self):\n        self.assertEqual(median([4, 2]), 3)\n"
    )
    of = task(
        hidden=(HiddenFile(path="tests/test_unit.py", text=unit),),
        fail_to_pass=("tests/test_unit.py::TestIt::test_a",),
        pass_to_pass=(),
        command=(PYTHON, "-m", "unittest", "-q", "tests.test_unit"),
        mutants=2,
    )
    grade = await graded(GOLD, of)
    assert (grade.score, grade.sub_scores["fail_to_pass"]) == (1.0, 1.0), grade
    assert (await graded({}, of)).score == 0.0
    forged = await graded({"tally/core.py": "import os\nos._exit(0)\n"}, of)
    assert (forged.score, forged.violation) == (0.0, True)


class FaultyBox:
    """A real box that is told how to fail when the tests are to run."""

    def __init__(self, box: LocalBox, faults: list[str]) -> None:
        self._box = box
        self._faults = faults

    async def run(self, op: Operation) -> OperationResult:
        if isinstance(op, Put) and op.principal == 0 and self._faults == ["full"]:
            return Failure(code=FailureCode.NO_SPACE, message="no space")
        if not (isinstance(op, Exec) and op.events and self._faults):
            return await self._box.run(op)
        match self._faults.pop(0):
            case "dead":
                raise SandboxDead("out of memory")
            case "cut":
                return ExecResult(exit_code=None, signal="SIGKILL", events=b'{"begun": 4}\n')
            case "mute":
                return ExecResult(exit_code=1)
            case _:
                return ExecResult(exit_code=0, events=b"noise\n")


@dataclass(slots=True)
class FaultyBench(LocalBench):
    faults: list[str] = field(default_factory=list)

    @asynccontextmanager
    async def fresh_box(self) -> AsyncIterator[FaultyBox]:  # type: ignore[override]
        async with LocalBench.fresh_box(self) as box:
            yield FaultyBox(box, self.faults)


def faulty(*faults: str, files: Files = GOLD) -> FaultyBench:
    ready = bench(files)
    return FaultyBench(ready.task, ready.evidence, ready.files, ready.blobs, faults=list(faults))


@pytest.mark.parametrize("fault", ["dead", "cut"])
async def test_a_run_that_does_not_reach_its_end_is_tried_once_more(fault: str) -> None:
    once = faulty(fault)
    assert (await Grader().grade(once)).passed
    assert once.boxes == 2


async def test_two_runs_that_do_not_reach_their_end_are_the_agents_failure() -> None:
    grade = await Grader().grade(faulty("cut", "cut"))
    assert (grade.score, grade.violation) == (0.0, False)
    assert [finding.code for finding in grade.findings] == ["run_incomplete"]
    with pytest.raises(SandboxDead):
        await Grader().grade(faulty("dead", "dead"))


@pytest.mark.parametrize("fault", ["mute", "noise"])
async def test_a_runner_that_does_not_speak_is_our_failure(fault: str) -> None:
    with pytest.raises(GraderError):
        await Grader().grade(faulty(fault))


async def test_changes_that_fill_the_disk_are_an_honest_failure() -> None:
    grade = await Grader().grade(faulty("full"))
    assert (grade.score, grade.violation) == (0.0, False)
    assert "no_space" in grade.reason


async def test_the_same_plan_gives_the_same_grade() -> None:
    plan = draw(TASK, suite(TASK), random.Random(7))
    assert await run_plan(bench(GOLD), plan) == await run_plan(bench(GOLD), plan)
