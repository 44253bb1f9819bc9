from dataclasses import replace

import pytest

from orchestrator.models import CallKey, CallRecord, JobId, RolloutKey, ToolReply, TraceId
from orchestrator.tools.registry import tool
from orchestrator.tools.submit import submitted
from tests.tools.contexts import Answered, call, nothing

pytestmark = pytest.mark.anyio


def record(sequence: int, arguments_text: str, *, name: str = "submit", is_error: bool = False) -> CallRecord:
    return CallRecord(
        rollout=RolloutKey(job=JobId("j"), trace_id=TraceId("t")),
        sequence=sequence,
        key=CallKey(str(sequence)),
        call_id=str(sequence),
        tool=name,
        arguments_text=arguments_text,
        reply=ToolReply(text="", is_error=is_error),
        started_at=0.0,
        finished_at=0.0,
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ('{"files":["b","a"]}', "2 files"),
        ('{"files":[]}', "0 files"),
        ('{"answer":"42"}', "an answer"),
        ('{"files":["a"],"answer":"42"}', "1 file and an answer"),
    ],
)
async def test_a_submission_is_journaled_and_confirmed(arguments: str, said: str) -> None:
    context = Answered(answer=nothing)
    reply = await call(tool("submit"), context, arguments)
    assert reply == ToolReply(text=f"Recorded: {said}. Submitting again replaces it.")
    assert len(context.notes) == 1


@pytest.mark.parametrize("arguments", ["", "{}", '{"files":null}', '{"files":"a"}', '{"reward":1}'])
async def test_an_empty_or_wrong_submission_is_told(arguments: str) -> None:
    context = Answered(answer=nothing)
    assert (await call(tool("submit"), context, arguments)).is_error
    assert context.notes == []


def test_the_last_accepted_submission_counts() -> None:
    first, second = record(1, '{"files":["a","b"]}'), record(5, '{"files":["c"]}')
    assert submitted([]) is None
    assert submitted([record(1, '{"files":["x"]}', name="shell")]) is None
    assert submitted([first]) == ("a", "b")
    assert submitted([first, second]) == submitted([second, first]) == ("c",)
    assert submitted([first, replace(second, reply=ToolReply(text="", is_error=True))]) == ("a", "b")
    assert submitted([record(1, '{"files":[]}')]) == ()


def test_an_answer_counts_by_its_lines_where_no_files_are_given() -> None:
    assert submitted([record(1, '{"answer":" a.py\\n\\n b.py "}')]) == ("a.py", "b.py")
    assert submitted([record(1, '{"answer":"x","files":["a"]}')]) == ("a",)
