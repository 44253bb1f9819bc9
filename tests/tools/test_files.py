"""read_file, write_file, edit_file."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.models import Limits, ToolReply
from orchestrator.operations import (
    Edit,
    EditResult,
    Failure,
    FailureCode,
    Operation,
    OperationResult,
    Read,
    ReadResult,
    Write,
    WriteResult,
)
from orchestrator.tools.read_file import LINE_BYTES, SCAN_BYTES, SLICE_BYTES, Window
from orchestrator.tools.registry import tool
from tests.tools.contexts import Answered, call, file_of, nothing, task

pytestmark = pytest.mark.anyio


async def read(data: bytes, output_bytes: int = 32_768, **arguments: object) -> tuple[ToolReply, int]:
    context = Answered(answer=file_of(data), task=task(Limits(output_bytes=output_bytes)))
    reply = await call(tool("read_file"), context, json.dumps({"path": "a.txt", **arguments}))
    return reply, len(context.operations)


async def test_lines_are_numbered() -> None:
    assert (await read(b"one\ntwo\n")) == (ToolReply(text="     1\tone\n     2\ttwo"), 1)


@pytest.mark.parametrize("data", [b"one\ntwo\nthree\n", b"one\ntwo\nthree"])
async def test_a_range_is_what_was_asked_for(data: bytes) -> None:
    assert (await read(data, start_line=2))[0].text == "     2\ttwo\n     3\tthree"
    assert (await read(data, start_line=2, end_line=2))[0].text == "     2\ttwo"
    assert (await read(data, end_line=99))[0].text.count("\n") == 2
    assert (await read(data, start_line=4))[0] == ToolReply(
        text="Error: a.txt has 3 lines; line 4 is past its end", is_error=True
    )
    assert (await read(data, start_line=3, end_line=2))[0].is_error


async def test_an_empty_file_is_said_to_be_empty() -> None:
    assert (await read(b"")) == (ToolReply(text="[a.txt is empty]"), 1)
    assert (await read(b"\n"))[0].text == "     1\t"


async def test_a_binary_file_is_told_not_shown() -> None:
    reply, _ = await read(b"\x7fELF\x00\x00" * 100)
    assert reply == ToolReply(text="Error: a.txt is a binary file of 600 bytes; look at it with shell", is_error=True)
    assert (await read(b"latin \xe9\n"))[0].text == "     1\tlatin \\xe9"


async def test_a_long_file_says_where_to_go_on_and_that_is_right() -> None:
    lines = [f"line {number} é" for number in range(1, 2001)]
    data = "\n".join(lines).encode()
    seen: list[str] = []
    start = 1
    while True:
        reply, _ = await read(data, output_bytes=4096, start_line=start)
        assert len(reply.text.encode()) <= 4096
        *shown, last = reply.text.split("\n")
        if not last.startswith("["):
            seen += [line.split("\t", 1)[1] for line in [*shown, last]]
            break
        seen += [line.split("\t", 1)[1] for line in shown]
        start = int(last.removeprefix("[cut here; go on with start_line ").removesuffix("]"))
    assert seen == lines


async def test_a_line_beyond_the_first_slice_is_found() -> None:
    data = b"x" * 99 + b"\n"
    whole = data * (3 * SLICE_BYTES // 100) + b"the end\n"
    number = whole.count(b"\n")
    assert (await read(whole, start_line=number)) == (ToolReply(text=f"{number:>6}\tthe end"), 3)


async def test_a_huge_file_is_searched_only_so_far() -> None:
    data = b"y" * 63 + b"\n"
    whole = data * ((SCAN_BYTES + SLICE_BYTES) // 64)
    reply, operations = await read(whole, start_line=whole.count(b"\n"))
    assert reply.is_error
    assert "use sed in shell" in reply.text
    assert operations == SCAN_BYTES // SLICE_BYTES
    assert (await read(whole))[1] == 1


async def test_a_line_of_megabytes_is_cut_and_counted() -> None:
    reply, _ = await read(b"z" * 3_000_000 + b"\nnext\n")
    first, second = reply.text.split("\n")
    assert first == f"     1\t{'z' * LINE_BYTES} [... {3_000_000 - LINE_BYTES} bytes of this line cut ...]"
    assert second == "     2\tnext"
    assert "of this line cut" not in (await read(b"z" * LINE_BYTES))[0].text


async def test_refusals_are_told() -> None:
    context = Answered(answer=lambda op: Failure(code=FailureCode.SYMLINK, message="a symbolic link: a.txt"))
    reply = await call(tool("read_file"), context, '{"path":"a.txt"}')
    assert reply.is_error
    assert "a symbolic link: a.txt (name the file that the link points to)" in reply.text


@given(st.lists(st.binary(max_size=40)), st.integers(1, 12), st.integers(1, 12))
def test_windows_do_not_depend_on_how_the_file_was_sliced(pieces: list[bytes], start: int, end: int) -> None:
    whole, sliced = (Window(start=start, end=end, budget_bytes=100) for _ in range(2))
    whole.feed(b"".join(pieces))
    whole.finish()
    for piece in pieces:
        if sliced.full:
            break
        sliced.feed(piece)
    sliced.finish()
    assert (whole.lines, whole.line, whole.full) == (sliced.lines, sliced.line, sliced.full)


async def test_write_says_what_it_did() -> None:
    results = iter(
        [WriteResult(size_bytes=1, created=True, sha256=""), WriteResult(size_bytes=6, created=False, sha256="")]
    )
    context = Answered(answer=lambda op: next(results))
    assert (await call(tool("write_file"), context, '{"path":"a","content":"x"}')).text == "Created a (1 byte)."
    assert (
        await call(tool("write_file"), context, '{"path":"a","content":"\u00e9t\u00e9\\n"}')
    ).text == "Replaced a (6 bytes)."
    assert context.operations == [Write(path="a", data=b"x"), Write(path="a", data="été\n".encode())]


async def test_write_refusals_are_told() -> None:
    context = Answered(answer=lambda op: Failure(code=FailureCode.NO_SPACE, message="no space left"))
    reply = await call(tool("write_file"), context, '{"path":"a","content":""}')
    assert reply == ToolReply(text="Error: no space left (delete files that are not needed)", is_error=True)


async def edit(content: str, old: str, new: str = "new", **arguments: object) -> str:
    """The reply to an edit of a file with `content`, matched as the in-box agent does."""

    def answer(op: Operation) -> OperationResult:
        if isinstance(op, Read):
            return ReadResult(data=content.encode(), size_bytes=len(content), eof=True, sha256=None)
        assert isinstance(op, Edit)
        found = content.count(op.old)
        if found == 0:
            return Failure(code=FailureCode.NO_MATCH, message="no match")
        if op.expected_count not in (None, found):
            return Failure(code=FailureCode.MANY_MATCHES, message="many matches")
        return EditResult(replaced=found, size_bytes=9, line=content[: content.index(op.old)].count("\n") + 1)

    context = Answered(answer=answer)
    reply = await call(tool("edit_file"), context, json.dumps({"path": "a.py", "old": old, "new": new, **arguments}))
    assert reply.is_error == (not reply.text.startswith("Edited"))
    return reply.text


CODE = "def f():\n    return 1\n\n\ndef g():\n    return 1\n"


async def test_an_edit_says_where() -> None:
    assert await edit(CODE, "def g") == "Edited a.py: 1 replacement, at line 5."
    assert await edit(CODE, "return 1", all=True) == "Edited a.py: 2 replacements, the first at line 2."


@pytest.mark.parametrize(
    ("content", "old", "why"),
    [
        (CODE, "return 1", "occurs 2 times (at lines 2, 6)"),
        (CODE, "return 2", "is not in the file"),
        (CODE, "def g():\n\treturn 1", "at line 5 differs only in white space"),
        (CODE, "  def g():", "at line 5 differs only in white space"),
        (CODE, "     5\tdef g():\n     6\t    return 1", "line numbers"),
        (CODE, "def g():\n    return 2", "first line is at line 5, but line 6 differs from the passage's line 2"),
        ("a\r\nb\r\n", "a\nb", "end with \\r\\n"),
        ("x\n" * 20, "x\n", "occurs 20 times (at lines 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, ...)"),
    ],
)
async def test_why_a_passage_did_not_match(content: str, old: str, why: str) -> None:
    text = await edit(content, old)
    assert text.startswith("Error: a.py was not changed: ")
    assert why in text


async def test_an_edit_that_changes_nothing_is_told_without_an_operation() -> None:
    reply = await call(tool("edit_file"), Answered(answer=nothing), '{"path":"a","old":"x","new":"x"}')
    assert "nothing to change" in reply.text


async def test_other_refusals_of_an_edit_are_told_as_they_are() -> None:
    context = Answered(answer=lambda op: Failure(code=FailureCode.NOT_FOUND, message="no such file: a"))
    reply = await call(tool("edit_file"), context, '{"path":"a","old":"x","new":"y"}')
    assert reply.text == "Error: no such file: a (check the path with list_dir)"
    assert len(context.operations) == 1
