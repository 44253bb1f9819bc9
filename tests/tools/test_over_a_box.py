"""The tools over a box, and the rule that replay rests on: run again over the same journal, a call gives the same bytes and acts once (D6)."""

import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from orchestrator.backends.fake import FakeBackend
from orchestrator.interfaces import Sandbox, SandboxSpec
from orchestrator.models import (
    CallKey,
    Epoch,
    JobId,
    Limits,
    OpId,
    PendingCall,
    RolloutKey,
    SandboxId,
    Task,
    ToolReply,
    TraceId,
)
from orchestrator.operations import Note, NoteResult, Operation, OperationResult
from orchestrator.tools.arguments import parse
from orchestrator.tools.registry import tool
from tests.tools.contexts import task

pytestmark = pytest.mark.anyio


class HostDied(Exception):
    """The host is killed after an operation's effect."""


@dataclass(slots=True, kw_only=True)
class OverBox:
    """A call's context as a host makes it; dies after `dies_after` operations."""

    box: Sandbox
    key: CallKey
    dies_after: int = 1000
    number: int = 0
    task: Task = field(default_factory=lambda: task(Limits(output_bytes=4096)))

    async def run(self, op: Operation) -> OperationResult:
        number, self.number = self.number, self.number + 1
        header = PendingCall(key=self.key, sequence=1, tool="t", arguments={}, operations=0)
        result = await self.box.run(
            op,
            op_id=OpId(call=self.key, number=number),
            deadline=time.monotonic() + 30,
            call=header if number == 0 else None,
        )
        if self.number >= self.dies_after:
            raise HostDied
        return result

    async def once(self, value: bytes) -> bytes:
        result = await self.run(Note(data=value))
        assert isinstance(result, NoteResult)
        return result.data


@pytest.fixture
async def box() -> AsyncIterator[Sandbox]:
    backend = FakeBackend()
    spec = SandboxSpec(image="fake", template=None, limits=Limits())
    made = await backend.create(SandboxId("box"), spec, deadline=time.monotonic() + 30)
    await made.lease(RolloutKey(job=JobId("j"), trace_id=TraceId("t")), Epoch(1))
    yield made
    await made.aclose()
    await backend.destroy(SandboxId("box"))


calls = iter(range(10**6))


async def say(box: Sandbox, name: str, **arguments: object) -> ToolReply:
    context = OverBox(box=box, key=CallKey(f"call{next(calls)}"))
    return await run(name, context, arguments)


async def run(name: str, context: OverBox, arguments: dict[str, object]) -> ToolReply:
    parsed = parse(tool(name), json.dumps(arguments))
    assert not isinstance(parsed, ToolReply), parsed.text
    return await tool(name).run(context, parsed)


async def test_a_model_finds_its_way(box: Sandbox) -> None:
    assert (await say(box, "write_file", path="src/a.py", content="def f():\n    return 1\n")).text.startswith(
        "Created"
    )
    assert (await say(box, "list_dir", path="src")).text.split("  ")[0].endswith("a.py")
    assert (await say(box, "read_file", path="src/a.py")).text == "     1\tdef f():\n     2\t    return 1"
    assert (await say(box, "search", pattern="return \\d")).text.endswith("a.py:2:     return 1")
    reply = await say(box, "edit_file", path="src/a.py", old="return 1", new="return 2")
    assert reply.text == "Edited src/a.py: 1 replacement, at line 2."
    assert (await say(box, "shell", command="cat src/a.py")).text == "def f():\n    return 2\n"
    assert (await say(box, "write_file", path="src/a.py", content="")).text == "Replaced src/a.py (0 bytes)."
    assert (await say(box, "submit", files=["src/a.py"])).text.startswith("Recorded: 1 file")


async def test_a_model_is_told_its_mistakes(box: Sandbox) -> None:
    await say(box, "write_file", path="a", content="x\nx\n")
    for name, arguments in (
        ("read_file", {"path": "missing"}),
        ("read_file", {"path": "."}),
        ("read_file", {"path": "../../etc/shadow"}),
        ("write_file", {"path": "/etc/x", "content": ""}),
        ("write_file", {"path": "a\x00b", "content": ""}),
        ("edit_file", {"path": "a", "old": "x", "new": "y"}),
        ("edit_file", {"path": "a", "old": "z", "new": "y"}),
        ("list_dir", {"path": "missing"}),
        ("search", {"pattern": "("}),
        ("shell", {"command": "exit 3"}),
    ):
        reply = await say(box, name, **arguments)
        assert reply.is_error, (name, arguments, reply)
        assert reply.text


async def test_a_model_keeps_a_session(box: Sandbox) -> None:
    first = await say(box, "shell", command="mkdir sub; cd sub; A=1", session="main")
    assert first.text == "[no output, exit code 0]\n[session main: a new shell was started for this call]"
    assert (await say(box, "shell", command="echo $A > f; cat f", session="main")).text == "1\n"
    assert (await say(box, "shell", command="cat sub/f; echo [$A]")).text == "1\n[]\n"
    ended = await say(box, "shell", command="echo bye; exit 3", session="main")
    assert ended.is_error
    assert ended.text.startswith("bye\n[exit code 3]\n[session main: it has ended")
    again = await say(box, "shell", command="echo [$A]; pwd", session="main")
    assert again.text.startswith("[]\n/workspace\n[session main: its earlier shell was gone")
    assert not again.is_error


CALLS: list[tuple[str, dict[str, object]]] = [
    ("shell", {"command": "echo one >> log; cat log"}),
    ("shell", {"command": "exit 7"}),
    ("shell", {"command": "echo one >> log; cat log", "session": "main"}),
    ("shell", {"command": "exit 7", "session": "main"}),
    ("read_file", {"path": "big.txt", "start_line": 30_000, "end_line": 30_001}),
    ("read_file", {"path": "missing"}),
    ("write_file", {"path": "new.txt", "content": "new"}),
    ("edit_file", {"path": "a.txt", "old": "one", "new": "two"}),
    ("edit_file", {"path": "a.txt", "old": "absent", "new": "two"}),
    ("list_dir", {"depth": 2}),
    ("search", {"pattern": "one"}),
    ("submit", {"files": ["a.txt"]}),
]


@pytest.mark.parametrize(("name", "arguments"), CALLS)
async def test_a_call_that_is_run_again_gives_the_same_bytes_and_acts_once(
    box: Sandbox, name: str, arguments: dict[str, object]
) -> None:
    await say(box, "write_file", path="a.txt", content="one\n")
    await say(box, "write_file", path="big.txt", content="0123456789abcdef\n" * 40_000)
    key = CallKey("replayed")
    died = 0
    for dies_after in range(1, 40):
        try:
            first = await run(name, OverBox(box=box, key=key, dies_after=dies_after), arguments)
            break
        except HostDied:
            died += 1
    again = await run(name, OverBox(box=box, key=key), arguments)
    assert died >= 1
    assert again == first
    log = await say(box, "shell", command="cat log")
    assert log.text == "one\n" or "log" not in str(arguments)
