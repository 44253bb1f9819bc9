"""The programs and builtins that the fake box's shell knows; anything else is `not found` (127)."""

import hashlib
import re
from collections.abc import Callable

from orchestrator.backends.fake.shell import (
    SIGNALS,
    Complaint,
    Program,
    Shell,
    ShellExit,
    Steps,
    call,
    find,
    run_text,
)
from orchestrator.backends.fake.streams import Signalled
from orchestrator.backends.fake.tree import Dir, File, Node, Special, Symlink

YES_CHUNK = 16 * 1024
YES_PAUSE_S = 0.001


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


# Output


def echo(shell: Shell, args: list[str]) -> int:
    newline = args[:1] != ["-n"]
    shell.out(_bytes(" ".join(args if newline else args[1:])) + (b"\n" if newline else b""))
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
        out += _bytes(text[at : found.start()])
        octal, hexa, char = found.groups()
        if octal or hexa:
            out += bytes([int(octal or hexa, 8 if octal else 16) & 0xFF])
        else:
            out += LETTERS.get(char, b"\\" + _bytes(char))
        at = found.end()
    return out + _bytes(text[at:])


def _formatted(found: "re.Match[bytes]", rest: list[str]) -> bytes:
    flags, kind = found.group(1), found.group(2)
    if kind == b"%":
        return b"%"
    value = rest.pop(0) if rest else ""
    if kind in b"sbc":
        data = _unescaped(value) if kind == b"b" else _bytes(value[:1] if kind == b"c" else value)
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
        shell.out(_bytes(f"{counts[args[0]](shell.content(path))} {path}\n"))
    if not args[1:]:
        shell.out(b"%d\n" % counts[args[0]](shell.stdin().read()))
    return 0


def sha256sum(shell: Shell, args: list[str]) -> int:
    for path in args or ["-"]:
        data = shell.stdin().read() if path == "-" else shell.content(path)
        shell.out(_bytes(f"{hashlib.sha256(data).hexdigest()}  {path}\n"))
    return 0


def seq(shell: Shell, args: list[str]) -> int:
    first, last = (1, int(args[0])) if len(args) == 1 else (int(args[0]), int(args[1]))
    shell.out(b"".join(b"%d\n" % number for number in range(first, last + 1)))
    return 0


def yes(shell: Shell, args: list[str]) -> Steps:
    line = _bytes(" ".join(args) or "y") + b"\n"
    chunk = line * (YES_CHUNK // len(line) + 1)
    while True:
        shell.out(chunk)
        yield YES_PAUSE_S


# Files


def test(shell: Shell, args: list[str]) -> int:
    if args[:1] == ["!"]:
        return int(test(shell, args[1:]) == 0)
    match args:
        case [left, "=" | "==", right]:
            return int(left != right)
        case [left, "!=", right]:
            return int(left == right)
        case [left, "-eq" | "-ne" | "-lt" | "-le" | "-gt" | "-ge" as operator, right]:
            return int(not _compared(int(left), operator, int(right)))
        case ["-n", text]:
            return int(not text)
        case ["-z", text]:
            return int(bool(text))
        case [option, path] if option.startswith("-"):
            return int(not _is(option, path, shell))
        case [text]:
            return int(not text)
        case []:
            return 1
    raise Complaint("unknown expression", 2)


def _compared(left: int, operator: str, right: int) -> bool:
    return {
        "-eq": left == right,
        "-ne": left != right,
        "-lt": left < right,
        "-le": left <= right,
        "-gt": left > right,
        "-ge": left >= right,
    }[operator]


def _is(option: str, path: str, shell: Shell) -> bool:
    node = shell.node(path, follow=option not in ("-L", "-h"))
    match option:
        case "-e":
            return node is not None
        case "-f":
            return isinstance(node, File)
        case "-d":
            return isinstance(node, Dir)
        case "-L" | "-h":
            return isinstance(node, Symlink)
        case "-p":
            return isinstance(node, Special)
        case "-s":
            return isinstance(node, File) and node.size_bytes > 0
        case "-r":
            return isinstance(node, Dir) or (isinstance(node, File) and bool(node.mode & 0o444))
        case "-w":
            return node is not None and shell.places.holds(shell.locate(path))
        case "-x":
            return isinstance(node, Dir) or (isinstance(node, File) and bool(node.mode & 0o111))
    raise Complaint(f"{option}: unknown test", 2)


def bracket(shell: Shell, args: list[str]) -> int:
    if args[-1:] != ["]"]:
        raise Complaint("missing ]", 2)
    return test(shell, args[:-1])


def rm(shell: Shell, args: list[str]) -> int:
    options, paths = _options(args, "rfR")
    for path in paths:
        node = shell.node(path, follow=False)
        if node is None:
            if "f" not in options:
                raise Complaint(f"cannot remove '{path}': No such file or directory")
            continue
        if isinstance(node, Dir) and not {"r", "R"} & options:
            raise Complaint(f"cannot remove '{path}': Is a directory")
        shell.tree.remove(shell.writable(path, follow=False))
    return 0


def mkdir(shell: Shell, args: list[str]) -> int:
    options, paths = _options(args, "p")
    for path in paths:
        parts = shell.writable(path)
        there = shell.node(path)
        if there is not None and not ("p" in options and isinstance(there, Dir)):
            raise Complaint(f"cannot create directory '{path}': File exists")
        if there is None:
            shell.tree.put(parts, Dir(owner=shell.tree), parents="p" in options)
    return 0


def touch(shell: Shell, args: list[str]) -> int:
    paths = list(args)
    while paths and re.fullmatch(r"-[dtr]", paths[0]):  # times are not kept
        paths = paths[2:]
    for path in paths:
        if shell.node(path) is None:
            shell.open_out(path, append=True)
    return 0


def copy(shell: Shell, args: list[str]) -> int:
    options, paths = _options(args, "rRa")
    for source, target in _pairs(shell, paths):
        node = shell.node(source)
        if node is None:
            raise Complaint(f"cannot stat '{source}': No such file or directory")
        if isinstance(node, Dir) and not options:
            raise Complaint(f"-r not specified; omitting directory '{source}'")
        shell.place(target, _cloned(node, shell))
    return 0


def _cloned(node: Node, shell: Shell) -> Node:
    if isinstance(node, Dir):
        return Dir({name: _cloned(child, shell) for name, child in node.children.items()}, node.mode, shell.tree)
    return node


def move(shell: Shell, args: list[str]) -> int:
    for source, target in _pairs(shell, _options(args, "f")[1]):
        node = shell.node(source, follow=False)
        if node is None:
            raise Complaint(f"cannot stat '{source}': No such file or directory")
        shell.tree.remove(shell.writable(source, follow=False))
        shell.place(target, node)
    return 0


def link(shell: Shell, args: list[str]) -> int:
    options, paths = _options(args, "sfn")
    if len(paths) != 2:
        raise Complaint("two names are needed")
    target, name = paths
    if isinstance(shell.node(name), Dir):
        name = f"{name}/{target.rpartition('/')[2]}"
    if shell.node(name, follow=False) is not None and "f" not in options:
        raise Complaint(f"failed to create link '{name}': File exists")
    if "s" in options:
        shell.place(name, Symlink(target))
    else:
        shell.place(name, File.of(shell.content(target)))
    return 0


def _pairs(shell: Shell, paths: list[str]) -> list[tuple[str, str]]:
    if len(paths) < 2:
        raise Complaint("missing file operand")
    *sources, target = paths
    if isinstance(shell.node(target), Dir):
        return [(source, f"{target}/{source.rstrip('/').rpartition('/')[2]}") for source in sources]
    if len(sources) > 1:
        raise Complaint(f"target '{target}' is not a directory")
    return [(sources[0], target)]


def mkfifo(shell: Shell, args: list[str]) -> int:
    for path in args:
        shell.place(path, Special())
    return 0


def chmod(shell: Shell, args: list[str]) -> int:
    for path in args[1:]:
        node = shell.node(path)
        if node is None or isinstance(node, Symlink):
            raise Complaint(f"cannot access '{path}': No such file or directory")
        shell.place(path, _with_mode(node, _mode(args[0], node.mode), shell))
    return 0


def _mode(text: str, before: int) -> int:
    if re.fullmatch(r"[0-7]{1,4}", text):
        return int(text, 8)
    found = re.fullmatch(r"[ua]?([+-])([rwx]+)", text)
    if not found:
        raise Complaint(f"invalid mode: '{text}'")
    bits = sum({"r": 0o444, "w": 0o200, "x": 0o111}[letter] for letter in set(found.group(2)))
    return before | bits if found.group(1) == "+" else before & ~bits


def _with_mode(node: File | Dir | Special, mode: int, shell: Shell) -> Node:
    match node:
        case File():
            return File(node.data, mode, node.source, node.size_bytes)
        case Dir():
            return Dir(dict(node.children), mode, shell.tree)
        case Special():
            return Special(mode)


def ls(shell: Shell, args: list[str]) -> int:
    options, paths = _options(args, "a1A")
    for path in paths or ["."]:
        node = shell.node(path)
        if node is None:
            raise Complaint(f"cannot access '{path}': No such file or directory", 2)
        names = sorted(node.children) if isinstance(node, Dir) else [path]
        shell.out(b"".join(_bytes(name) + b"\n" for name in names if options & {"a", "A"} or not name.startswith(".")))
    return 0


def readlink(shell: Shell, args: list[str]) -> int:
    node = shell.node(args[0], follow=False)
    if not isinstance(node, Symlink):
        return 1
    shell.out(_bytes(node.target) + b"\n")
    return 0


def _options(args: list[str], known: str) -> tuple[set[str], list[str]]:
    options: set[str] = set()
    rest = list(args)
    while rest and rest[0].startswith("-") and len(rest[0]) > 1:
        option = rest.pop(0)
        if option == "--":
            break
        if not set(option[1:]) <= set(known):
            raise Complaint(f"invalid option '{option}' (the fake box knows -{known})", 2)
        options |= set(option[1:])
    return options, rest


# Processes and the shell itself


def sleep(shell: Shell, args: list[str]) -> Steps:
    try:
        seconds = sum(map(float, args))
    except ValueError:
        raise Complaint(f"invalid time interval {' '.join(args)!r}") from None
    del shell
    yield seconds
    return 0


def leave(shell: Shell, args: list[str]) -> int:
    if args and not args[0].isdigit():
        raise Complaint(f"Illegal number: {args[0]}", 2)
    raise ShellExit(int(args[0]) & 0xFF if args else shell.status)


def change_folder(shell: Shell, args: list[str]) -> int:
    path = args[0] if args else shell.env.get("HOME", "/")
    parts = shell.locate(path)
    if not isinstance(shell.node(path) if parts else Dir(), Dir):
        raise Complaint(f"can't cd to {path}", 2)
    shell.cwd = parts
    return 0


def pwd(shell: Shell, args: list[str]) -> int:
    del args
    shell.out(_bytes("/" + "/".join(shell.cwd)) + b"\n")
    return 0


def export(shell: Shell, args: list[str]) -> int:
    for arg in args:
        name, given, value = arg.partition("=")
        shell.env[name] = value if given else shell.variables.pop(name, shell.env.get(name, ""))
    return 0


def unset(shell: Shell, args: list[str]) -> int:
    for name in args:
        shell.env.pop(name, None)
        shell.variables.pop(name, None)
    return 0


def read_line(shell: Shell, args: list[str]) -> int:
    _, names = _options(args, "r")
    line = shell.stdin().line()
    if names:
        shell.variables[names[0]] = line.decode("utf-8", "surrogateescape").strip()
    return int(not line.endswith(b"\n"))


def show_env(shell: Shell, args: list[str]) -> "int | Steps":
    env, rest = dict(shell.env), list(args)
    if rest[:1] == ["-i"]:
        env, rest = {}, rest[1:]
    while rest and "=" in rest[0]:
        name, _, value = rest.pop(0).partition("=")
        env[name] = value
    if rest:
        return _child(shell.fork(env=env, variables={}), rest)
    shell.out(b"".join(_bytes(f"{name}={value}\n") for name, value in env.items()))
    return 0


def _child(shell: Shell, words: list[str]) -> Steps:
    """A program run by a program: a missing one is 127, as from a shell."""
    return (yield from call(shell, words))


def wrapped(shell: Shell, args: list[str]) -> Steps:
    """`setsid`, `nohup`, `command`, `exec`: there are no sessions and terminals to change, so they run what they are given."""
    words = [arg for arg in args if not re.fullmatch(r"-[fw]+", arg)]
    return (yield from call(shell, words)) if words else 0


def execute(shell: Shell, args: list[str]) -> Steps:
    if not args:
        return 0
    raise ShellExit((yield from call(shell, args)))


def sh(shell: Shell, args: list[str]) -> Steps:
    options, rest = args[:1], args[1:]
    pid = shell.pid if shell.fresh else shell.kernel.new_pid()
    if options and options[0] in ("-c", "-ec", "-lc"):
        child = shell.fork(pid=pid, fresh=False, variables={}, params=tuple(rest[1:]))
        text = rest[0] if rest else ""
    elif options:
        text = shell.content(args[0]).decode("utf-8", "surrogateescape")
        child = shell.fork(pid=pid, fresh=False, variables={}, params=tuple(args))
    else:
        text = shell.stdin().read().decode("utf-8", "surrogateescape")
        child = shell.fork(pid=pid, fresh=False, variables={})
    try:
        return (yield from run_text(child, text))
    except Signalled as ended:
        if ended.pid != pid or shell.fresh:
            raise
        return 128 + SIGNALS.get(ended.signal, 0)


def kill(shell: Shell, args: list[str]) -> int:
    signal, rest = "SIGTERM", list(args)
    if rest and rest[0].startswith("-") and len(rest) > 1:
        signal = _signal_name(rest.pop(0)[1:])
    if rest[:1] == ["--"]:
        rest.pop(0)
    missing = [pid for pid in rest if not shell.kernel.signal(_pid(pid), signal, by=shell.pid)]
    for pid in missing:
        shell.say(f"kill: ({pid}): {'Operation not permitted' if pid == '1' else 'No such process'}")
    return int(bool(missing))


def _pid(text: str) -> int:
    if not re.fullmatch(r"-?\d+", text):
        raise Complaint(f"{text}: not a pid")
    return int(text)


def _signal_name(text: str) -> str:
    names = {str(number): name for name, number in SIGNALS.items()} | {"0": "0"}
    name = names.get(text) or (text if text.startswith("SIG") else f"SIG{text}")
    if name != "0" and name not in SIGNALS:
        raise Complaint(f"{text}: unknown signal (the fake box knows {', '.join(SIGNALS)})")
    return name


def trap(shell: Shell, args: list[str]) -> int:
    if not args or args[0] != "":
        raise Complaint("the fake box's trap can only ignore: trap '' NAME..", 2)
    for name in args[1:]:
        shell.kernel.ignore(shell.pid, _signal_name(name))
    return 0


def wait(shell: Shell, args: list[str]) -> Steps:
    del args
    yield from list(shell.kernel.children())
    return 0


def identity(shell: Shell, args: list[str]) -> int:
    if args not in (["-u"], ["-g"]):
        raise Complaint("the fake box's id knows -u and -g", 2)
    shell.out(b"%d\n" % shell.uid)
    return 0


def which(shell: Shell, args: list[str]) -> int:
    found = [name for name in args if find(shell, name)]
    shell.out(b"".join(_bytes(f"/usr/bin/{name}\n") for name in found))
    return int(len(found) != len(args))


def command(shell: Shell, args: list[str]) -> "int | Steps":
    return which(shell, args[1:]) if args[:1] == ["-v"] else wrapped(shell, args)


def colon(shell: Shell, args: list[str]) -> int:
    del shell, args
    return 0


def false(shell: Shell, args: list[str]) -> int:
    del shell, args
    return 1


PROGRAMS: dict[str, Program] = {
    ":": colon,
    "[": bracket,
    "bash": sh,
    "cat": cat,
    "cd": change_folder,
    "chmod": chmod,
    "command": command,
    "cp": copy,
    "echo": echo,
    "env": show_env,
    "exec": execute,
    "exit": leave,
    "export": export,
    "false": false,
    "head": head,
    "id": identity,
    "kill": kill,
    "ln": link,
    "ls": ls,
    "mkdir": mkdir,
    "mkfifo": mkfifo,
    "mv": move,
    "nohup": wrapped,
    "printf": printf,
    "pwd": pwd,
    "read": read_line,
    "readlink": readlink,
    "rm": rm,
    "seq": seq,
    "setsid": wrapped,
    "sh": sh,
    "sha256sum": sha256sum,
    "sleep": sleep,
    "sync": colon,
    "tail": tail,
    "test": test,
    "touch": touch,
    "trap": trap,
    "true": colon,
    "unset": unset,
    "wait": wait,
    "wc": wc,
    "which": which,
    "yes": yes,
}
