"""Table of tools: name -> where its class is, imported when first asked for."""

from collections.abc import Mapping
from functools import cache
from importlib import import_module

from orchestrator.errors import Misconfigured
from orchestrator.interfaces import Tool
from orchestrator.models import JsonValue, Task, ToolReply
from orchestrator.tools.texts import error

FunctionSchema = Mapping[str, JsonValue]

TABLE = {
    "shell": "orchestrator.tools.shell:ShellTool",
    "read_file": "orchestrator.tools.read_file:ReadFileTool",
    "write_file": "orchestrator.tools.write_file:WriteFileTool",
    "edit_file": "orchestrator.tools.edit_file:EditFileTool",
    "list_dir": "orchestrator.tools.list_dir:ListDirTool",
    "search": "orchestrator.tools.search:SearchTool",
    "submit": "orchestrator.tools.submit:SubmitTool",
}


@cache
def tool(name: str) -> Tool:
    """The tool of that name. Raises Misconfigured: a task names a tool that does not exist (a model's wrong name: see `unknown`)."""
    try:
        module, _, attribute = TABLE[name].partition(":")
    except KeyError:
        raise Misconfigured(f"no tool is named {name!r}; there are: {', '.join(TABLE)}") from None
    made: Tool = getattr(import_module(module), attribute)()
    return made


def unknown(name: str, task: Task) -> ToolReply:
    """What the model is told when `name` is not one of the task's tools."""
    return error(f"there is no tool named {name!r} here; the tools are: {', '.join(task.tools)}", task.limits)


def schema(name: str) -> FunctionSchema:
    """One tool as `{"name", "description", "parameters"}`: the `function` part of a dataset row's tool."""
    found = tool(name)
    return {"name": found.name, "description": found.description, "parameters": dict(found.schema)}


def schemas(task: Task) -> list[FunctionSchema]:
    """The task's tools, in its order. Raises Misconfigured for a name that is not in the table."""
    return [schema(name) for name in task.tools]
