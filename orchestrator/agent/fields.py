"""JSON objects from a box, read by a closed schema: each field once, by name and type; what is left over is refused."""

import base64
import binascii
import json
from collections.abc import Mapping

from orchestrator.errors import AgentProtocolError

MAX_INTEGER = 1 << 63


def parse_json(raw: bytes) -> object:
    """Raises AgentProtocolError for what is not JSON (NaN and deep nesting included)."""
    try:
        value: object = json.loads(raw, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise AgentProtocolError("the box's agent sent something that is not JSON") from error
    return value


def _no_constant(name: str) -> object:
    raise ValueError(name)


class Fields:
    """One object. Every method raises AgentProtocolError for a missing field or one of another type."""

    __slots__ = ("_left", "_what")

    def __init__(self, value: object, what: str) -> None:
        if not isinstance(value, dict):
            raise AgentProtocolError(f"{what} is not an object")
        self._left: dict[str, object] = dict(value)
        self._what = what

    def take(self, name: str) -> object:
        try:
            return self._left.pop(name)
        except KeyError:
            raise AgentProtocolError(f"{self._what} lacks {name}") from None

    def wrong(self, name: str) -> AgentProtocolError:
        return AgentProtocolError(f"{name} of {self._what} is not what it must be")

    def text(self, name: str, limit: int = 8192) -> str:
        value = self.take(name)
        if not isinstance(value, str) or len(value) > limit:
            raise self.wrong(name)
        return value

    def maybe_text(self, name: str, limit: int = 8192) -> str | None:
        if self._left.get(name, 0) is None:
            del self._left[name]
            return None
        return self.text(name, limit)

    def integer(self, name: str, low: int = 0) -> int:
        value = self.take(name)
        if type(value) is not int or not low <= value < MAX_INTEGER:
            raise self.wrong(name)
        return value

    def maybe_integer(self, name: str) -> int | None:
        if self._left.get(name, 0) is None:
            del self._left[name]
            return None
        return self.integer(name)

    def number(self, name: str) -> float:
        value = self.take(name)
        if type(value) not in (int, float):
            raise self.wrong(name)
        return float(str(value))

    def flag(self, name: str) -> bool:
        value = self.take(name)
        if not isinstance(value, bool):
            raise self.wrong(name)
        return value

    def blob(self, name: str, limit: int) -> bytes:
        """Bytes that travel as base64; at most `limit` of them."""
        value = self.take(name)
        if not isinstance(value, str) or len(value) > (limit + 2) // 3 * 4:
            raise self.wrong(name)
        try:
            data = base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            raise self.wrong(name) from None
        if len(data) > limit:
            raise self.wrong(name)
        return data

    def items(self, name: str, limit: int) -> list[object]:
        value = self.take(name)
        if not isinstance(value, list) or len(value) > limit:
            raise self.wrong(name)
        return value

    def mapping(self, name: str) -> Mapping[str, object]:
        value = self.take(name)
        if not isinstance(value, dict):
            raise self.wrong(name)
        return value

    def finish(self) -> None:
        if self._left:
            raise AgentProtocolError(f"{self._what} holds unknown fields")
