"""Which child runs which version of which hidden test file.

Per file that holds expected ids: the real one, and `mutants` must-fail siblings drawn from a pool that is the same for every grade of the task.
All children of all files in one random order; a child finds its own version of its file, hidden helpers, and of the other hidden test files
only those that its file imports: what is not there cannot be told to a later child.
"""

import ast
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import PurePosixPath

from orchestrator.errors import Misconfigured
from orchestrator.graders.tests.delta import test_roots
from orchestrator.graders.tests.mutants import Mutant, changed_functions, mutants, normalised
from orchestrator.models import Task, TestsSpec

POOL = 8
"""Siblings of a file to draw from, at least; k of them take part in a grade."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """One run of `target`, or of all files where that is empty (other runners than pytest).

    `must_fail` is None for the real file; else the tests (`path::Class::name`) of which one must fail; empty: any.
    """

    target: str
    files: Mapping[str, str]
    functions: tuple[str, ...] | None
    must_fail: frozenset[str] | None = None
    how: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """`expected`: ids by file. `always`: hidden files that are there for every child. `argv`: empty for pytest."""

    children: tuple[Child, ...]
    expected: Mapping[str, tuple[str, ...]]
    always: Mapping[str, str]
    trees: frozenset[str]
    hidden: frozenset[str]
    interpreter: str
    arguments: tuple[str, ...]
    argv: tuple[str, ...]
    roots: tuple[str, ...]
    timeout_s: float

    @property
    def budget_s(self) -> float:
        """For all children together, each at its share of the task's time-out."""
        files = max(1, len(self.expected))
        return self.timeout_s * max(1.0, len(self.children) / files)


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """A task's hidden tests, made ready: the same for every grade. `pools`: must-fail siblings by file."""

    spec: TestsSpec
    real: Mapping[str, str]
    pools: Mapping[str, tuple[Mutant, ...]]
    expected: Mapping[str, tuple[str, ...]]


def spec_of(task: Task) -> TestsSpec:
    if task.tests is None:
        raise Misconfigured(f"task {task.id}: the grader `tests` needs the field `tests`")
    return task.tests


def function_of(test_id: str) -> str:
    """`path::Class::name` without the parameters."""
    return test_id.split("[", 1)[0]


def expected_ids(spec: TestsSpec) -> dict[str, tuple[str, ...]]:
    """The ids by file, in order."""
    found: dict[str, list[str]] = {}
    for test_id in (*spec.fail_to_pass, *spec.pass_to_pass):
        found.setdefault(test_id.split("::", 1)[0], []).append(test_id)
    return {path: tuple(ids) for path, ids in found.items()}


@lru_cache(maxsize=64)
def suite(task: Task, *, sound_only: bool = True, pool: int = POOL) -> Suite:
    """Raises Misconfigured, in words that say what to mend, for a task that this grader cannot grade."""
    spec = spec_of(task)
    _check_ids(task, spec)
    command(spec.command)
    expected = expected_ids(spec)
    size = max(pool, 2 * spec.mutants)
    written = {path: _written(task, spec, path) for path in expected}
    real = {file.path: file.text for file in spec.hidden}
    pools = {}
    for path in expected:
        if written[path]:
            pools[path] = written[path]
        else:
            real[path] = _readable(task, path, real[path])
            pools[path] = _altered(task, path, real[path], size, sound_only)
        if len(pools[path]) < spec.mutants:
            raise Misconfigured(_too_few(task, path, len(pools[path]), spec.mutants))
    return Suite(spec=spec, real=real, pools=pools, expected=expected)


def _check_ids(task: Task, spec: TestsSpec) -> None:
    hidden = [file.path for file in spec.hidden]
    ids = [*spec.fail_to_pass, *spec.pass_to_pass]
    unknown = sorted({test_id.split("::", 1)[0] for test_id in ids} - set(hidden))
    if unknown:
        raise Misconfigured(
            f"task {task.id}: ids in {', '.join(unknown[:3])}, which `tests.hidden` does not hold; only hidden files are graded"
        )
    if not spec.fail_to_pass:
        raise Misconfigured(f"task {task.id}: `tests.fail_to_pass` is empty, so that an empty change would pass")
    if len(set(ids)) != len(ids) or len(set(hidden)) != len(hidden):
        raise Misconfigured(f"task {task.id}: an id or a hidden file is named twice")
    if spec.mutants < 1:
        raise Misconfigured(
            f"task {task.id}: `tests.mutants` must be at least 1; without a must-fail sibling a pass can be forged"
        )
    if spec.timeout_s <= 0:
        raise Misconfigured(f"task {task.id}: `tests.timeout_s` must be positive")
    if any(
        PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts for path in (*hidden, *spec.import_roots)
    ):
        raise Misconfigured(
            f"task {task.id}: hidden files and import roots are relative to the repository, without `..`"
        )


def _written(task: Task, spec: TestsSpec, path: str) -> tuple[Mutant, ...]:
    """The author's own must-fail versions of a file."""
    real = next(file.text for file in spec.hidden if file.path == path)
    texts = [file.text for file in spec.written_mutants if file.path == path]
    if real in texts:
        raise Misconfigured(f"task {task.id}: a written mutant of {path} is the file itself")
    tests = _functions_in(path, (*spec.fail_to_pass, *spec.pass_to_pass))
    return tuple(Mutant(text=text, functions=_changed(real, text, tests), how="written") for text in texts)


def _functions_in(path: str, ids: Iterable[str]) -> frozenset[str]:
    """Names within the file, of those ids that lie in it."""
    pairs = (function_of(test_id).split("::", 1) for test_id in ids)
    return frozenset(name for file, name in pairs if file == path)


def _changed(real: str, text: str, tests: frozenset[str]) -> frozenset[str]:
    """The tests that a written mutant alters; empty where it alters anything else, or cannot be read here."""
    try:
        changed = changed_functions(real, text)
    except (SyntaxError, ValueError):
        return frozenset()
    return changed if changed <= tests else frozenset()


def _readable(task: Task, path: str, text: str) -> str:
    try:
        return normalised(text)
    except (SyntaxError, ValueError) as error:
        raise Misconfigured(
            f"task {task.id}: {path} cannot be read as Python here ({error}); give must-fail versions of it in `tests.written_mutants`"
        ) from None


def _altered(task: Task, path: str, text: str, size: int, sound_only: bool) -> tuple[Mutant, ...]:
    """Of the tests that must begin to pass if they allow it (their text is new to the agent), else of all expected ones."""
    spec = spec_of(task)
    found: tuple[Mutant, ...] = ()
    for ids in (spec.fail_to_pass, (*spec.fail_to_pass, *spec.pass_to_pass)):
        found = mutants(text, _functions_in(path, ids), f"{task.id}\0{path}", size, sound_only)
        if len(found) >= spec.mutants:
            break
    return found


def _too_few(task: Task, path: str, count: int, wanted: int) -> str:
    return (
        f"task {task.id}: {path} gives {count} must-fail siblings and {wanted} are needed: no expected literal in it can be altered so that "
        "a test surely fails. Put must-fail versions of the file into `tests.written_mutants` (calibration proves and writes them), "
        "or lower `tests.mutants`"
    )


def draw(task: Task, ready: Suite, chance: random.Random) -> Plan:
    """One grade's plan; `chance` must be secret and fresh."""
    chosen = {path: chance.sample(pool, ready.spec.mutants) for path, pool in ready.pools.items()}
    return assemble(task, ready, chosen, chance)


def assemble(task: Task, ready: Suite, chosen: Mapping[str, Sequence[Mutant]], chance: random.Random) -> Plan:
    """A plan with those siblings."""
    spec = ready.spec
    interpreter, arguments, argv = command(spec.command)
    children = (
        _whole_runs(ready, chosen)
        if argv
        else [child for path in chosen for child in _runs_of(ready, path, chosen[path])]
    )
    chance.shuffle(children)
    hidden = frozenset(ready.real)
    return Plan(
        children=tuple(children),
        expected=ready.expected,
        always={path: text for path, text in ready.real.items() if path not in ready.expected},
        trees=test_roots(hidden),
        hidden=hidden,
        interpreter=interpreter,
        arguments=arguments,
        argv=argv,
        roots=spec.import_roots,
        timeout_s=spec.timeout_s,
    )


def command(words: Sequence[str]) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """(python, pytest's arguments, ()) for `pytest ...` and `PYTHON -m pytest ...`; ("python3", (), the words) for any other runner."""
    match tuple(words):
        case ("pytest", *arguments):
            return "python3", tuple(arguments), ()
        case (python, "-m", "pytest", *arguments):
            return python, tuple(arguments), ()
        case ():
            raise Misconfigured("`tests.command` is empty")
    return "python3", (), tuple(words)


def _runs_of(ready: Suite, path: str, siblings: Iterable[Mutant]) -> list[Child]:
    functions = tuple(dict.fromkeys(function_of(test_id) for test_id in ready.expected[path]))
    beside = {other: ready.real[other] for other in _imported(ready, path)}
    real = Child(target=path, files={**beside, path: ready.real[path]}, functions=functions)
    return [real, *(_sibling(path, {**beside, path: mutant.text}, functions, mutant) for mutant in siblings)]


def _sibling(path: str, files: Mapping[str, str], functions: tuple[str, ...] | None, mutant: Mutant) -> Child:
    must_fail = frozenset(f"{path}::{name}" for name in mutant.functions)
    return Child(target=path, files=files, functions=functions, must_fail=must_fail, how=mutant.how)


def _whole_runs(ready: Suite, chosen: Mapping[str, Sequence[Mutant]]) -> list[Child]:
    """For other runners: all files at once; in each further run one of them is a sibling."""
    files = {path: ready.real[path] for path in ready.expected}
    altered = [
        replace(_sibling(path, {**files, path: mutant.text}, None, mutant), target="")
        for path in chosen
        for mutant in chosen[path]
    ]
    return [Child(target="", files=files, functions=None), *altered]


def _imported(ready: Suite, path: str) -> frozenset[str]:
    """Hidden test files that `path` imports, directly or through one another."""
    found: set[str] = set()
    waiting = [path]
    while waiting:
        names = _imported_names(ready.real[waiting.pop()])
        more = {other for other in ready.expected if PurePosixPath(other).stem in names} - found - {path}
        found |= more
        waiting += more
    return frozenset(found)


def _imported_names(text: str) -> frozenset[str]:
    try:
        nodes = list(ast.walk(ast.parse(text)))
    except (SyntaxError, ValueError):
        return frozenset()
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {part for alias in node.names for part in alias.name.split(".")}
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.name for alias in node.names} | set((node.module or "").split("."))
    return frozenset(names)
