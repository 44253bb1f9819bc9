"""The programs and builtins that the fake box's shell knows; anything else is `not found` (127). Here: processes and the shell itself."""

import re
from collections.abc import Mapping

from orchestrator.backends.fake.file_programs import FILE_PROGRAMS
from orchestrator.backends.fake.process import SIGNALS, Complaint, Program, Shell, ShellExit, Steps, encoded, options_of
from orchestrator.backends.fake.shell import call, find, run_text
from orchestrator.backends.fake.streams import Signalled
from orchestrator.backends.fake.text_programs import TEXT_PROGRAMS
from orchestrator.backends.fake.tree import Dir


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
    shell.out(encoded("/" + "/".join(shell.cwd)) + b"\n")
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
    _, names = options_of(args, "r")
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
    shell.out(b"".join(encoded(f"{name}={value}\n") for name, value in env.items()))
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
    if not args or args[0] not in ("", "-"):
        raise Complaint("the fake box's trap can only ignore, and undo that: trap '' NAME.., trap - NAME..", 2)
    change = shell.kernel.heed if args[0] else shell.kernel.ignore
    for name in args[1:]:
        change(shell.pid, _signal_name(name))
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
    shell.out(b"".join(encoded(f"/usr/bin/{name}\n") for name in found))
    return int(len(found) != len(args))


def command(shell: Shell, args: list[str]) -> "int | Steps":
    return which(shell, args[1:]) if args[:1] == ["-v"] else wrapped(shell, args)


def colon(shell: Shell, args: list[str]) -> int:
    del shell, args
    return 0


def false(shell: Shell, args: list[str]) -> int:
    del shell, args
    return 1


PROGRAMS: Mapping[str, Program] = {
    **TEXT_PROGRAMS,
    **FILE_PROGRAMS,
    ":": colon,
    "bash": sh,
    "cd": change_folder,
    "command": command,
    "env": show_env,
    "exec": execute,
    "exit": leave,
    "export": export,
    "false": false,
    "id": identity,
    "kill": kill,
    "nohup": wrapped,
    "pwd": pwd,
    "read": read_line,
    "setsid": wrapped,
    "sh": sh,
    "sleep": sleep,
    "sync": colon,
    "trap": trap,
    "true": colon,
    "unset": unset,
    "wait": wait,
    "which": which,
}
