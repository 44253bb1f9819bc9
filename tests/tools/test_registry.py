"""The table of tools, and that each is a function of its arguments and its operations' results alone."""

import ast
import json
from pathlib import Path

import pytest
from jsonschema_rs import meta

from orchestrator.errors import Misconfigured
from orchestrator.models import Limits, Task
from orchestrator.tools import registry
from tests.tools.contexts import task

FOLDER = Path(registry.__file__).parent
ALLOWED = {"json", "math", "re", "collections", "dataclasses", "functools", "importlib", "typing", "orchestrator"}
"""No clock, randomness, network, process, file or environment among them."""
ALLOWED_OF_OURS = ("orchestrator.interfaces", "orchestrator.models", "orchestrator.operations", "orchestrator.tools")


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return names


def undeterministic(names: set[str]) -> set[str]:
    return {
        name
        for name in names
        if name.split(".")[0] not in ALLOWED
        or (name.startswith("orchestrator") and not name.startswith(ALLOWED_OF_OURS))
    }


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_tools_import_nothing_that_could_differ_in_a_replay(path: Path) -> None:
    assert undeterministic(imported(path) - {"orchestrator.errors"}) == set()


def test_the_walk_finds_what_it_looks_for(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text("import time\nfrom random import random\nfrom orchestrator.store import sql\nimport json\n")
    assert undeterministic(imported(bad)) == {"time", "random", "orchestrator.store"}


@pytest.mark.parametrize("name", registry.TABLE)
def test_each_row_is_a_tool_of_that_name_with_a_true_schema(name: str) -> None:
    found = registry.tool(name)
    assert found is registry.tool(name)
    assert found.name == name
    assert 20 < len(found.description) < 500
    schema = json.loads(json.dumps(found.schema))
    meta.validate(schema)
    assert schema["type"] == "object"
    assert schema["additionalProperties"] is False
    assert set(schema.get("required", [])) <= set(schema["properties"])


def test_the_default_task_has_every_tool() -> None:
    assert set(task().tools) == set(registry.TABLE)


def test_schemas_are_the_tasks_in_its_order() -> None:
    some = Task(id=task().id, repo="r", commit="c", image="i", prompt="p", grader="g", tools=("submit", "shell"))
    assert [schema["name"] for schema in registry.schemas(some)] == ["submit", "shell"]
    assert set(registry.schemas(some)[0]) == {"name", "description", "parameters"}


def test_an_unknown_name_is_a_configuration_mistake_or_the_models() -> None:
    with pytest.raises(Misconfigured, match="shell, read_file"):
        registry.tool("bash")
    reply = registry.unknown("ba\x00sh", task(Limits()))
    assert reply.is_error
    assert "the tools are: shell, read_file" in reply.text
    assert "\x00" not in reply.text
