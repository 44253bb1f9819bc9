"""Texts for the model: printable, bounded for a context window, the same bytes for the same results.

Limits are named, elapsed time never: a replayed call must give the same reply (D6).
"""

import re

from orchestrator.models import Limits, ToolReply
from orchestrator.operations import Failure, FailureCode, Output

_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_MARKER_BYTES = 120
"""Room for the sentence that says what was cut."""

_HINTS = {
    FailureCode.NOT_FOUND: "check the path with list_dir",
    FailureCode.IS_DIRECTORY: "name a file in it; list_dir shows them",
    FailureCode.SYMLINK: "name the file that the link points to",
    FailureCode.BAD_PATH: "use a path relative to the workspace, without '..'",
    FailureCode.OUTSIDE: "use a path in the workspace",
    FailureCode.BAD_PATTERN: "use RE2 syntax: no look-around, no back-references; escape ( ) [ ] { } . * + ? | with a backslash",
    FailureCode.NO_SPACE: "delete files that are not needed",
}


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    if 0xDC80 <= code <= 0xDCFF:  # a byte that was not UTF-8, see `decoded`
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}"


def printable(text: str) -> str:
    """`text` with control characters (but tab, newline, carriage return) and stray bytes written as escapes."""
    return _UNPRINTABLE.sub(_escape, text)


def decoded(data: bytes) -> str:
    """`data` as text in which each byte that is not UTF-8 stands for itself; `printable` then shows it."""
    return data.decode("utf-8", "surrogateescape")


def size_bytes(text: str) -> int:
    return len(text.encode("utf-8"))


def head_within(text: str, limit_bytes: int) -> tuple[str, int]:
    """The longest beginning of `text` that takes at most `limit_bytes` when printable, and how many bytes of `text` it leaves out."""
    whole = printable(text)
    if size_bytes(whole) <= limit_bytes:
        return whole, 0
    used = kept = 0
    for character in text:
        used += size_bytes(printable(character))
        if used > limit_bytes:
            break
        kept += 1
    return printable(text[:kept]), len(text[kept:].encode("utf-8", "surrogateescape"))


def tail_within(text: str, limit_bytes: int) -> tuple[str, int]:
    """As `head_within`, for the end of `text`."""
    whole = printable(text)
    if size_bytes(whole) <= limit_bytes:
        return whole, 0
    used = kept = 0
    for character in reversed(text):
        used += size_bytes(printable(character))
        if used > limit_bytes:
            break
        kept += 1
    rest = len(text) - kept
    return printable(text[rest:]), len(text[:rest].encode("utf-8", "surrogateescape"))


def shown(output: Output, limit_bytes: int) -> str:
    """A stream's kept head and tail within `limit_bytes`; the bytes that are missing in between are stated."""
    text, end = decoded(output.head), decoded(output.tail)
    if not output.cut_bytes:
        text, end = text + end, ""
        whole = printable(text)
        if size_bytes(whole) <= limit_bytes:
            return whole
        text, end = text[: len(text) // 2], text[len(text) // 2 :]
    half = max(0, limit_bytes - _MARKER_BYTES) // 2
    head, head_cut = head_within(text, half)
    tail, tail_cut = tail_within(end, half)
    return f"{head}\n[... {output.cut_bytes + head_cut + tail_cut} bytes cut ...]\n{tail}"


def bounded(text: str, limits: Limits) -> str:
    """`text` (already printable) within the task's limit; what is missing at its end is stated."""
    if size_bytes(text) <= limits.output_bytes:
        return text
    head, cut = head_within(text, max(0, limits.output_bytes - _MARKER_BYTES))
    return f"{head}\n[... {cut} bytes cut ...]"


def reply(text: str, limits: Limits) -> ToolReply:
    return ToolReply(text=bounded(printable(text), limits))


def error(text: str, limits: Limits) -> ToolReply:
    """A mistake that the model can mend."""
    return ToolReply(text=bounded(printable(f"Error: {text}"), limits), is_error=True)


def refused(failure: Failure, limits: Limits) -> ToolReply:
    """What the in-box agent refused, with what to do about it."""
    hint = _HINTS.get(failure.code)
    return error(f"{failure.message} ({hint})" if hint else failure.message, limits)


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
