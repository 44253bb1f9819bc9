"""docs/tasks.md against the loader."""

import re
from pathlib import Path

from orchestrator.tasks.load import LimitsRow, TaskRow, TestsRow

PAGE = (Path(__file__).parent.parent.parent / "docs" / "tasks.md").read_text()
TestsRow.__test__ = False  # type: ignore[attr-defined]


def test_every_field_of_a_task_is_documented_and_nothing_else() -> None:
    fields = PAGE.partition("## Fields")[2].partition("`limits`:")[0]
    assert set(re.findall(r"^\| `([a-z_0-9]+)` \|", fields, re.MULTILINE)) == set(TaskRow.model_fields)


def test_every_limit_and_every_field_of_tests_is_named() -> None:
    assert all(f"`{name}`" in PAGE for name in LimitsRow.model_fields)
    assert all(f'"{name}"' in PAGE for name in TestsRow.model_fields)
