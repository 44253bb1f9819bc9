"""Programs that print and count."""

import hashlib
import re
from collections.abc import Callable, Mapping

from orchestrator.backends.fake.process import Complaint, Program, Shell, Steps, encoded

YES_CHUNK = 16 * 1024
YES_PAUSE_S = 0.001


def echo(shell: Shell, args: list[str]) -> int:
    newline = args[:1] != ["-n"]
    shell.out(encoded(" ".join(args if newline else args[1:])) + (b"\n" if newline else b""))
    return 0


ESCAPE = re.compile(r"\\(?:([0-7]{1,3})|x([0-9a-fA-F]{1,2})|(.))", re.DOTALL)
LETTERS = {"n": b"\n", "t": b"\t", "r": b"\r", "\\": b"\\", "a": b"\a", "b": b"\b", "e": b"\x1b", '"': b'"'}
DIRECTIVE = re.compile(rb"%([-0 ]*\d*(?:\.\d+)?)([sdixXoucb%])")


def printf(shell: Shell, args: list[str]) -> int:
    if not args:
        raise Complaint("usage: printf format [arguments]", 2)
    template = _unescaped(args[0])
    rest = args[1:]
    while True:
        given = len(rest)
        shell.out(DIRECTIVE.sub(lambda found: _formatted(found, rest), template))
        if not rest or len(rest) == given:
            return 0


def _unescaped(text: str) -> bytes:
    out, at = b"", 0
    for found in ESCAPE.finditer(text):
        out += encoded(text[at : found.start()])
        octal, hexa, char = found.groups()
        if octal or hexa:
            out += bytes([int(octal or hexa, 8 if octal else 16) & 0xFF])
        else:
            out += LETTERS.get(char, b"\\" + encoded(char))
        at = found.end()
    return out + encoded(text[at:])


def _formatted(found: "re.Match[bytes]", rest: list[str]) -> bytes:
    flags, kind = found.group(1), found.group(2)
    if kind == b"%":
        return b"%"
    value = rest.pop(0) if rest else ""
    if kind in b"sbc":
        data = _unescaped(value) if kind == b"b" else encoded(value[:1] if kind == b"c" else value)
        return (b"%" + flags + b"s") % data
    if not re.fullmatch(r"-?\d*", value):
        raise Complaint(f"{value!r}: expected numeric value")
    return (b"%" + flags + (b"d" if kind in b"iu" else kind)) % int(value or "0")


def cat(shell: Shell, args: list[str]) -> int:
    for path in args or ["-"]:
        shell.out(shell.stdin().read() if path == "-" else shell.content(path))
    return 0


def head(shell: Shell, args: list[str]) -> int:
    limit, files = _count_option(args)
    data = b"".join(shell.content(path) for path in files) if files else shell.stdin().read()
    shell.out(data[: limit[1]] if limit[0] == "c" else b"".join(data.splitlines(keepends=True)[: limit[1]]))
    return 0


def tail(shell: Shell, args: list[str]) -> int:
    limit, files = _count_option(args)
    data = b"".join(shell.content(path) for path in files) if files else shell.stdin().read()
    shell.out(data[-limit[1] :] if limit[0] == "c" else b"".join(data.splitlines(keepends=True)[-limit[1] :]))
    return 0


def _count_option(args: list[str]) -> tuple[tuple[str, int], list[str]]:
    if args and (found := re.fullmatch(r"-([cn])(\d*)", args[0])):
        number = found.group(2) or (args[1] if len(args) > 1 else "")
        if not number.isdigit():
            raise Complaint(f"invalid number {number!r}")
        return (found.group(1), int(number)), args[1 if found.group(2) else 2 :]
    return ("n", 10), args


def wc(shell: Shell, args: list[str]) -> int:
    counts: dict[str, Callable[[bytes], int]] = {
        "-c": len,
        "-l": lambda data: data.count(b"\n"),
        "-w": lambda data: len(data.split()),
    }
    if not args or args[0] not in counts:
        raise Complaint("one of -c, -l, -w is needed", 2)
    for path in args[1:]:
        shell.out(encoded(f"{counts[args[0]](shell.content(path))} {path}\n"))
    if not args[1:]:
        shell.out(b"%d\n" % counts[args[0]](shell.stdin().read()))
    return 0


def sha256sum(shell: Shell, args: list[str]) -> int:
    for path in args or ["-"]:
        data = shell.stdin().read() if path == "-" else shell.content(path)
        shell.out(encoded(f"{hashlib.sha256(data).hexdigest()}  {path}\n"))
    return 0


def seq(shell: Shell, args: list[str]) -> int:
    first, last = (1, int(args[0])) if len(args) == 1 else (int(args[0]), int(args[1]))
    shell.out(b"".join(b"%d\n" % number for number in range(first, last + 1)))
    return 0


def yes(shell: Shell, args: list[str]) -> Steps:
    line = encoded(" ".join(args) or "y") + b"\n"
    chunk = line * (YES_CHUNK // len(line) + 1)
    while True:
        shell.out(chunk)
        yield YES_PAUSE_S


TEXT_PROGRAMS: Mapping[str, Program] = {
    "cat": cat,
    "echo": echo,
    "head": head,
    "printf": printf,
    "seq": seq,
    "sha256sum": sha256sum,
    "tail": tail,
    "wc": wc,
    "yes": yes,
}
