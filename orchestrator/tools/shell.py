"""shell: run one command and show what it printed; in a new shell, or in a named one that goes on from call to call."""

import re
from collections.abc import Mapping

from orchestrator.interfaces import SHARED, CallContext, Order
from orchestrator.models import Arguments, JsonValue, Limits, ToolReply
from orchestrator.operations import (
    Exec,
    ExecResult,
    Failure,
    FailureCode,
    OperationResult,
    Session,
    SessionFate,
    SessionResult,
    Started,
)
from orchestrator.tools.arguments import flag_of, number_of, text_of
from orchestrator.tools.texts import error, refused, reply, shown

SHELLS = ("/bin/bash", "/bin/sh")
"""Tried in this order: small images have no bash."""
SESSION_NAME = re.compile(r"[0-9a-zA-Z_-]{1,32}\Z", re.ASCII)
NO_OUTPUT = "no output, exit code 0"
_NOTES_BYTES = 600
"""Room for the lines below the output."""
_SESSION_NOTES_BYTES = 900
"""Those of a session say more."""


class ShellTool:
    name = "shell"
    description = (
        "Run a command with bash in the workspace (the repository's root) and return its output, stdout and stderr together. "
        "Each call is a new shell: cd and variables do not carry over, files and background processes do. "
        "With session they carry over. Long output is cut in the middle. "
        "There is no terminal, and no network unless the environment names a proxy; stdin is empty."
    )
    schema: Mapping[str, JsonValue] = {
        "type": "object",
        "properties": {
            "command": {"type": "string", "description": "What to run.", "minLength": 1},
            "timeout_s": {
                "type": "number",
                "description": "Seconds after which the command is killed; the task's own limit holds where it is lower.",
                "exclusiveMinimum": 0,
            },
            "session": {
                "type": "string",
                "description": "Run in the shell of this name, which goes on from call to call: working directory, variables and"
                " functions stay. It starts at the first use of its name (1 to 32 letters, digits, _ or -) and ends with exit."
                " Without it each call is a new shell.",
                "minLength": 1,
            },
            "tty": {
                "type": "boolean",
                "description": "With session only, from its first use on: give the shell a terminal of 80 x 24, for programs that"
                " want one. Nothing can be typed into it.",
            },
        },
        "required": ["command"],
        "additionalProperties": False,
    }

    def order(self, arguments: Arguments) -> Order:
        session = text_of(arguments, "session")
        return Order(lane=f"session {session}") if session else SHARED

    async def run(self, context: CallContext, arguments: Arguments) -> ToolReply:
        limits = context.task.limits
        command, session = text_of(arguments, "command"), text_of(arguments, "session")
        if "\x00" in command:
            return error("the command holds a NUL character, which no command can", limits)
        timeout_s = min(number_of(arguments, "timeout_s", limits.command_timeout_s), limits.command_timeout_s)
        if session:
            return await _in_session(context, session, command, timeout_s, tty=flag_of(arguments, "tty"))
        if flag_of(arguments, "tty"):
            return error('a terminal belongs to a session: name one with "session", or leave "tty" out', limits)
        result: OperationResult | None = None
        for shell in SHELLS:
            result = await context.run(_exec(shell, command, timeout_s, limits))
            if not (isinstance(result, Failure) and result.code is FailureCode.CANNOT_START):
                break
        if isinstance(result, Failure):
            return refused(result, limits)
        assert isinstance(result, ExecResult)
        return _reply(result, timeout_s, limits)


def _exec(shell: str, command: str, timeout_s: float, limits: Limits) -> Exec:
    return Exec(argv=(shell, "-c", command), timeout_s=timeout_s, output_limit_bytes=limits.output_bytes)


async def _in_session(context: CallContext, name: str, command: str, timeout_s: float, *, tty: bool) -> ToolReply:
    limits = context.task.limits
    if not SESSION_NAME.match(name):
        return error('the argument "session" must be 1 to 32 letters, digits, _ or -', limits)
    op = Session(name=name, script=command, timeout_s=timeout_s, tty=tty, output_limit_bytes=limits.output_bytes)
    result = await context.run(op)
    if isinstance(result, Failure):
        return refused(result, limits)
    assert isinstance(result, SessionResult)
    notes = _session_notes(result, name, timeout_s, limits)
    output = shown(result.output, max(0, limits.output_bytes - _SESSION_NOTES_BYTES))
    if not output and result.exit_code == 0:
        notes.insert(0, NO_OUTPUT)
    return _told(output, notes, result.exit_code, limits)


def _reply(result: ExecResult, timeout_s: float, limits: Limits) -> ToolReply:
    notes = _notes(result, timeout_s, limits)
    output = shown(result.stdout, max(0, limits.output_bytes - _NOTES_BYTES))
    return _told(output, notes if output or notes else [NO_OUTPUT], result.exit_code, limits)


def _told(output: str, notes: list[str], exit_code: int | None, limits: Limits) -> ToolReply:
    """What was printed, and below it the notes."""
    separator = "\n" if output and notes and not output.endswith("\n") else ""
    text = reply(output + separator + "\n".join(f"[{note}]" for note in notes), limits).text
    return ToolReply(text=text, is_error=exit_code != 0)


def _notes(result: ExecResult, timeout_s: float, limits: Limits) -> list[str]:
    """What the output alone does not tell. Pure; names limits, never elapsed time."""
    notes = []
    if result.timed_out:
        notes.append(f"timed out: killed at the limit of {timeout_s:g} s, with all it started")
    elif result.cancelled:
        notes.append("cancelled: killed, with all it started")
    elif result.exit_code is None:
        notes.append(f"killed by {result.signal or 'a signal'}")
    elif result.exit_code:
        notes.append(f"exit code {result.exit_code}")
    return [*notes, *_box_notes(result, limits)]


def _box_notes(result: ExecResult | SessionResult, limits: Limits) -> list[str]:
    notes = []
    if result.oom_killed:
        notes.append(f"out of memory: the limit is {limits.memory_mib} MiB")
    if result.killed_all:
        notes.append("all other running commands and background processes were killed too")
    return notes


_FATES = {
    SessionFate.KEPT: "",
    SessionFate.RESTARTED: "its shell did not answer and was replaced: the new one has the directory, the exported variables and, with bash,"
    " the functions of before this call; everything else of it is lost",
    SessionFate.LOST: "its shell did not answer and was killed: its directory, variables and functions are lost; the next use starts a"
    " new one",
    SessionFate.ENDED: "it has ended: its directory, variables and functions are lost; the next use starts a new one",
}


def _session_notes(result: SessionResult, name: str, timeout_s: float, limits: Limits) -> list[str]:
    """As `_notes`, with what became of the session."""
    notes = []
    if result.timed_out:
        notes.append(f"timed out: interrupted at the limit of {timeout_s:g} s, and what it started was killed")
    elif result.cancelled:
        notes.append("cancelled: interrupted, and what it started was killed")
    elif result.exit_code is None:
        notes.append(f"the session's shell was killed by {result.signal or 'a signal'}")
    elif result.exit_code:
        notes.append(f"exit code {result.exit_code}")
    notes.extend(_box_notes(result, limits))
    if result.started is Started.FIRST:
        notes.append(f"session {name}: a new shell was started for this call")
    elif result.started is Started.AGAIN:
        notes.append(
            f"session {name}: its earlier shell was gone, with directory, variables and functions; a new one was started for this call"
        )
    fate = _FATES[result.fate]
    if fate:
        notes.append(f"session {name}: {fate}")
    return notes
