"""Dataset rows for the trainer: what the model sees of a task, and nothing of its solution."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from orchestrator.models import JsonValue, Task
from orchestrator.tools.registry import FunctionSchema, schemas


def dataset_row(
    task: Task, *, tools: Sequence[FunctionSchema] | None = None, developer: str = ""
) -> dict[str, JsonValue]:
    """One row in the shape of reinforcement fine-tuning: `messages` (the prompt last, as the user's), `tools`, and `task_id`.

    `tools` stands in for the task's plain schemas (with a task handle in them, say); `developer` is an instruction before the prompt.
    Gold, hidden tests and test ids are never part of it.
    """
    messages: list[JsonValue] = [{"role": "developer", "content": developer}] if developer else []
    messages.append({"role": "user", "content": task.prompt})
    return {
        "messages": messages,
        "tools": [{"type": "function", "function": dict(each)} for each in (schemas(task) if tools is None else tools)],
        "parallel_tool_calls": True,
        "task_id": task.id,
    }


def write_rows(path: Path, tasks: Iterable[Task]) -> None:
    """A JSONL dataset of plain rows. Blocking."""
    path.write_text(
        "".join(json.dumps(dataset_row(task), ensure_ascii=False) + "\n" for task in tasks), encoding="utf-8"
    )
