"""Plausible other values for a literal: near numbers, tokens reordered, elements swapped; never random characters.

Everything works on expressions as `ast.unparse` prints them, and every alternative is unequal to the original in Python's own sense.
"""

import ast
import copy
from collections.abc import Iterator

Value = object

RELATED_EXCEPTIONS = (
    "ValueError",
    "TypeError",
    "KeyError",
    "IndexError",
    "AttributeError",
    "RuntimeError",
)
"""Exceptions that tests commonly expect; a swap stays among them."""


def value_of(node: ast.expr) -> Value | None:
    """The value of a literal that can be altered; None for every other expression and for empty ones."""
    try:
        value: Value = ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None
    return value if value or isinstance(value, bool | int | float) else None


def alternatives(node: ast.expr, *, order_counts: bool = True) -> list[ast.expr]:
    """Other expressions of the same kind, most plausible first; none equals `node`. `order_counts=False`: a reordered list is no change."""
    original = value_of(node)
    if original is None:
        return []
    found: list[ast.expr] = []
    seen = [_comparable(original, order_counts)]
    for other in _candidates(node):
        value = _comparable(value_of(other), order_counts)
        if value is None or any(value == earlier for earlier in seen):
            continue
        seen.append(value)
        found.append(other)
    return found


def _comparable(value: Value | None, order_counts: bool) -> Value | None:
    if not order_counts and isinstance(value, list | tuple):
        return sorted(map(repr, value))
    return value


def other_exceptions(name: str) -> list[str]:
    """Builtin exceptions that an `except name` and its like cannot be mistaken for; none for a class we do not know."""
    known = __builtins_of()
    mine = known.get(name)
    if mine is None:
        return []
    return [
        other
        for other in RELATED_EXCEPTIONS
        if not issubclass(known[other], mine) and not issubclass(mine, known[other])
    ]


def __builtins_of() -> dict[str, type[BaseException]]:
    import builtins

    return {
        name: kind
        for name, kind in vars(builtins).items()
        if isinstance(kind, type) and issubclass(kind, BaseException)
    }


def _candidates(node: ast.expr) -> Iterator[ast.expr]:
    match node:
        case ast.List() | ast.Tuple() | ast.Set():
            yield from _sequence(node)
        case ast.Dict():
            yield from _dictionary(node)
        case _:
            for value in _scalars(value_of(node)):
                yield ast.parse(repr(value), mode="eval").body


def _scalars(value: Value | None) -> Iterator[Value]:
    match value:
        case bool():
            yield not value
        case int():
            yield from _integers(value)
        case float():
            yield from (value + 1, value * 2, value + 0.5, value - 1)
        case str():
            yield from _texts(value)
        case bytes():
            yield from (text.encode("latin-1") for text in _texts(value.decode("latin-1")))


def _integers(value: int) -> Iterator[int]:
    yield value + 1
    if value != 1:  # a small count does not become zero or negative
        yield value - 1
    yield value + 2
    digits = str(abs(value))
    if len(digits) > 1 and digits[-2] != "0":
        yield int(digits[:-2] + digits[-1] + digits[-2]) * (1 if value >= 0 else -1)
    if abs(value) > 10:
        yield value + 10


def _texts(text: str) -> Iterator[str]:
    if text.isdecimal() and text.isascii():
        yield from (str(number).zfill(len(text)) for number in _integers(int(text)) if number >= 0)
        return
    for separator in ("\n", ", ", " ", ",", "/", "-", "_", "."):
        parts = text.split(separator)
        if len(parts) > 1:
            yield from (separator.join(other) for other in _swapped(parts))
    yield from ("".join(other) for other in _swapped(list(text)))
    if len(text) == 1 and text.isascii() and text.isalnum():
        yield chr(ord(text) + 1) if text not in "zZ9" else chr(ord(text) - 1)
    if len(text) > 1:
        yield text[:-1]
    if text[-1].isalnum():
        yield text + text[-1]


def _swapped(parts: list[str]) -> Iterator[list[str]]:
    """`parts` with two neighbours exchanged, where both say something; at most three ways."""
    ways = 0
    for index in range(len(parts) - 1):
        left, right = parts[index], parts[index + 1]
        if left != right and left.strip() and right.strip() and ways < 3:
            ways += 1
            yield [*parts[:index], right, left, *parts[index + 2 :]]


def _sequence(node: ast.List | ast.Tuple | ast.Set) -> Iterator[ast.expr]:
    """Words in another order are as likely as in the first; a number is, next to itself."""
    reordered = list(_reordered(node))
    words = all(isinstance(value_of(element), str | bytes) for element in node.elts)
    if words:
        yield from reordered
    for index in _spread(len(node.elts)):
        for other in _candidates(node.elts[index]):
            yield _with_elements(node, [*node.elts[:index], other, *node.elts[index + 1 :]])
    if not words:
        yield from reordered
    if len(node.elts) > 2:
        yield _with_elements(node, node.elts[:-1])


def _reordered(node: ast.List | ast.Tuple | ast.Set) -> Iterator[ast.expr]:
    elements = node.elts
    for index in range(min(len(elements) - 1, 3)):
        yield _with_elements(node, [*elements[:index], elements[index + 1], elements[index], *elements[index + 2 :]])


def _with_elements(node: ast.List | ast.Tuple | ast.Set, elements: list[ast.expr]) -> ast.expr:
    other = copy.copy(node)
    other.elts = elements
    return other


def _dictionary(node: ast.Dict) -> Iterator[ast.expr]:
    values = node.values
    for index in range(min(len(values) - 1, 3)):
        yield _with_values(node, [*values[:index], values[index + 1], values[index], *values[index + 2 :]])
    for index in _spread(len(values)):
        for other in _candidates(values[index]):
            yield _with_values(node, [*values[:index], other, *values[index + 1 :]])


def _with_values(node: ast.Dict, values: list[ast.expr]) -> ast.expr:
    return ast.Dict(keys=node.keys, values=values)


def _spread(count: int) -> list[int]:
    """A few positions of `count`: the middle, the end, the start."""
    return list(dict.fromkeys(index for index in (count // 2, count - 1, 0) if 0 <= index < count))
