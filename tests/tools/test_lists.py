"""list_dir, search."""

from functools import partial

import pytest

from orchestrator.models import ToolReply
from orchestrator.operations import (
    Entry,
    Failure,
    FailureCode,
    List,
    ListResult,
    Match,
    Operation,
    OperationResult,
    Search,
    SearchResult,
)
from orchestrator.tools.registry import tool
from tests.tools.contexts import Answered, call

pytestmark = pytest.mark.anyio

ENTRIES = (
    Entry(path="a.py", kind="file", size_bytes=12, mode=0o644),
    Entry(path="evil\nname", kind="file", size_bytes=0, mode=0o644),
    Entry(path="link", kind="symlink", size_bytes=1, mode=0o777),
    Entry(path="pipe", kind="other", size_bytes=0, mode=0o644),
    Entry(path="src", kind="dir", size_bytes=4096, mode=0o755),
)


async def test_a_folder_is_listed_one_entry_a_line() -> None:
    context = Answered(answer=lambda op: ListResult(entries=ENTRIES, truncated=False))
    reply = await call(tool("list_dir"), context, "")
    assert reply.text.split("\n") == ["a.py  12", "evil\\nname  0", "link@", "pipe  (special file)", "src/"]
    assert context.operations == [List(path=".", depth=1, limit=1000)]


def give(result: OperationResult, op: Operation) -> OperationResult:
    return result


async def test_a_cut_list_says_so() -> None:
    for count, words in ((5, "first 5 entries"), (1, "first 1 entry ")):
        cut = ListResult(entries=ENTRIES[:count], truncated=True)
        context = Answered(answer=partial(give, cut))
        assert words in (await call(tool("list_dir"), context, '{"path":"src","depth":3}')).text
        assert context.operations == [List(path="src", depth=3, limit=1000)]


async def test_an_empty_folder_and_a_refusal() -> None:
    empty = Answered(answer=lambda op: ListResult(entries=(), truncated=False))
    assert (await call(tool("list_dir"), empty, "{}")) == ToolReply(text="[. is empty]")
    refusing = Answered(answer=lambda op: Failure(code=FailureCode.NOT_A_DIRECTORY, message="not a directory: a.py"))
    assert (await call(tool("list_dir"), refusing, '{"path":"a.py"}')).is_error


async def test_matches_are_shown_with_file_and_line() -> None:
    found = (Match(path="a.py", line=3, text="def f():"), Match(path="b\n.py", line=1, text="f(\x00)"))
    context = Answered(answer=lambda op: SearchResult(matches=found, truncated=False, files_searched=9))
    reply = await call(tool("search"), context, '{"pattern":"f\\\\(","glob":"**/*.py","ignore_case":true}')
    assert reply.text == "a.py:3: def f():\nb\\n.py:1: f(\\x00)"
    assert context.operations == [Search(pattern="f\\(", glob="**/*.py", ignore_case=True, limit=200)]


async def test_no_match_a_cut_and_a_bad_pattern() -> None:
    none = Answered(answer=lambda op: SearchResult(matches=(), truncated=False, files_searched=1))
    assert (await call(tool("search"), none, '{"pattern":"x"}')) == ToolReply(text="[no matches in 1 file]")
    one = Match(path="a", line=1, text="x")
    cut = Answered(answer=lambda op: SearchResult(matches=(one,) * 200, truncated=True, files_searched=7))
    assert "only the first 200 matching lines are shown" in (await call(tool("search"), cut, '{"pattern":"x"}')).text
    bad = Answered(answer=lambda op: Failure(code=FailureCode.BAD_PATTERN, message="missing closing )"))
    reply = await call(tool("search"), bad, '{"pattern":"("}')
    assert reply.is_error
    assert "RE2" in reply.text
