"""shell: run one command and show what it printed."""

from collections.abc import Mapping

from orchestrator.interfaces import CallContext
from orchestrator.models import Arguments, JsonValue, Limits, ToolReply
from orchestrator.operations import Exec, ExecResult, Failure, FailureCode, OperationResult
from orchestrator.tools.arguments import number_of, text_of
from orchestrator.tools.texts import error, refused, reply, shown

SHELLS = ("/bin/bash", "/bin/sh")
"""Tried in this order: small images have no bash."""
_NOTES_BYTES = 600
"""Room for the lines below the output."""


class ShellTool:
    name = "shell"
    description = (
        "Run a command with bash in the workspace (the repository's root) and return its output, stdout and stderr together. "
        "Each call is a new shell: cd and variables do not carry over, files and background processes do. "
        "Long output is cut in the middle. There is no network and no terminal; stdin is empty."
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
        },
        "required": ["command"],
        "additionalProperties": False,
    }
    exclusive = False

    async def run(self, context: CallContext, arguments: Arguments) -> ToolReply:
        limits = context.task.limits
        command = text_of(arguments, "command")
        if "\x00" in command:
            return error("the command holds a NUL character, which no command can", limits)
        timeout_s = min(number_of(arguments, "timeout_s", limits.command_timeout_s), limits.command_timeout_s)
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


def _reply(result: ExecResult, timeout_s: float, limits: Limits) -> ToolReply:
    notes = [f"[{note}]" for note in _notes(result, timeout_s, limits)]
    output = shown(result.stdout, max(0, limits.output_bytes - _NOTES_BYTES))
    if not output and not notes:
        notes = ["[no output, exit code 0]"]
    separator = "\n" if output and notes and not output.endswith("\n") else ""
    text = reply(output + separator + "\n".join(notes), limits).text
    return ToolReply(text=text, is_error=result.exit_code != 0)


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
    if result.oom_killed:
        notes.append(f"out of memory: the limit is {limits.memory_mib} MiB")
    if result.killed_all:
        notes.append("all other running commands and background processes were killed too")
    return notes
