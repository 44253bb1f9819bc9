"""edit_file: replace an exact passage; says why a passage did not match."""

import re
from collections.abc import Mapping

from orchestrator.interfaces import EXCLUSIVE, CallContext, Order
from orchestrator.models import Arguments, JsonValue, ToolReply
from orchestrator.operations import Edit, EditResult, Failure, FailureCode, Read, ReadResult
from orchestrator.tools.arguments import flag_of, text_of
from orchestrator.tools.texts import error, plural, refused, reply

_LINES_NAMED = 10
_NUMBERED = re.compile(r"\s*\d+\t")


class EditFileTool:
    name = "edit_file"
    description = (
        "Replace a passage of a file. `old` must be exactly as in the file, white space included, without read_file's line numbers, "
        "and must occur once: include lines around it where it does not, or set `all` to replace each occurrence."
    )
    schema: Mapping[str, JsonValue] = {
        "type": "object",
        "properties": {
            "path": {"type": "string", "description": "Relative to the workspace, or absolute.", "minLength": 1},
            "old": {"type": "string", "description": "The passage to replace.", "minLength": 1},
            "new": {"type": "string", "description": "What comes in its place; may be empty."},
            "all": {"type": "boolean", "description": "Replace every occurrence. Default: false."},
        },
        "required": ["path", "old", "new"],
        "additionalProperties": False,
    }

    def order(self, arguments: Arguments) -> Order:
        return EXCLUSIVE

    async def run(self, context: CallContext, arguments: Arguments) -> ToolReply:
        limits = context.task.limits
        path, old, new = (text_of(arguments, name) for name in ("path", "old", "new"))
        if old == new:
            return error("old and new are the same: there is nothing to change", limits)
        count = None if flag_of(arguments, "all") else 1
        result = await context.run(Edit(path=path, old=old, new=new, expected_count=count))
        if isinstance(result, EditResult):
            where = f"at line {result.line}" if result.replaced == 1 else f"the first at line {result.line}"
            return reply(f"Edited {path}: {plural(result.replaced, 'replacement')}, {where}.", limits)
        assert isinstance(result, Failure)
        if result.code not in (FailureCode.NO_MATCH, FailureCode.MANY_MATCHES):
            return refused(result, limits)
        content = await context.run(Read(path=path))
        if not isinstance(content, ReadResult):
            return refused(result, limits)
        return error(f"{path} was not changed: {_why(content.data.decode('utf-8', 'replace'), old)}", limits)


def _why(content: str, old: str) -> str:
    """Why `old` is not in `content` exactly once: the first reason that holds. `content` may be the first MiB of a longer file."""
    lines = _lines_of(content, old)
    if len(lines) > 1:
        named = ", ".join(map(str, lines[:_LINES_NAMED])) + (", ..." if len(lines) > _LINES_NAMED else "")
        return f"the passage occurs {len(lines)} times (at lines {named}); include lines around it, or set all to true"
    if lines:
        return "the passage occurs elsewhere, too; include lines around it, or set all to true"
    for reason in (
        _line_endings(content, old),
        _numbers(content, old),
        _white_space(content, old),
        _first_line(content, old),
    ):
        if reason:
            return reason
    return "the passage is not in the file; read the file again and copy the passage from there"


def _lines_of(content: str, old: str) -> list[int]:
    """Line numbers at which `old` occurs, without overlap."""
    found, line, position = [], 1, 0
    while (at := content.find(old, position)) >= 0:
        line += content.count("\n", position, at)
        found.append(line)
        line += old.count("\n")
        position = at + len(old)
    return found


def _line_endings(content: str, old: str) -> str:
    if "\r\n" in content and "\r" not in old and old in content.replace("\r\n", "\n"):
        return "the file's lines end with \\r\\n; write them so in old and new, or change one line at a time"
    return ""


def _numbers(content: str, old: str) -> str:
    lines = old.split("\n")
    if not all(_NUMBERED.match(line) for line in lines if line):
        return ""
    bare = "\n".join(_NUMBERED.sub("", line, count=1) for line in lines)
    return "old holds read_file's line numbers; leave them and the tab after them out" if bare in content else ""


def _white_space(content: str, old: str) -> str:
    """Compare line by line without the white space at both ends."""
    wanted = [line.strip() for line in old.strip("\n").split("\n")]
    stripped = [line.strip() for line in content.split("\n")]
    if not any(wanted):
        return ""
    for start in range(len(stripped) - len(wanted) + 1):
        if stripped[start : start + len(wanted)] == wanted:
            return f"a passage at line {start + 1} differs only in white space (indentation, tabs or line ends)"
    return ""


def _first_line(content: str, old: str) -> str:
    wanted = old.split("\n")
    stripped = [line.strip() for line in content.split("\n")]
    first = wanted[0].strip()
    if len(wanted) < 2 or not first or first not in stripped:
        return ""
    start = stripped.index(first)
    for offset, line in enumerate(wanted):
        if start + offset >= len(stripped) or stripped[start + offset] != line.strip():
            return f"its first line is at line {start + 1}, but line {start + offset + 1} differs from the passage's line {offset + 1}"
    return ""
