"""What tools run in here: a context whose operations are answered by the test."""

from collections.abc import Callable
from dataclasses import dataclass, field

from orchestrator.interfaces import Tool
from orchestrator.models import Limits, Task, TaskId, ToolReply
from orchestrator.operations import Operation, OperationResult, Output, Read, ReadResult
from orchestrator.tools.arguments import parse

DEFAULT = Limits()


def task(limits: Limits = DEFAULT) -> Task:
    return Task(id=TaskId("task"), repo="r", commit="0" * 40, image="i", prompt="p", grader="file_f1", limits=limits)


@dataclass(slots=True, kw_only=True)
class Answered:
    """`orchestrator.interfaces.CallContext`: `answer` gives each operation's result."""

    answer: Callable[[Operation], OperationResult]
    task: Task = field(default_factory=task)
    operations: list[Operation] = field(default_factory=list)
    notes: list[bytes] = field(default_factory=list)

    async def run(self, op: Operation) -> OperationResult:
        self.operations.append(op)
        return self.answer(op)

    async def once(self, value: bytes) -> bytes:
        self.notes.append(value)
        return value


async def call(tool: Tool, context: Answered, arguments_text: str) -> ToolReply:
    """As the host does it: parse, then run."""
    arguments = parse(tool, arguments_text)
    return arguments if isinstance(arguments, ToolReply) else await tool.run(context, arguments)


def nothing(op: Operation) -> OperationResult:
    raise AssertionError(f"no operation was expected, got {op}")


def printed(text: str | bytes) -> Output:
    data = text if isinstance(text, bytes) else text.encode()
    return Output(head=data, total_bytes=len(data))


def file_of(data: bytes) -> Callable[[Operation], OperationResult]:
    """Answers reads as the in-box agent does."""

    def answer(op: Operation) -> OperationResult:
        assert isinstance(op, Read)
        part = data[op.offset_bytes : op.offset_bytes + op.limit_bytes]
        return ReadResult(data=part, size_bytes=len(data), eof=op.offset_bytes + len(part) >= len(data), sha256=None)

    return answer
