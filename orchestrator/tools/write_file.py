"""write_file: create a file or replace its content."""

from collections.abc import Mapping

from orchestrator.interfaces import EXCLUSIVE, CallContext, Order
from orchestrator.models import Arguments, JsonValue, ToolReply
from orchestrator.operations import Failure, Write, WriteResult
from orchestrator.tools.arguments import text_of
from orchestrator.tools.texts import plural, refused, reply


class WriteFileTool:
    name = "write_file"
    description = (
        "Create a file with this content, or replace the whole content of an existing one. "
        "Missing folders are made; an existing file keeps its mode. To change a part of a file use edit_file."
    )
    schema: Mapping[str, JsonValue] = {
        "type": "object",
        "properties": {
            "path": {"type": "string", "description": "Relative to the workspace, or absolute.", "minLength": 1},
            "content": {"type": "string", "description": "The file's whole content, as UTF-8."},
        },
        "required": ["path", "content"],
        "additionalProperties": False,
    }

    def order(self, arguments: Arguments) -> Order:
        return EXCLUSIVE

    async def run(self, context: CallContext, arguments: Arguments) -> ToolReply:
        path = text_of(arguments, "path")
        result = await context.run(Write(path=path, data=text_of(arguments, "content").encode("utf-8")))
        if isinstance(result, Failure):
            return refused(result, context.task.limits)
        assert isinstance(result, WriteResult)
        done = "Created" if result.created else "Replaced"
        return reply(f"{done} {path} ({plural(result.size_bytes, 'byte')}).", context.task.limits)
