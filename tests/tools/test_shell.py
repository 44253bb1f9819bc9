import json
from dataclasses import replace

import pytest

from orchestrator.models import Limits, ToolReply
from orchestrator.operations import Exec, ExecResult, Failure, FailureCode, Operation, OperationResult, Output
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
