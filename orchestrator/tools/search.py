"""search: lines that match a regular expression."""

from collections.abc import Mapping

from orchestrator.interfaces import SHARED, CallContext, Order
from orchestrator.models import Arguments, JsonValue, ToolReply
from orchestrator.operations import Failure, Match, Search, SearchResult
from orchestrator.tools.arguments import flag_of, text_of
from orchestrator.tools.texts import plural, printable, refused, reply

MATCHES = 200


class SearchTool:
    name = "search"
    description = (
        "Search file contents with a regular expression (RE2 syntax) and return matching lines as path:line: text. "
        "Binary files and .git are passed over."
    )
    schema: Mapping[str, JsonValue] = {
        "type": "object",
        "properties": {
            "pattern": {"type": "string", "description": "Regular expression, matched within a line.", "minLength": 1},
            "path": {
                "type": "string",
                "description": "File or folder to search. Default: the workspace.",
                "minLength": 1,
            },
            "glob": {
                "type": "string",
                "description": "Only files whose path matches, such as **/*.py.",
                "minLength": 1,
            },
            "ignore_case": {"type": "boolean", "description": "Default: false."},
        },
        "required": ["pattern"],
        "additionalProperties": False,
    }

    def order(self, arguments: Arguments) -> Order:
        return SHARED

    async def run(self, context: CallContext, arguments: Arguments) -> ToolReply:
        limits = context.task.limits
        result = await context.run(
            Search(
                pattern=text_of(arguments, "pattern"),
                path=text_of(arguments, "path", "."),
                glob=text_of(arguments, "glob") or None,
                ignore_case=flag_of(arguments, "ignore_case"),
                limit=MATCHES,
            )
        )
        if isinstance(result, Failure):
            return refused(result, limits)
        assert isinstance(result, SearchResult)
        if not result.matches:
            return reply(f"[no matches in {plural(result.files_searched, 'file')}]", limits)
        lines = [_line(match) for match in result.matches]
        if result.truncated:
            lines.append(
                f"[only the first {plural(len(lines), 'matching line')} are shown; narrow the pattern, the path or the glob]"
            )
        return reply("\n".join(lines), limits)


def _line(match: Match) -> str:
    path, text = (printable(part).replace("\n", "\\n") for part in (match.path, match.text))
    return f"{path}:{match.line}: {text}"
