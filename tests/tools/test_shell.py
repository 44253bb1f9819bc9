import json
from dataclasses import replace

import pytest

from orchestrator.interfaces import SHARED, Order
from orchestrator.models import Limits, ToolReply
from orchestrator.operations import (
    Exec,
    ExecResult,
    Failure,
    FailureCode,
    Operation,
    OperationResult,
    Output,
    Session,
    SessionFate,
    SessionResult,
    Started,
)
from orchestrator.tools.registry import tool
from tests.tools.contexts import Answered, call, nothing, printed, task

pytestmark = pytest.mark.anyio
LIMITS = Limits(command_timeout_s=60, output_bytes=2048, memory_mib=512)
DONE = ExecResult(exit_code=0, stdout=printed("hello\n"))


async def shell(result: OperationResult, **arguments: object) -> tuple[ToolReply, list[Operation]]:
    context = Answered(answer=lambda op: result, task=task(LIMITS))
    reply = await call(tool("shell"), context, json.dumps({"command": "echo hello", **arguments}))
    return reply, context.operations


async def test_output_comes_as_it_is() -> None:
    reply, operations = await shell(DONE)
    assert reply == ToolReply(text="hello\n")
    expected = Exec(argv=("/bin/bash", "-c", "echo hello"), timeout_s=60, output_limit_bytes=2048)
    assert operations == [expected]
    assert expected.merge_stderr


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (ExecResult(exit_code=0), "[no output, exit code 0]"),
        (replace(DONE, exit_code=3), "hello\n[exit code 3]"),
        (ExecResult(exit_code=3, stdout=printed("no newline")), "no newline\n[exit code 3]"),
        (ExecResult(exit_code=1), "[exit code 1]"),
        (replace(DONE, exit_code=None, signal="SIGSEGV"), "hello\n[killed by SIGSEGV]"),
        (
            replace(DONE, exit_code=None, signal="SIGKILL", timed_out=True),
            "hello\n[timed out: killed at the limit of 60 s, with all it started]",
        ),
        (
            replace(DONE, exit_code=None, signal="SIGKILL", timed_out=True, killed_all=True),
            "hello\n[timed out: killed at the limit of 60 s, with all it started]\n"
            "[all other running commands and background processes were killed too]",
        ),
        (replace(DONE, exit_code=None, cancelled=True), "hello\n[cancelled: killed, with all it started]"),
        (
            replace(DONE, exit_code=None, signal="SIGKILL", oom_killed=True),
            "hello\n[killed by SIGKILL]\n[out of memory: the limit is 512 MiB]",
        ),
    ],
)
async def test_what_output_does_not_tell_is_said(result: ExecResult, text: str) -> None:
    reply, _ = await shell(result)
    assert reply.text == text
    assert reply.is_error == (result.exit_code != 0)


@pytest.mark.parametrize(("asked", "given"), [(5, 5), (60, 60), (1e6, 60), (0.5, 0.5)])
async def test_the_tasks_limit_holds(asked: float, given: float) -> None:
    reply, operations = await shell(replace(DONE, exit_code=None, timed_out=True), timeout_s=asked)
    assert isinstance(operations[0], Exec)
    assert operations[0].timeout_s == given
    assert f"limit of {given:g} s" in reply.text


async def test_long_and_binary_output_fits_the_limit_with_its_notes() -> None:
    flood = Output(head=b"\x00" * 1024, tail=b"\xff" * 1024, cut_bytes=10**9, total_bytes=10**9 + 2048)
    reply, _ = await shell(ExecResult(exit_code=None, signal="SIGKILL", timed_out=True, killed_all=True, stdout=flood))
    assert len(reply.text.encode()) <= 2048
    assert "bytes cut" in reply.text
    assert reply.text.endswith("were killed too]")
    assert "\\x00\\x00" in reply.text
    assert "\\xff\\xff" in reply.text


async def test_without_bash_sh_is_taken() -> None:
    def answer(op: Operation) -> OperationResult:
        assert isinstance(op, Exec)
        if op.argv[0] == "/bin/bash":
            return Failure(code=FailureCode.CANNOT_START, message="no such file: /bin/bash")
        return DONE

    context = Answered(answer=answer)
    assert (await call(tool("shell"), context, '{"command":"true"}')).text == "hello\n"
    assert [op.argv for op in context.operations if isinstance(op, Exec)] == [
        ("/bin/bash", "-c", "true"),
        ("/bin/sh", "-c", "true"),
    ]


async def test_without_any_shell_the_model_is_told() -> None:
    reply, operations = await shell(Failure(code=FailureCode.CANNOT_START, message="no such file"))
    assert reply == ToolReply(text="Error: no such file", is_error=True)
    assert len(operations) == 2


async def test_another_refusal_is_not_tried_again() -> None:
    reply, operations = await shell(Failure(code=FailureCode.IO, message="broken"))
    assert reply.is_error
    assert len(operations) == 1


async def test_a_nul_in_the_command_is_told() -> None:
    reply = await call(tool("shell"), Answered(answer=nothing), '{"command":"a\\u0000b"}')
    assert reply.is_error
    assert "NUL" in reply.text


RAN = SessionResult(exit_code=0, output=printed("hello\n"))
FRESH = "[session main: a new shell was started for this call]"


async def in_session(result: OperationResult, **arguments: object) -> tuple[ToolReply, list[Operation]]:
    return await shell(result, **{"session": "main", **arguments})


async def test_a_session_gets_the_command_as_it_is() -> None:
    reply, operations = await in_session(RAN, tty=True, timeout_s=5)
    assert reply == ToolReply(text="hello\n")
    assert operations == [
        Session(name="main", script="echo hello", timeout_s=5, tty=True, output_limit_bytes=LIMITS.output_bytes)
    ]


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (SessionResult(exit_code=0), "[no output, exit code 0]"),
        (replace(RAN, started=Started.FIRST), f"hello\n{FRESH}"),
        (SessionResult(exit_code=0, started=Started.FIRST), f"[no output, exit code 0]\n{FRESH}"),
        (
            replace(RAN, started=Started.AGAIN),
            "hello\n[session main: its earlier shell was gone, with directory, variables and functions;"
            " a new one was started for this call]",
        ),
        (replace(RAN, exit_code=3), "hello\n[exit code 3]"),
        (
            replace(RAN, exit_code=3, fate=SessionFate.ENDED),
            "hello\n[exit code 3]\n[session main: it has ended: its directory, variables and functions are lost;"
            " the next use starts a new one]",
        ),
        (
            replace(RAN, exit_code=None, signal="SIGKILL", oom_killed=True, fate=SessionFate.ENDED),
            "hello\n[the session's shell was killed by SIGKILL]\n[out of memory: the limit is 512 MiB]\n"
            "[session main: it has ended: its directory, variables and functions are lost; the next use starts a new one]",
        ),
        (
            replace(RAN, exit_code=None, timed_out=True),
            "hello\n[timed out: interrupted at the limit of 60 s, and what it started was killed]",
        ),
        (
            replace(RAN, exit_code=None, timed_out=True, killed_all=True, fate=SessionFate.RESTARTED),
            "hello\n[timed out: interrupted at the limit of 60 s, and what it started was killed]\n"
            "[all other running commands and background processes were killed too]\n"
            "[session main: its shell did not answer and was replaced: the new one has the directory, the exported variables"
            " and, with bash, the functions of before this call; everything else of it is lost]",
        ),
        (
            replace(RAN, exit_code=None, cancelled=True, fate=SessionFate.LOST),
            "hello\n[cancelled: interrupted, and what it started was killed]\n"
            "[session main: its shell did not answer and was killed: its directory, variables and functions are lost;"
            " the next use starts a new one]",
        ),
    ],
)
async def test_what_became_of_the_session_is_said(result: SessionResult, text: str) -> None:
    reply, _ = await in_session(result)
    assert reply.text == text
    assert reply.is_error == (result.exit_code != 0)


async def test_a_flood_leaves_room_for_all_that_is_to_be_said_of_a_session() -> None:
    flood = Output(head=b"\x00" * 1024, tail=b"\xff" * 1024, cut_bytes=10**9, total_bytes=10**9 + 2048)
    worst = SessionResult(
        exit_code=None, timed_out=True, oom_killed=True, killed_all=True, started=Started.AGAIN,
        fate=SessionFate.RESTARTED, output=flood,
    )  # fmt: skip
    reply, _ = await in_session(worst, session="s" * 32)
    assert len(reply.text.encode()) <= LIMITS.output_bytes
    assert reply.text.endswith("everything else of it is lost]")
    assert "bytes cut" in reply.text


@pytest.mark.parametrize("name", ["a b", "ä", "s" * 33, "a/b", "..", "a\n", "$(x)"])
async def test_a_bad_name_is_told(name: str) -> None:
    reply = await call(tool("shell"), Answered(answer=nothing), json.dumps({"command": "true", "session": name}))
    assert reply.is_error
    assert "32 letters" in reply.text


async def test_a_terminal_needs_a_session() -> None:
    reply = await call(tool("shell"), Answered(answer=nothing), '{"command":"true","tty":true}')
    assert reply.is_error
    assert "session" in reply.text


async def test_a_box_that_refuses_a_session_is_heard() -> None:
    reply, operations = await in_session(Failure(code=FailureCode.CANNOT_START, message="8 sessions run"))
    assert reply == ToolReply(text="Error: 8 sessions run", is_error=True)
    assert len(operations) == 1


def test_calls_of_one_session_are_of_one_lane() -> None:
    assert tool("shell").order({"command": "true"}) == SHARED
    assert tool("shell").order({"command": "true", "session": "a"}) == Order(lane="session a")
