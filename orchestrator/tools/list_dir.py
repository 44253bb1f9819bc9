"""list_dir: what a folder holds."""

from collections.abc import Mapping

from orchestrator.interfaces import SHARED, CallContext, Order
from orchestrator.models import Arguments, JsonValue, ToolReply
from orchestrator.operations import Entry, Failure, List, ListResult
from orchestrator.tools.arguments import text_of, whole_of
from orchestrator.tools.texts import plural, printable, refused, reply

ENTRIES = 1000
MAX_DEPTH = 5


class ListDirTool:
    name = "list_dir"
    description = "List a folder: one entry per line, folders end with /, symbolic links with @, files are followed by their size in bytes."
    schema: Mapping[str, JsonValue] = {
        "type": "object",
        "properties": {
            "path": {
                "type": "string",
                "description": "Relative to the workspace, or absolute. Default: the workspace.",
                "minLength": 1,
            },
            "depth": {
                "type": "integer",
                "description": "Levels to go down. Default: 1.",
                "minimum": 1,
                "maximum": MAX_DEPTH,
            },
        },
        "additionalProperties": False,
    }

    def order(self, arguments: Arguments) -> Order:
        return SHARED

    async def run(self, context: CallContext, arguments: Arguments) -> ToolReply:
        limits = context.task.limits
        path = text_of(arguments, "path", ".")
        result = await context.run(List(path=path, depth=whole_of(arguments, "depth", 1), limit=ENTRIES))
        if isinstance(result, Failure):
            return refused(result, limits)
        assert isinstance(result, ListResult)
        if not result.entries:
            return reply(f"[{path} is empty]", limits)
        lines = [_line(entry) for entry in result.entries]
        if result.truncated:
            lines.append(
                f"[only the first {plural(len(result.entries), 'entry').replace('entrys', 'entries')} are listed]"
            )
        return reply("\n".join(lines), limits)


def _line(entry: Entry) -> str:
    name = printable(entry.path).replace("\n", "\\n")
    match entry.kind:
        case "dir":
            return f"{name}/"
        case "symlink":
            return f"{name}@"
        case "file":
            return f"{name}  {entry.size_bytes}"
        case _:
            return f"{name}  (special file)"
