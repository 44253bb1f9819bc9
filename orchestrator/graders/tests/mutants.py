"""Must-fail siblings of a test file: the same text but for what one or two tests expect.

The real file and its siblings all are what `ast.unparse` prints, so that nothing tells them apart but the changed literal.
"""

import ast
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, islice, zip_longest

from orchestrator.graders.tests.literals import alternatives, other_exceptions, value_of
from orchestrator.graders.tests.sites import Site, find_sites

FAR = 0.05
"""Relative difference that no usual tolerance covers (pytest.approx: 1e-6, assertAlmostEqual: 7 places)."""

SITES_TRIED = 60
"""Enough for any pool; a test file may hold thousands of literals."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """`functions`: the tests (by name within the file) of which at least one must fail; empty: any of the file."""

    text: str
    functions: frozenset[str]
    how: str
    sound: bool = True


@dataclass(frozen=True, slots=True)
class _Edit:
    sites: tuple[Site, ...]
    texts: tuple[str, ...]


def normalised(text: str) -> str:
    """The file as `ast.unparse` prints it. Raises SyntaxError (ValueError for NUL bytes) where this Python cannot read it."""
    return ast.unparse(ast.parse(text)) + "\n"


@lru_cache(maxsize=64)
def mutants(text: str, functions: frozenset[str], seed: str, limit: int, sound_only: bool = True) -> tuple[Mutant, ...]:
    """Up to `limit` siblings of the normalised `text` that alter what `functions` expect; the same ones for the same arguments.

    Most plausible first: two tests' values exchanged and near values, in turn; then exception classes.
    Raises SyntaxError, as `normalised`.
    """
    chance = random.Random(seed)  # noqa: S311 - which of them a grade uses is drawn elsewhere, and secretly
    lines = text.encode().splitlines(keepends=True)
    sites = [site for site in find_sites(ast.parse(text), functions) if _as_printed(site, lines)]
    found: list[Mutant] = []
    for sound in (True, False):
        if sound_only and not sound:
            break
        these = [site for site in sites if site.sound == sound]
        chance.shuffle(these)
        edits = islice(_edits(these[:SITES_TRIED]), limit - len(found))
        found += [_mutant(edit, lines, sound) for edit in edits]
    return tuple(found)


def _as_printed(site: Site, lines: Sequence[bytes]) -> bool:
    node = site.node
    if node.lineno != node.end_lineno or node.end_col_offset is None:
        return False
    return lines[node.lineno - 1][node.col_offset : node.end_col_offset].decode() == ast.unparse(node)


def _edits(sites: Sequence[Site]) -> Iterator[_Edit]:
    values = [site for site in sites if not site.exception]
    for pair in zip_longest(_exchanges(values), _near(values)):
        yield from (edit for edit in pair if edit is not None)
    for site in sites:
        if site.exception:
            for name in other_exceptions(ast.unparse(site.node)):
                yield _Edit((site,), (name,))


def _near(sites: Sequence[Site]) -> Iterator[_Edit]:
    """Each site's best alternative, then each one's second, and so on."""
    options = [
        [_Edit((site,), (ast.unparse(node),)) for node in alternatives(site.node, order_counts=site.order_counts)
         if not site.far or _is_far(site.node, node)]
        for site in sites
    ]  # fmt: skip
    for rank in zip_longest(*options):
        yield from (edit for edit in rank if edit is not None)


def _is_far(node: ast.expr, other: ast.expr) -> bool:
    old, new = value_of(node), value_of(other)
    if not isinstance(old, int | float) or not isinstance(new, int | float):
        return False
    return abs(new - old) > FAR * abs(old) and abs(new - old) >= FAR


def _exchanges(sites: Sequence[Site]) -> Iterator[_Edit]:
    """Two tests' values of one type, each in the other's place: the file holds the same literals as before."""
    for left, right in combinations(sites, 2):
        if left.function == right.function or left.far or right.far:
            continue
        if left.order_counts and right.order_counts and _exchangeable(value_of(left.node), value_of(right.node)):
            yield _Edit((left, right), (ast.unparse(right.node), ast.unparse(left.node)))


def _exchangeable(left: object, right: object) -> bool:
    return type(left) is type(right) and left != right


def _mutant(edit: _Edit, lines: Sequence[bytes], sound: bool) -> Mutant:
    changed = list(lines)
    for site, text in sorted(zip(edit.sites, edit.texts, strict=True), key=lambda pair: _position(pair[0])):
        node = site.node
        line = changed[node.lineno - 1]
        changed[node.lineno - 1] = line[: node.col_offset] + text.encode() + line[node.end_col_offset :]
    how = ", ".join(
        f"{site.function}: {ast.unparse(site.node)} -> {text}"
        for site, text in zip(edit.sites, edit.texts, strict=True)
    )
    functions = frozenset(site.function for site in edit.sites)
    return Mutant(text=b"".join(changed).decode(), functions=functions, how=how, sound=sound)


def _position(site: Site) -> tuple[int, int]:
    """From the end of the file, so that an edit does not move the next one's place."""
    return -site.node.lineno, -site.node.col_offset


def changed_functions(real: str, other: str) -> frozenset[str]:
    """Names of the tests that differ between two versions of a file; empty where something outside any test differs, too."""
    before, after = _parts(ast.parse(real)), _parts(ast.parse(other))
    names = frozenset(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    return frozenset() if "" in names else names


def _parts(tree: ast.Module) -> dict[str, str]:
    """Each function by its name within the file, and under "" all the rest."""
    parts = {"": ""}

    def visit(body: Sequence[ast.stmt], prefix: str) -> None:
        for statement in body:
            if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
                parts[prefix + statement.name] = ast.dump(statement)
            elif isinstance(statement, ast.ClassDef):
                heads = [*statement.bases, *statement.keywords, *statement.decorator_list]
                parts[""] += f"{prefix}{statement.name}{[ast.dump(head) for head in heads]}"
                visit(statement.body, f"{prefix}{statement.name}::")
            else:
                parts[""] += ast.dump(statement)

    visit(tree.body, "")
    return parts
