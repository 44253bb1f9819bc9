"""The fake box's shell: runs what `syntax` parsed, as a generator that yields whenever it has to wait.

A script that never waits costs no task. A wait is a number of seconds, or the task of a background process.
"""

from collections.abc import Generator, Mapping
from dataclasses import replace

from orchestrator.backends.fake.process import (
    LOOP_PAUSE_S,
    SIGNALS,
    Complaint,
    Job,
    Program,
    Shell,
    ShellExit,
    Steps,
    said,
)
from orchestrator.backends.fake.streams import Buffer, Signalled, Source
from orchestrator.backends.fake.syntax import (
    Chain,
    For,
    Group,
    If,
    Pipeline,
    Redirect,
    Script,
    ShellSyntaxError,
    Simple,
    Stage,
    Substitution,
    Text,
    While,
    Word,
    parse,
)
from orchestrator.backends.fake.tree import Refusal, shown

# Expansion


def _expand(shell: Shell, word: Word) -> Generator[float | Job, None, list[str]]:
    """Fields of a word: none, one or, where unquoted values hold blanks, several."""
    fields: list[str] = []
    current: str | None = None
    for part in word:
        if isinstance(part, Text):
            current = (current or "") + part.text
            continue
        if isinstance(part, Substitution):
            value = yield from _captured(shell, part.script)
        elif part.name == "@" and part.quoted:
            fields.extend(shell.params[1:])
            continue
        else:
            value = _value(shell, part.name)
            if not value and part.default is not None:
                value = "".join((yield from _expand(shell, part.default)))
        if part.quoted:
            current = (current or "") + value
            continue
        pieces = value.split()
        if pieces and current is not None and not value[0].isspace():
            pieces[0] = current + pieces[0]
        elif current is not None:
            pieces.insert(0, current)
        fields.extend(pieces[:-1])
        current = pieces[-1] if pieces else current
        if pieces and value[-1:].isspace():
            fields.append(pieces[-1])
            current = None
    return fields if current is None else [*fields, current]


def _value(shell: Shell, name: str) -> str:
    if name.isdigit():
        return shell.params[int(name)] if int(name) < len(shell.params) else ""
    special = {"?": str(shell.status), "$": str(shell.pid), "#": str(max(0, len(shell.params) - 1))}
    if name in special:
        return special[name]
    if name == "!":
        return str(shell.last_background or "")
    if name in ("@", "*"):
        return " ".join(shell.params[1:])
    return shell.variables.get(name, shell.env.get(name, ""))


def _captured(shell: Shell, script: Script) -> Generator[float | Job, None, str]:
    buffer = Buffer(shell.pid)
    child = shell.fork()
    child.fds[1] = buffer
    shell.status = yield from subshell(child, script)
    return bytes(buffer.data).decode("utf-8", "surrogateescape").replace("\0", "").rstrip("\n")


def _text(shell: Shell, word: Word) -> Generator[float | Job, None, str]:
    """An assignment's value or a redirection's target: never split."""
    return " ".join((yield from _expand(shell, tuple(replace(part, quoted=True) for part in word))))


# Running


def subshell(shell: Shell, script: Script) -> Steps:
    """Run in `shell`, to the end or its `exit`."""
    try:
        return (yield from run(shell, script))
    except ShellExit as leaving:
        return leaving.status


def run_text(shell: Shell, text: str) -> Steps:
    """A whole script, as `sh -c` does it."""
    try:
        script = parse(text)
    except ShellSyntaxError as error:
        shell.say(f"sh: syntax error: {error}")
        return 2
    return (yield from subshell(shell, script))


def run(shell: Shell, script: Script) -> Steps:
    """Raises ShellExit, Signalled."""
    for chain in script:
        if chain.background:
            _background(shell, chain)
        else:
            yield from _chain(shell, chain)
    return shell.status


def _background(shell: Shell, chain: Chain) -> None:
    pid = shell.kernel.new_pid()
    child = shell.fork(pid=pid)
    child.fds[0] = Source()
    shell.kernel.spawn(pid, subshell(child, (replace(chain, background=False),)))
    shell.last_background = pid
    shell.status = 0


def _chain(shell: Shell, chain: Chain) -> Steps:
    shell.status = yield from _pipeline(shell, chain.pipelines[0])
    for link, pipeline in zip(chain.links, chain.pipelines[1:], strict=True):
        if (shell.status == 0) == (link == "&&"):
            shell.status = yield from _pipeline(shell, pipeline)
    return shell.status


def _pipeline(shell: Shell, pipeline: Pipeline) -> Steps:
    """One after another, each stage's whole output in memory."""
    if len(pipeline.stages) == 1:
        status = yield from _stage(shell, pipeline.stages[0])
    else:
        status = yield from _piped(shell, pipeline.stages)
    return int(status == 0) if pipeline.negated else status


def _piped(shell: Shell, stages: tuple[Stage, ...]) -> Steps:
    stdin, status = shell.fds.get(0), 0
    for stage in stages:
        child = shell.fork()
        buffer = Buffer(shell.pid)
        if stdin is not None:
            child.fds[0] = stdin
        if stage is not stages[-1]:
            child.fds[1] = buffer
        try:
            status = yield from _forked(child, stage)
        except Signalled as ended:
            if ended.signal != "SIGPIPE":
                raise
            status = 128 + SIGNALS["SIGPIPE"]
        stdin = Source(bytes(buffer.data))
    return status


def _forked(shell: Shell, stage: Stage) -> Steps:
    try:
        return (yield from _stage(shell, stage))
    except ShellExit as leaving:
        return leaving.status


def _stage(shell: Shell, stage: Stage) -> Steps:
    match stage:
        case Simple():
            return (yield from _simple(shell, stage))
        case Group():
            return (yield from _group(shell, stage))
        case If():
            return (yield from _if(shell, stage))
        case For():
            return (yield from _for(shell, stage))
        case While():
            return (yield from _while(shell, stage))


def _group(shell: Shell, group: Group) -> Steps:
    child = shell.fork()
    try:
        yield from _redirect(child, group.redirects)
    except Complaint as complaint:
        shell.say(f"sh: {complaint}")
        return 1
    if group.subshell:
        return (yield from subshell(child, group.script))
    fds, shell.fds = shell.fds, child.fds
    try:
        return (yield from run(shell, group.script))
    finally:
        shell.fds = fds


def _if(shell: Shell, choice: If) -> Steps:
    for condition, body in choice.branches:
        if condition is None or (yield from run(shell, condition)) == 0:
            shell.status = 0
            return (yield from run(shell, body))
    return 0


def _for(shell: Shell, loop: For) -> Steps:
    values: list[str] = []
    for word in loop.words:
        values.extend((yield from _expand(shell, word)))
    status = 0
    for value in values:
        shell.variables[loop.name] = value
        status = yield from run(shell, loop.body)
    return status


def _while(shell: Shell, loop: While) -> Steps:
    status = 0
    while ((yield from run(shell, loop.condition)) == 0) is not loop.until:
        status = yield from run(shell, loop.body)
        yield LOOP_PAUSE_S
    return status


def _simple(shell: Shell, command: Simple) -> Steps:
    words: list[str] = []
    for word in command.words:
        words.extend((yield from _expand(shell, word)))
    values: dict[str, str] = {}
    for name, value in command.assignments:
        values[name] = yield from _text(shell, value)
    fds = dict(shell.fds)
    try:
        yield from _redirect(shell, command.redirects)
        if words:
            return (yield from call(shell, words, values))
        _assign(shell, values)
        return shell.status if any(isinstance(p, Substitution) for _, w in command.assignments for p in w) else 0
    except Complaint as complaint:
        shell.say(f"sh: {complaint}")
        return complaint.status
    finally:
        shell.fds = fds


def _assign(shell: Shell, values: Mapping[str, str]) -> None:
    for name, value in values.items():
        (shell.env if name in shell.env else shell.variables)[name] = value


def _redirect(shell: Shell, redirects: tuple[Redirect, ...]) -> Generator[float | Job, None, None]:
    """Raises Complaint."""
    for redirect in redirects:
        target = yield from _text(shell, redirect.target)
        if redirect.operator in (">&", "<&"):
            _duplicate(shell, redirect.fd, target)
        elif redirect.operator == "<":
            shell.fds[redirect.fd] = Source(shell.content(target))
        else:
            shell.fds[redirect.fd] = shell.open_out(target, append=redirect.operator == ">>")


def _duplicate(shell: Shell, fd: int, target: str) -> None:
    if target == "-":
        shell.fds.pop(fd, None)
    elif target.isdigit() and int(target) in shell.fds:
        shell.fds[fd] = shell.fds[int(target)]
    else:
        raise Complaint(f"{target}: Bad file descriptor", 2)


def call(shell: Shell, words: list[str], env: Mapping[str, str] | None = None) -> Steps:
    """Run a builtin or program by name; `env` holds the assignments before it."""
    program = find(shell, words[0])
    if program is None:
        shell.say(f"sh: 1: {words[0]}: not found")
        return 127
    saved = shell.env
    shell.env = {**saved, **env} if env else saved
    try:
        done = program(shell, words[1:])
        return done if isinstance(done, int) else (yield from done)
    except Complaint as complaint:
        shell.say(f"{words[0]}: {complaint}")
        return complaint.status
    except Refusal as refusal:
        shell.say(f"{words[0]}: {said(shown(()), refusal)}")
        return 1
    except (ValueError, IndexError):  # what is no number, or is missing
        shell.say(f"{words[0]}: bad arguments")
        return 2
    finally:
        if env:
            shell.env = saved


def find(shell: Shell, name: str) -> Program | None:
    """Programs are known by name, or by a path in the usual folders."""
    folder, _, base = name.rpartition("/")
    return shell.programs.get(base) if folder in ("", "/bin", "/usr/bin", "/usr/local/bin") else None
