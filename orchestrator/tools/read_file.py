"""read_file: lines of a text file, numbered."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestrator.interfaces import SHARED, CallContext, Order
from orchestrator.models import Arguments, JsonValue, Limits, ToolReply
from orchestrator.operations import Failure, Read, ReadResult
from orchestrator.tools.arguments import text_of, whole_of
from orchestrator.tools.texts import decoded, error, plural, printable, refused, reply, size_bytes

SLICE_BYTES = 256 * 1024
"""Read at a time: nearly every source file is one operation."""
SCAN_BYTES = 8 * 1024 * 1024
"""Lines are looked for in this much of a file, so that a call has at most 32 operations."""
LINE_BYTES = 2000
"""Shown of one line; minified files have lines of megabytes."""
_SNIFF_BYTES = 8192
"""git calls a file binary when its first 8,000 bytes hold a NUL."""
_FOOTER_BYTES = 200
_LAST_LINE = 1_000_000_000


class ReadFileTool:
    name = "read_file"
    description = (
        "Read a text file, or the lines start_line to end_line of it. Each line comes after its number and a tab, "
        "which are not part of the file. Long files are cut; the reply says from which line to go on."
    )
    schema: Mapping[str, JsonValue] = {
        "type": "object",
        "properties": {
            "path": {"type": "string", "description": "Relative to the workspace, or absolute.", "minLength": 1},
            "start_line": {"type": "integer", "description": "First line, from 1.", "minimum": 1},
            "end_line": {"type": "integer", "description": "Last line, included.", "minimum": 1},
        },
        "required": ["path"],
        "additionalProperties": False,
    }

    def order(self, arguments: Arguments) -> Order:
        return SHARED

    async def run(self, context: CallContext, arguments: Arguments) -> ToolReply:
        limits = context.task.limits
        start, end = whole_of(arguments, "start_line", 1), whole_of(arguments, "end_line", _LAST_LINE)
        if end < start:
            return error(f"end_line {end} is before start_line {start}", limits)
        window = Window(start=start, end=end, budget_bytes=max(0, limits.output_bytes - _FOOTER_BYTES))
        path = text_of(arguments, "path")
        while True:
            slice_ = await context.run(Read(path=path, offset_bytes=window.scanned_bytes, limit_bytes=SLICE_BYTES))
            if isinstance(slice_, Failure):
                return refused(slice_, limits)
            assert isinstance(slice_, ReadResult)
            if window.scanned_bytes == 0 and b"\x00" in slice_.data[:_SNIFF_BYTES]:
                return error(
                    f"{path} is a binary file of {plural(slice_.size_bytes, 'byte')}; look at it with shell", limits
                )
            window.feed(slice_.data)
            at_end = slice_.eof or not slice_.data
            if at_end:
                window.finish()
            if at_end or window.full or window.scanned_bytes >= SCAN_BYTES:
                return _reply(window, path, slice_.size_bytes, at_end, limits)


@dataclass(slots=True, kw_only=True)
class Window:
    """The lines start..end of what is fed, numbered and printable, within a budget of bytes. Keeps no more of a long line than is shown."""

    start: int
    end: int
    budget_bytes: int
    lines: list[str] = field(default_factory=list)
    line: int = 1
    """Number of the line being read."""
    scanned_bytes: int = 0
    full: bool = False
    _kept: bytes = b""
    _length: int = 0

    def feed(self, data: bytes) -> None:
        self.scanned_bytes += len(data)
        *ended, rest = data.split(b"\n")
        for piece in ended:
            self._extend(piece)
            self._end_line()
            if self.full:
                return
        self._extend(rest)

    def finish(self) -> None:
        """The file ended: a last line without newline counts."""
        if self._length and not self.full:
            self._end_line()

    def _extend(self, piece: bytes) -> None:
        self._length += len(piece)
        if len(self._kept) <= LINE_BYTES:
            self._kept += piece[: LINE_BYTES + 4 - len(self._kept)]

    def _end_line(self) -> None:
        if self.line >= self.start:
            self._show()
        if not self.full:
            self.line += 1
            self.full = self.line > self.end
        self._kept, self._length = b"", 0

    def _show(self) -> None:
        shown = f"{self.line:>6}\t{_line_text(self._kept, self._length)}"
        cost = size_bytes(shown) + 1
        if cost > self.budget_bytes and self.lines:
            self.full = True
            return
        self.lines.append(shown)
        self.budget_bytes -= cost


def _line_text(kept: bytes, length: int) -> str:
    if length <= LINE_BYTES:
        return printable(decoded(kept))
    head = kept[:LINE_BYTES].decode("utf-8", "ignore").encode()  # not inside a character
    return f"{printable(decoded(head))} [... {length - len(head)} bytes of this line cut ...]"


def _reply(window: Window, path: str, file_bytes: int, at_end: bool, limits: Limits) -> ToolReply:
    if file_bytes == 0:
        return reply(f"[{path} is empty]", limits)
    if not window.lines:
        return error(_nothing(window, path, at_end), limits)
    text = "\n".join(window.lines)
    if window.full and window.line <= window.end:
        text += f"\n[cut here; go on with start_line {window.line}]"
    elif not at_end and not window.full:
        text += (
            f"\n[only the first {SCAN_BYTES} bytes of the file are searched for lines; use sed in shell for later ones]"
        )
    return reply(text, limits)


def _nothing(window: Window, path: str, at_end: bool) -> str:
    if at_end:
        return f"{path} has {plural(window.line - 1, 'line')}; line {window.start} is past its end"
    return f"line {window.start} is not in the first {SCAN_BYTES} bytes of {path}; use sed in shell for it"
