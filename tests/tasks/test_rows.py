"""Dataset rows show the model its task, and nothing of the solution."""

import json
from pathlib import Path

from orchestrator import models
from orchestrator.models import AnswerSource, FileF1Spec, HiddenFile, Task, TaskId
from orchestrator.tasks.rows import dataset_row, write_rows

TASK = Task(
    id=TaskId("t1"),
    repo="/srv/SECRET-repo",
    commit="SECRET-commit",
    image="SECRET-image",
    prompt="Mend it.",
    grader="tests",
    setup=("SECRET-setup",),
    gold_patch="SECRET-patch",
    tests=models.TestsSpec(
        hidden=(HiddenFile(path="SECRET.py", text="SECRET-text"),),
        fail_to_pass=("SECRET::id",),
        pass_to_pass=("SECRET::other",),
        rebuild="SECRET-rebuild",
    ),
    file_f1=FileF1Spec(source=AnswerSource.SUBMITTED, gold=("SECRET-gold.py",)),
    tools=("shell", "submit"),
)


def test_a_row_is_of_the_trainers_shape() -> None:
    row = json.loads(json.dumps(dataset_row(TASK)))
    assert set(row) == {"messages", "tools", "parallel_tool_calls", "task_id"}
    assert row["messages"] == [{"role": "user", "content": "Mend it."}]
    assert row["task_id"] == "t1"
    assert row["parallel_tool_calls"] is True
    assert [tool["function"]["name"] for tool in row["tools"]] == ["shell", "submit"]
    for tool in row["tools"]:
        assert tool["type"] == "function"
        assert set(tool["function"]) == {"name", "description", "parameters"}
        assert tool["function"]["parameters"]["type"] == "object"


def test_a_developers_message_comes_first_and_schemas_can_be_given() -> None:
    row = dataset_row(TASK, tools=[{"name": "shell", "description": "d", "parameters": {}}], developer="Be brief.")
    assert row["messages"] == [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Mend it."}]
    assert row["tools"] == [{"type": "function", "function": {"name": "shell", "description": "d", "parameters": {}}}]


def test_no_row_holds_anything_of_the_solution(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [TASK, TASK])
    text = (tmp_path / "rows.jsonl").read_text()
    assert len(text.splitlines()) == 2
    assert "SECRET" not in text
    assert "SECRET" in repr(TASK)
