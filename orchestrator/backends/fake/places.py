"""Where an operation's path leads, by the rules of docs/agent-protocol.md: a pure function of text."""

from dataclasses import dataclass

from orchestrator.backends.fake.tree import Refusal, shown
from orchestrator.operations import FailureCode

MAX_PATH_BYTES = 4096
MAX_NAME_BYTES = 255
UNREADABLE = (("proc",), ("sys",), ("dev",), ("run", "tiltyard"))


@dataclass(frozen=True, slots=True)
class Places:
    """The three folders that commands may write, as path components from the root."""

    workspace: tuple[str, ...]
    home: tuple[str, ...] = ("home", "agent")
    tmp: tuple[str, ...] = ("tmp",)

    def readable(self, path: str) -> tuple[str, ...]:
        """Raises Refusal (bad_path, outside)."""
        parts = self._parts(path)
        if any(parts[: len(bad)] == bad for bad in UNREADABLE):
            raise Refusal(FailureCode.OUTSIDE, f"{shown(parts)}: not a place to read from")
        return parts

    def writable(self, path: str) -> tuple[str, ...]:
        """Raises Refusal (bad_path, outside)."""
        parts = self._parts(path)
        if not self.holds(parts):
            raise Refusal(FailureCode.OUTSIDE, f"{shown(parts)}: not a place to write to")
        return parts

    def holds(self, parts: tuple[str, ...]) -> bool:
        return any(parts[: len(place)] == place for place in (self.workspace, self.home, self.tmp))

    def _parts(self, path: str) -> tuple[str, ...]:
        names = _checked(path)
        return names if path.startswith("/") else self.workspace + names


def named(asked: str, below: str) -> str:
    """A path met on a walk, in the form in which the walk's start was asked for: what a result names can be asked for as it stands."""
    names = [name for name in asked.split("/") if name not in ("", ".")]
    return ("/" if asked.startswith("/") else "") + "/".join([*names, *filter(None, [below])])


def _checked(path: str) -> tuple[str, ...]:
    try:
        size = len(path.encode())
    except UnicodeEncodeError:
        raise Refusal(FailureCode.BAD_PATH, "the path is not valid UTF-8") from None
    if not path or "\0" in path:
        raise Refusal(FailureCode.BAD_PATH, "the path is empty or holds a NUL")
    names = tuple(name for name in path.split("/") if name not in ("", "."))
    if size > MAX_PATH_BYTES or any(len(name.encode()) > MAX_NAME_BYTES for name in names):
        raise Refusal(FailureCode.BAD_PATH, "the path is too long")
    if ".." in names:
        raise Refusal(FailureCode.BAD_PATH, "the path holds '..'")
    return names
