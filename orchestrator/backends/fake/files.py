"""The file operations over a box's tree, as the agent does them. Each raises Refusal for what the agent would refuse."""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

from orchestrator.backends.fake.places import Places, named
from orchestrator.backends.fake.tree import Dir, File, Node, Refusal, Special, Symlink, Tree, below, shown
from orchestrator.operations import (
    MAX_READ_BYTES,
    Edit,
    EditResult,
    Entry,
    FailureCode,
    Glob,
    GlobResult,
    List,
    ListResult,
    Match,
    Read,
    ReadResult,
    Search,
    SearchResult,
    Write,
    WriteResult,
)

MAX_SEARCHED_BYTES = 4 * 1024 * 1024
"""`search` passes over larger files (docs/agent-protocol.md)."""

BINARY_PROBE_BYTES = 8192
MAX_EDITED_BYTES = 8 * 1024 * 1024

NOT_RE2 = re.compile(r"\(\?(?:[=!>(]|<[=!])|\\[1-9]")
"""What Python's `re` has and RE2 has not: look-around, atomic and conditional groups, back references."""


def regular(node: Node, parts: tuple[str, ...]) -> File:
    if isinstance(node, File):
        return node
    if isinstance(node, Dir):
        raise Refusal(FailureCode.IS_DIRECTORY, f"{shown(parts)}: is a directory")
    if isinstance(node, Symlink):
        raise Refusal(FailureCode.SYMLINK, f"{shown(parts)}: is a symbolic link")
    raise Refusal(FailureCode.NOT_REGULAR, f"{shown(parts)}: not a regular file")


def _folder(tree: Tree, parts: tuple[str, ...]) -> Dir:
    node = tree.walk(parts)
    if isinstance(node, Dir):
        return node
    if isinstance(node, Symlink):
        raise Refusal(FailureCode.SYMLINK, f"{shown(parts)}: is a symbolic link")
    raise Refusal(FailureCode.NOT_A_DIRECTORY, f"{shown(parts)}: not a directory")


def read(tree: Tree, places: Places, op: Read) -> ReadResult:
    parts = places.readable(op.path)
    file = regular(tree.walk(parts), parts)
    if not file.mode & 0o444:
        raise Refusal(FailureCode.PERMISSION, f"{shown(parts)}: permission denied")
    data = file.read()
    piece = data[op.offset_bytes : op.offset_bytes + min(op.limit_bytes, MAX_READ_BYTES)]
    return ReadResult(
        data=piece,
        size_bytes=len(data),
        eof=op.offset_bytes + len(piece) >= len(data),
        sha256=hashlib.sha256(data).hexdigest() if len(piece) == len(data) and op.offset_bytes == 0 else None,
    )


def write(tree: Tree, places: Places, op: Write) -> WriteResult:
    parts = places.writable(op.path)
    before = _replaceable(tree, parts)
    _expect(before, op.expected_sha256, parts)
    kept = before.mode if before else 0o644
    tree.put(parts, File.of(op.data, kept if op.mode is None else op.mode & 0o777), parents=op.parents)
    return WriteResult(size_bytes=len(op.data), created=before is None, sha256=hashlib.sha256(op.data).hexdigest())


def _replaceable(tree: Tree, parts: tuple[str, ...]) -> File | None:
    before = tree.find(parts)
    return None if before is None else regular(before, parts)


def _expect(before: File | None, expected: str | None, parts: tuple[str, ...]) -> None:
    if expected is None:
        return
    if expected == "absent":
        if before is not None:
            raise Refusal(FailureCode.EXISTS, f"{shown(parts)}: exists already")
        return
    if before is None:
        raise Refusal(FailureCode.NOT_FOUND, f"{shown(parts)}: no such file or directory")
    if hashlib.sha256(before.read()).hexdigest() != expected:
        raise Refusal(FailureCode.HASH_MISMATCH, f"{shown(parts)}: the file has another content than expected")


def edit(tree: Tree, places: Places, op: Edit) -> EditResult:
    if not op.old:
        raise Refusal(FailureCode.NO_MATCH, "the text to replace is empty")
    parts = places.writable(op.path)
    file = regular(tree.walk(parts), parts)
    if file.size_bytes > MAX_EDITED_BYTES:
        raise Refusal(FailureCode.TOO_LARGE, f"{shown(parts)}: larger than what can be edited")
    try:
        text = file.read().decode()
    except UnicodeDecodeError:
        raise Refusal(FailureCode.NOT_TEXT, f"{shown(parts)}: not a text file") from None
    count = text.count(op.old)
    if count == 0:
        raise Refusal(FailureCode.NO_MATCH, f"{shown(parts)}: the text to replace does not occur")
    if op.expected_count is not None and count != op.expected_count:
        raise Refusal(
            FailureCode.MANY_MATCHES,
            f"{shown(parts)}: the text to replace occurs {count} times, {op.expected_count} expected",
        )
    data = text.replace(op.old, op.new).encode()
    tree.put(parts, File.of(data, file.mode))
    return EditResult(replaced=count, size_bytes=len(data), line=text[: text.index(op.old)].count("\n") + 1)


def list_folder(tree: Tree, places: Places, op: List) -> ListResult:
    parts = places.readable(op.path)
    found = [_listed(named(op.path, name), node) for name, node in _inside(_folder(tree, parts), op.depth)]
    found.sort(key=lambda entry: entry.path.encode("utf-8", "surrogateescape"))
    return ListResult(entries=tuple(found[: op.limit]), truncated=len(found) > op.limit)


def _inside(folder: Dir, depth: int, prefix: str = "") -> Iterator[tuple[str, Node]]:
    """Names below `folder` to `depth`; `.git` is named, not entered."""
    for name, node in folder.children.items():
        yield prefix + name, node
        if depth > 1 and isinstance(node, Dir) and name != ".git":
            yield from _inside(node, depth - 1, f"{prefix}{name}/")


def _listed(path: str, node: Node) -> Entry:
    """A name that is not UTF-8 is escaped, and what it names is nothing to work with."""
    text = printable(path)
    entry = _entry(text, node)
    return entry if text == path else replace(entry, kind="other")


def printable(path: str) -> str:
    """The path itself, or with the bytes that are not UTF-8 as `\\xff`."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _entry(path: str, node: Node) -> Entry:
    match node:
        case File():
            return Entry(path=path, kind="file", size_bytes=node.size_bytes, mode=node.mode)
        case Dir():
            return Entry(path=path, kind="dir", size_bytes=0, mode=node.mode)
        case Symlink():
            return Entry(path=path, kind="symlink", size_bytes=len(node.target.encode()), mode=0o777)
        case Special():
            return Entry(path=path, kind="other", size_bytes=0, mode=node.mode)


def glob(tree: Tree, places: Places, op: Glob) -> GlobResult:
    parts = places.readable(op.path)
    wanted = glob_pattern(op.pattern)
    found = sorted(
        (named(op.path, name) for name, _ in _files(_folder(tree, parts)) if wanted.fullmatch(name)),
        key=str.encode,
    )
    return GlobResult(paths=tuple(found[: op.limit]), truncated=len(found) > op.limit)


def _files(folder: Dir) -> Iterator[tuple[str, File]]:
    """Regular files below, outside `.git`, by relative path in byte order."""
    for name, node in below(folder):
        if isinstance(node, File) and ".git" not in name.split("/") and printable(name) == name:
            yield name, node


def search(tree: Tree, places: Places, op: Search) -> SearchResult:
    wanted = _expression(op.pattern, op.ignore_case)
    matches: list[Match] = []
    searched = 0
    for path, data in _searched(tree, places, op):
        searched += 1
        for number, line in enumerate(_lines(data), start=1):
            if wanted.search(line):
                if len(matches) == op.limit:
                    return SearchResult(matches=tuple(matches), truncated=True, files_searched=searched)
                matches.append(Match(path=path, line=number, text=_cut(line, op.line_limit_bytes)))
    return SearchResult(matches=tuple(matches), truncated=False, files_searched=searched)


def _searched(tree: Tree, places: Places, op: Search) -> Iterator[tuple[str, bytes]]:
    """Text files to look through: the one named, or those below the folder named."""
    parts = places.readable(op.path)
    chosen = glob_pattern(op.glob) if op.glob else None
    start = tree.walk(parts)
    if not isinstance(start, Dir):
        named_files = [("", regular(start, parts))]
    else:
        named_files = [(name, file) for name, file in _files(start) if chosen is None or _chosen(chosen, op, name)]
    for name, file in named_files:
        if file.size_bytes <= MAX_SEARCHED_BYTES and b"\0" not in (data := file.read())[:BINARY_PROBE_BYTES]:
            yield named(op.path, name), data


def _chosen(chosen: re.Pattern[str], op: Search, name: str) -> bool:
    """A glob without a slash is for the file's own name, wherever it lies."""
    whole = "/" in (op.glob or "")
    return chosen.fullmatch(name if whole else name.rpartition("/")[2]) is not None


@lru_cache(maxsize=256)
def _expression(pattern: str, ignore_case: bool) -> re.Pattern[str]:
    if NOT_RE2.search(pattern):
        raise Refusal(FailureCode.BAD_PATTERN, "the pattern is not an RE2 expression")
    try:
        return re.compile(pattern, re.IGNORECASE if ignore_case else 0)
    except re.error as error:
        raise Refusal(FailureCode.BAD_PATTERN, f"the pattern is not an RE2 expression: {error}") from None


def _lines(data: bytes) -> list[str]:
    text = data.decode("utf-8", "replace")
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")] if text else []


def _cut(line: str, limit_bytes: int) -> str:
    return line.encode()[:limit_bytes].decode("utf-8", "ignore")


@lru_cache(maxsize=256)
def glob_pattern(pattern: str) -> re.Pattern[str]:
    """`*`, `?` and `[..]` stay within a component, `**` spans any number of them. Raises Refusal (bad_pattern)."""
    names = [name for name in pattern.split("/") if name not in ("", ".")]
    if not names or pattern.startswith("/") or ".." in names or "\0" in pattern:
        raise Refusal(FailureCode.BAD_PATTERN, "a glob pattern is a relative path without '..'")
    last = len(names) - 1
    out = ""
    for index, name in enumerate(names):
        if name == "**":
            out += ".+" if index == last else "(?:[^/]+/)*"
        else:
            out += _component(name) + ("" if index == last else "/")
    try:
        return re.compile(out)
    except re.error:
        raise Refusal(FailureCode.BAD_PATTERN, f"{pattern!r} is not a glob pattern") from None


def _component(name: str) -> str:
    out, at = "", 0
    while at < len(name):
        char = name[at]
        if char == "[":
            end = name.find("]", at + 2)
            if end < 0:
                raise Refusal(FailureCode.BAD_PATTERN, "a [ in the glob pattern is not closed")
            out += _class(name[at + 1 : end])
            at = end
        else:
            out += {"*": "[^/]*", "?": "[^/]"}.get(char, re.escape(char))
        at += 1
    return out


def _class(inside: str) -> str:
    negated = inside[0] in "!^"
    body = re.escape(inside[1:] if negated else inside).replace("\\-", "-")
    return f"[^/{body}]" if negated else f"[{body}]"
