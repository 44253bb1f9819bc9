"""Paths that a model may make long, many and odd: the rollout is still graded, and no tool's answer costs it its box."""

from collections.abc import Sequence

import pytest

from orchestrator.operations import Delta, DeltaResult, Glob, GlobResult, List, ListResult, Search, SearchResult
from tests.agent.conftest import Box
from tests.needs import needs

pytestmark = [pytest.mark.anyio, needs("root")]

DEEP = """
import os, sys
os.chdir(sys.argv[1])
for _ in range(int(sys.argv[2])):
    os.mkdir(sys.argv[3] * 250)
    os.chdir(sys.argv[3] * 250)
for number in range(int(sys.argv[4])):
    open(f"found-{number}", "w").write("needle")
"""


async def dig(box: Box, depth: int, letter: str, files: int) -> None:
    argv: Sequence[str] = ("python3", "-c", DEEP, str(box.workspace), str(depth), letter, str(files))
    done = await box.exec(*argv)
    assert done.exit_code == 0, done


async def delta(box: Box) -> DeltaResult:
    result = await box.own(Delta(root=str(box.workspace), manifest={}))
    assert isinstance(result, DeltaResult), result
    return result


async def test_a_path_that_no_operation_can_name_makes_the_delta_incomplete(box: Box) -> None:
    await dig(box, 15, "a", 1)  # below what the agent's own operations take: listed
    whole = await delta(box)
    assert (len(whole.changes), whole.truncated) == (1, False)
    await dig(box, 100, "b", 1)
    cut = await delta(box)
    assert (len(cut.changes), cut.truncated) == (1, True)


async def test_a_delta_of_many_long_paths_stays_within_what_a_reply_may_be(box: Box) -> None:
    await dig(box, 15, "\x01", 3000)  # six bytes each in JSON: 67 MB
    found = await delta(box)
    assert found.truncated
    assert 1000 < len(found.changes) < 3000


async def test_tools_answer_about_the_deepest_paths_there_can_be(box: Box) -> None:
    await dig(box, 120, "c", 1)
    globbed = await box.run(Glob(pattern="**/found-0"))
    assert isinstance(globbed, GlobResult)
    assert globbed.paths[0].endswith("found-0")
    listed = await box.run(List(path=".", depth=128))
    assert isinstance(listed, ListResult)
    assert listed.truncated  # by the text of its paths
    assert len(listed.entries) > 70
    searched = await box.run(Search(pattern="needle"))
    assert isinstance(searched, SearchResult)
    assert [match.text for match in searched.matches] == ["needle"]
