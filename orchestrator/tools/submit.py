"""submit: the answer, for tasks that ask for one. The record is where it is found again."""

from collections.abc import Mapping, Sequence

from orchestrator.interfaces import EXCLUSIVE, CallContext, Order
from orchestrator.models import Arguments, CallRecord, JsonValue, ToolReply, canonical_json
from orchestrator.tools.arguments import parse, text_of
from orchestrator.tools.texts import error, plural, reply

MAX_FILES = 1000


class SubmitTool:
    name = "submit"
    description = (
        "Hand in the answer: a list of file paths, or a text, as the task asks. It is recorded, not judged now; "
        "submitting again replaces the earlier answer."
    )
    schema: Mapping[str, JsonValue] = {
        "type": "object",
        "properties": {
            "files": {
                "type": "array",
                "items": {"type": "string"},
                "description": "Paths relative to the workspace.",
                "maxItems": MAX_FILES,
            },
            "answer": {"type": "string", "description": "Where the task asks for a text."},
        },
        "additionalProperties": False,
    }

    def order(self, arguments: Arguments) -> Order:
        return EXCLUSIVE

    async def run(self, context: CallContext, arguments: Arguments) -> ToolReply:
        """The journaled value makes the box know the call, as it knows all others; the reply tells nothing of a reward."""
        limits = context.task.limits
        if not arguments:
            return error("give files (a list of paths) or answer (a text)", limits)
        await context.once(canonical_json(dict(arguments)).encode("utf-8"))
        parts = [plural(len(files), "file")] if isinstance(files := arguments.get("files"), list) else []
        if "answer" in arguments:
            parts.append("an answer")
        return reply(f"Recorded: {' and '.join(parts)}. Submitting again replaces it.", limits)


def submitted(records: Sequence[CallRecord]) -> tuple[str, ...] | None:
    """What was last submitted successfully: the files, or where none were given the answer's lines that are not blank.

    None when nothing was. `records` are a rollout's, in any order.
    """
    accepted = [record for record in records if record.tool == SubmitTool.name and not record.reply.is_error]
    if not accepted:
        return None
    arguments = parse(SubmitTool(), max(accepted, key=lambda record: record.sequence).arguments_text)
    if isinstance(arguments, ToolReply):
        return None
    files = arguments.get("files")
    if isinstance(files, list):
        return tuple(str(path) for path in files)
    return tuple(line.strip() for line in text_of(arguments, "answer").splitlines() if line.strip())
