"""Where a test says what it expects: the literals (and exception classes) whose change must make it fail.

A site is `sound` when the test cannot pass with another value there, if it passes with this one: an equality that is surely reached, and
nothing else that reads the value. The others are only likely, and need a run on the gold answer before they may count.
"""

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from orchestrator.graders.tests.literals import value_of

Function = ast.FunctionDef | ast.AsyncFunctionDef

EQUALITIES = frozenset(
    f"assert{kind}" for kind in ("Equal", "Equals", "Is", "CountEqual", "AlmostEqual", "MultiLineEqual")
) | frozenset(f"assert{kind}Equal" for kind in ("List", "Tuple", "Dict", "Set", "Sequence"))
EQUALITIES |= {"assert_equal", "assert_array_equal", "eq_"}
ORDER_FREE = frozenset({"assertCountEqual", "set", "frozenset", "sorted", "Counter"})
WRAPPERS = frozenset({"list", "tuple", "set", "frozenset", "sorted", "Counter", "deque", "iter"})
RAISES = frozenset({"raises", "assertRaises", "assertRaisesRegex"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """`function` is the test's name within its file ("Class::test_a"). `far`: compared with a tolerance, so near numbers are no change."""

    node: ast.expr
    function: str
    sound: bool
    exception: bool = False
    order_counts: bool = True
    far: bool = False


@dataclass(frozen=True, slots=True)
class _Claim:
    """An expression that a test compares with what it got."""

    node: ast.expr
    sound: bool
    exception: bool = False
    order_counts: bool = True
    far: bool = False


def find_sites(tree: ast.Module, functions: frozenset[str]) -> list[Site]:
    """Sites of those functions, in the order of the file."""
    return [
        site for name, function in _functions(tree.body, "") if name in functions for site in _sites_of(name, function)
    ]


def _functions(body: Sequence[ast.stmt], prefix: str) -> Iterator[tuple[str, Function]]:
    for statement in body:
        if isinstance(statement, Function):
            yield prefix + statement.name, statement
        elif isinstance(statement, ast.ClassDef):
            yield from _functions(statement.body, f"{prefix}{statement.name}::")


def _sites_of(name: str, function: Function) -> Iterator[Site]:
    ends_early = any(isinstance(node, ast.Return) for node in ast.walk(function))
    claims = list(_claims(function.body, not ends_early))
    bindings = _bindings(function)
    named = [claim for claim in claims if isinstance(claim.node, ast.Name) and not claim.exception]
    for claim in claims:
        if claim.exception or value_of(claim.node) is not None:
            yield _site(name, claim)
        elif isinstance(claim.node, ast.Name):
            yield from _named_sites(name, function, claim, named, bindings)
        elif isinstance(claim.node, ast.List | ast.Tuple | ast.Set | ast.Dict):
            inner = (node for node in ast.walk(claim.node) if isinstance(node, ast.Constant))
            yield from (_site(name, _Claim(node, sound=False)) for node in inner if value_of(node) is not None)


def _site(name: str, claim: _Claim) -> Site:
    return Site(
        node=claim.node,
        function=name,
        sound=claim.sound,
        exception=claim.exception,
        order_counts=claim.order_counts,
        far=claim.far,
    )


# What a test compares


def _claims(body: Sequence[ast.stmt], sound: bool) -> Iterator[_Claim]:
    for statement in body:
        match statement:
            case ast.Assert(test=test):
                yield from _compared(test, sound)
            case ast.Expr(value=ast.Call() as call):
                yield from _called(call, sound)
            case ast.With() | ast.AsyncWith():
                yield from _in_context(statement, sound)
            case ast.For(iter=ast.List(elts=[_, *_]) | ast.Tuple(elts=[_, *_])):
                yield from _claims(statement.body, sound and not _leaves_loop(statement))
            case ast.For() | ast.AsyncFor() | ast.While() | ast.If():
                yield from _claims([*statement.body, *statement.orelse], False)
            case ast.Try():
                yield from _claims([*statement.body, *statement.orelse, *statement.finalbody], False)


def _leaves_loop(loop: ast.For) -> bool:
    return any(isinstance(node, ast.Break | ast.Continue) for node in ast.walk(loop))


def _compared(test: ast.expr, sound: bool) -> Iterator[_Claim]:
    match test:
        case ast.BoolOp(op=ast.And(), values=values):
            for value in values:
                yield from _compared(value, sound)
        case ast.Compare(left=left, ops=[ast.Eq()], comparators=[right]):
            yield from _sides(left, right, _Claim(left, sound))
        case ast.Compare(ops=[ast.Is()], comparators=[ast.Constant(value=bool()) as right]):
            yield _Claim(right, sound)


def _sides(left: ast.expr, right: ast.expr, like: _Claim) -> Iterator[_Claim]:
    """The sides that state a value: a literal, or a name that may stand for one."""
    for side in (right, left):
        claim = _unwrapped(replace(like, node=side))
        if isinstance(claim.node, ast.Name) or value_of(claim.node) is not None or _is_display(claim.node):
            yield claim


def _is_display(node: ast.expr) -> bool:
    return isinstance(node, ast.List | ast.Tuple | ast.Set | ast.Dict)


def _unwrapped(claim: _Claim) -> _Claim:
    """`approx(0.3)` and `set([1, 2])` state what they hold."""
    match claim.node:
        case ast.Call(args=[inner], keywords=[]) if value_of(inner) is not None:
            name = _last_name(claim.node.func)
            if name == "approx":
                return replace(claim, node=inner, far=True)
            if name in WRAPPERS and not isinstance(value_of(inner), str | bytes):
                return replace(claim, node=inner, order_counts=claim.order_counts and name not in ORDER_FREE)
    return claim


def _last_name(node: ast.expr) -> str:
    match node:
        case ast.Attribute(attr=name) | ast.Name(id=name):
            return name
    return ""


def _called(call: ast.Call, sound: bool) -> Iterator[_Claim]:
    name = _last_name(call.func)
    if name in EQUALITIES and len(call.args) >= 2 and all(keyword.arg == "msg" for keyword in call.keywords):
        if name == "assertAlmostEqual" and len(call.args) > 2:
            return  # a tolerance of its own
        like = _Claim(call.args[0], sound, order_counts=name not in ORDER_FREE, far=name == "assertAlmostEqual")
        yield from _sides(call.args[0], call.args[1], like)
    elif name in RAISES and len(call.args) >= 2:
        yield _Claim(call.args[0], sound, exception=True)


def _in_context(statement: ast.With | ast.AsyncWith, sound: bool) -> Iterator[_Claim]:
    calls = [item.context_expr for item in statement.items if isinstance(item.context_expr, ast.Call)]
    raising = [call for call in calls if _last_name(call.func) in RAISES]
    for call in raising:
        if call.args:
            yield _Claim(call.args[0], sound, exception=True)
    if not raising:
        quiet = any(_last_name(call.func) == "suppress" for call in calls)
        yield from _claims(statement.body, sound and not quiet)


# What a name stands for


def _bindings(function: Function) -> dict[str, list[ast.expr]]:
    """Literals that a name is bound to: by one assignment, by the rows of a loop, by the rows of `parametrize`."""
    found: dict[str, list[ast.expr]] = {}
    for names, rows in (*_assigned(function), *_parametrized(function)):
        for row in rows:
            for name, node in zip(names, _columns(row, len(names)), strict=False):
                found.setdefault(name, []).append(node)
    return found


def _assigned(function: Function) -> Iterator[tuple[list[str], list[ast.expr]]]:
    for node in ast.walk(function):
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                yield [name], [value]
            case ast.For(target=ast.Name(id=name), iter=ast.List(elts=rows) | ast.Tuple(elts=rows)):
                yield [name], rows
            case ast.For(target=ast.Tuple(elts=targets), iter=ast.List(elts=rows) | ast.Tuple(elts=rows)):
                names = [target.id if isinstance(target, ast.Name) else "" for target in targets]
                yield names, rows


def _parametrized(function: Function) -> Iterator[tuple[list[str], list[ast.expr]]]:
    for decorator in function.decorator_list:
        match decorator:
            case ast.Call(
                func=ast.Attribute(attr="parametrize"),
                args=[names, ast.List(elts=rows) | ast.Tuple(elts=rows), *_],
            ):
                yield _parameter_names(names), [_row(row) for row in rows]


def _parameter_names(node: ast.expr) -> list[str]:
    value = value_of(node)
    if isinstance(value, str):
        return [name.strip() for name in value.split(",") if name.strip()]
    return [name for name in value if isinstance(name, str)] if isinstance(value, list | tuple) else []


def _row(row: ast.expr) -> ast.expr:
    """The values of `pytest.param(...)`; with marks or an id it is left alone."""
    match row:
        case ast.Call(func=func, args=[single], keywords=[]) if _last_name(func) == "param":
            return single
        case ast.Call(func=func, args=arguments, keywords=[]) if _last_name(func) == "param":
            return ast.Tuple(elts=arguments, ctx=ast.Load())
    return row


def _columns(row: ast.expr, count: int) -> list[ast.expr]:
    if count == 1:
        return [row]
    if isinstance(row, ast.Tuple | ast.List) and len(row.elts) == count:
        return row.elts
    return []


def _named_sites(
    name: str, function: Function, claim: _Claim, named: Sequence[_Claim], bindings: dict[str, list[ast.expr]]
) -> Iterator[Site]:
    assert isinstance(claim.node, ast.Name)
    variable = claim.node.id
    same = [other.node for other in named if isinstance(other.node, ast.Name) and other.node.id == variable]
    if claim.node is not same[0]:
        return  # its literals were found at the first comparison
    uses = [node for node in ast.walk(function) if isinstance(node, ast.Name) and node.id == variable]
    read_elsewhere = any(isinstance(node.ctx, ast.Load) and node not in same for node in uses)
    stored = sum(isinstance(node.ctx, ast.Store) for node in uses)
    sound = claim.sound and not read_elsewhere and stored <= 1
    for node in bindings.get(variable, []):
        if value_of(node) is not None:
            yield _site(name, replace(claim, node=node, sound=sound))
