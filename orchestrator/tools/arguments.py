"""The model's arguments: JSON text -> values that fit the tool's schema, or words that the model can mend.

Lenient where a reading is harmless and certain: an empty text is `{}`; `null` for an optional field means it is absent; "30" or 30.0 is the
number 30 where a number is due, "true" and "false" are booleans where one is due. Everything else is refused: a guess would run something
that the model did not ask for.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from orchestrator.interfaces import Tool
from orchestrator.models import Arguments, JsonValue, Limits, ToolReply
from orchestrator.tools.texts import error

Schema = Mapping[str, Any]
_NUMBER = re.compile(r"-?\d{1,15}(\.\d{1,15})?\Z", re.ASCII)
_SURROGATE = re.compile("[\ud800-\udfff]")
_LIMITS = Limits()
"""Bounds of the texts below; parsing happens before a task's own limits matter."""


class _Unfit(Exception):
    """What to tell the model."""


def parse(tool: Tool, arguments_text: str) -> Arguments | ToolReply:
    """`arguments_text` as arguments of `tool`, or the reply that says what is wrong with it."""
    try:
        return _fitted(_loaded(arguments_text), tool.schema)
    except _Unfit as unfit:
        return error(f"{unfit}. {_usage(tool)}", _LIMITS)


def _loaded(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_no_constant) if text.strip() else {}
    except json.JSONDecodeError as wrong:
        raise _Unfit(
            f"the arguments are not valid JSON: {wrong.msg} at line {wrong.lineno}, column {wrong.colno}"
        ) from None
    except RecursionError:
        raise _Unfit("the arguments are nested too deeply") from None
    except ValueError:  # an integer with thousands of digits
        raise _Unfit("the arguments hold a number that is too long") from None


def _no_constant(name: str) -> None:
    raise _Unfit(f"the arguments hold {name}, which is not JSON")


def _fitted(value: Any, schema: Schema) -> Arguments:
    if not isinstance(value, dict):
        raise _Unfit(f"the arguments must be a JSON object, not {_kind(value)}")
    properties: Schema = schema["properties"]
    unknown = [name for name in value if name not in properties]
    if unknown:
        raise _Unfit(f"there is no argument {_quoted(unknown[0])}")
    given = {name: item for name, item in value.items() if item is not None}
    missing = [name for name in schema.get("required", ()) if name not in given]
    if missing:
        raise _Unfit(f"the argument {_quoted(missing[0])} is missing")
    return {name: _checked(name, item, properties[name]) for name, item in given.items()}


def _checked(name: str, value: JsonValue, schema: Schema) -> JsonValue:
    try:
        fitted = _READERS[schema["type"]](value, schema)
    except _Unfit as unfit:
        raise _Unfit(f"the argument {_quoted(name)} {unfit}") from None
    if isinstance(fitted, int | float) and not isinstance(fitted, bool):
        _within(name, fitted, schema)
    return fitted


def _within(name: str, value: float, schema: Schema) -> None:
    if "minimum" in schema and value < schema["minimum"]:
        raise _Unfit(f"the argument {_quoted(name)} must be at least {schema['minimum']}")
    if "exclusiveMinimum" in schema and value <= schema["exclusiveMinimum"]:
        raise _Unfit(f"the argument {_quoted(name)} must be above {schema['exclusiveMinimum']}")
    if "maximum" in schema and value > schema["maximum"]:
        raise _Unfit(f"the argument {_quoted(name)} must be at most {schema['maximum']}")


def _string(value: JsonValue, schema: Schema) -> str:
    if not isinstance(value, str):
        raise _Unfit(f"must be a string, not {_kind(value)}")
    if _SURROGATE.search(value):
        raise _Unfit("holds half of a surrogate pair, which is not text")
    if len(value) < schema.get("minLength", 0):
        raise _Unfit("must not be empty")
    return value


def _number(value: JsonValue, schema: Schema) -> float:
    if isinstance(value, str) and _NUMBER.match(value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _Unfit(f"must be a number, not {_kind(value)}")
    if abs(value) > 1e15 or not math.isfinite(value):
        raise _Unfit("is too large a number")
    return float(value)


def _integer(value: JsonValue, schema: Schema) -> int:
    number = _number(value, schema)
    if not number.is_integer():
        raise _Unfit("must be a whole number")
    return int(number)


def _boolean(value: JsonValue, schema: Schema) -> bool:
    if isinstance(value, bool):
        return value
    if value in ("true", "false"):
        return value == "true"
    raise _Unfit(f"must be true or false, not {_kind(value)}")


def _array(value: JsonValue, schema: Schema) -> list[JsonValue]:
    if not isinstance(value, list):
        raise _Unfit(f"must be an array, not {_kind(value)}")
    if len(value) > schema.get("maxItems", len(value)):
        raise _Unfit(f"must have at most {schema['maxItems']} items")
    return [_item(position, item, schema["items"]) for position, item in enumerate(value)]


def _item(position: int, value: JsonValue, schema: Schema) -> JsonValue:
    try:
        return _READERS[schema["type"]](value, schema)
    except _Unfit as unfit:
        raise _Unfit(f"has an item {position} that {unfit}") from None


_READERS: Mapping[str, Callable[[JsonValue, Schema], JsonValue]] = {
    "string": _string,
    "number": _number,
    "integer": _integer,
    "boolean": _boolean,
    "array": _array,
}


def _kind(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, str):
        return f"the string {_quoted(value)}"
    if isinstance(value, dict):
        return "an object"
    return "an array" if isinstance(value, list) else "a number"


def _quoted(text: str) -> str:
    return json.dumps(text if len(text) <= 60 else text[:60] + "...")


def _usage(tool: Tool) -> str:
    schema: Schema = tool.schema
    required = schema.get("required", ())
    fields = (
        f"{_quoted(name)}{'' if name in required else ' (optional)'}: {field['type']}"
        for name, field in schema["properties"].items()
    )
    return f"{tool.name} takes {{{', '.join(fields)}}}"


def text_of(arguments: Arguments, name: str, default: str = "") -> str:
    """The string argument `name` of parsed arguments."""
    value = arguments.get(name)
    return value if isinstance(value, str) else default


def whole_of(arguments: Arguments, name: str, default: int) -> int:
    """The integer argument `name` of parsed arguments."""
    value = arguments.get(name)
    return value if isinstance(value, int) else default


def number_of(arguments: Arguments, name: str, default: float) -> float:
    """The number argument `name` of parsed arguments."""
    value = arguments.get(name)
    return value if isinstance(value, float) else default


def flag_of(arguments: Arguments, name: str) -> bool:
    """The boolean argument `name` of parsed arguments; false when absent."""
    return arguments.get(name) is True
