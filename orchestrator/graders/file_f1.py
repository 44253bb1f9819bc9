"""file_f1: how well a list of files fits the list that it should be (F1 of the two sets).

The answer comes from the one source that the task declares:

- `submitted`: the list of the last accepted `submit` call;
- `edited_files`: the paths of the content delta, by-products of running code left out;
- `final_answer`: the model's last text. It must be a list and nothing else: a JSON array of strings, or one path per line, each with at
  most one list mark (`-`, `*`, `+`, `1.`, `1)`) and one pair of backticks around it; blank lines are skipped; a path with white space
  needs JSON or backticks. If the text holds fenced code blocks there must be exactly one, and it alone is read. Anything else is no
  answer: guessing what prose means would reward whoever writes down the most names.

Paths are compared as canonical text (see `canonical`), case-sensitive, each once. An entry that is no path within the repository counts as
a wrong one. So does a file that does not exist. An answer of over `MAX_PER_GOLD` entries per gold file is no answer.
"""

import json
import posixpath
import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from orchestrator.errors import Misconfigured
from orchestrator.interfaces import Bench
from orchestrator.models import DEFAULT_WORKDIR, AnswerSource, Evidence, FileF1Spec, Finding, Grade, Task

MAX_PER_GOLD = 10
"""Above this F1 is under 0.19 whatever the list holds; a list of every file is not an answer."""
MAX_ANSWER_CHARACTERS = 256 * 1024
MAX_PATH_BYTES = 4096
"""Linux's PATH_MAX."""
_SHOWN = 5

_MARK = re.compile(r"(?:[-*+]|\d{1,4}[.)])\s+")
_FENCE = re.compile(r"^ {0,3}```[^\n`]*\n(.*?)^ {0,3}```[ \t]*$", re.MULTILINE | re.DOTALL)
_FENCE_MARK = re.compile(r"^ {0,3}```", re.MULTILINE)
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_BYPRODUCT_FOLDERS = frozenset({"__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis"})


class NoAnswer(ValueError):
    """There is no list to score; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Each in [0, 1]."""

    precision: float
    recall: float
    f1: float


class FileF1Grader:
    """`orchestrator.interfaces.Grader`. Touches evidence alone: no box, no clock."""

    name = "file_f1"

    def check(self, task: Task) -> None:
        """Raises Misconfigured: no gold list, or one that no answer could equal."""
        spec = _spec(task)
        bad = [path for path in spec.gold if canonical(path) is None]
        if bad:
            raise Misconfigured(
                f"file_f1.gold: {bad[0]!r} is no path within the repository: write it relative to its root, without '..'"
            )
        if not spec.gold and spec.source is AnswerSource.EDITED_FILES:
            raise Misconfigured(
                "file_f1.gold is empty with source edited_files: doing nothing would earn the top; name the files"
            )

    async def grade(self, bench: Bench) -> Grade:
        return grade_answer(_spec(bench.task), bench.evidence, bench.task.workdir)


def _spec(task: Task) -> FileF1Spec:
    if task.file_f1 is None:
        raise Misconfigured(
            'the grader file_f1 needs the field file_f1: {"source": "submitted", "gold": ["path", ...]}'
        )
    return task.file_f1


def grade_answer(spec: FileF1Spec, evidence: Evidence, workdir: str = DEFAULT_WORKDIR) -> Grade:
    """The grade of `evidence`. Pure."""
    gold, _ = distinct(spec.gold)
    try:
        entries = answer(spec.source, evidence)
        named, strange = distinct(entries, workdir)
        count = len(named) + len(strange)
        if count > MAX_PER_GOLD * max(1, len(gold)):
            raise NoAnswer(f"a list of {count} files is too long to be an answer")
    except NoAnswer as none:
        return Grade(score=0.0, passed=False, reason=str(none), sub_scores={"precision": 0.0, "recall": 0.0, "f1": 0.0})
    scores = f1(named, gold, strangers=len(strange))
    hits = len(named & gold)
    return Grade(
        score=scores.f1,
        passed=scores.f1 == 1.0,
        reason=f"{hits} of {len(gold)} files found, {count - hits} wrong ones named",
        sub_scores={"precision": scores.precision, "recall": scores.recall, "f1": scores.f1},
        findings=tuple(Finding(code="bad_path", detail=entry[:200]) for entry in sorted(strange)[:_SHOWN]),
    )


def f1(named: Collection[str], gold: Collection[str], *, strangers: int = 0) -> Scores:
    """Scores of the set `named` (and `strangers` wrong entries besides) against the set `gold`. Both empty: all 1; one empty: all 0."""
    given = len(named) + strangers
    if not given and not gold:
        return Scores(precision=1.0, recall=1.0, f1=1.0)
    hits = len(set(named) & set(gold))
    if not hits:
        return Scores(precision=0.0, recall=0.0, f1=0.0)
    return Scores(precision=hits / given, recall=hits / len(gold), f1=2 * hits / (given + len(gold)))


def canonical(path: str, workdir: str = DEFAULT_WORKDIR) -> str | None:
    """One text per file of the repository: NFC, POSIX-normalised, relative to its root. None for what is no path within it.

    A leading `./` or `workdir`, where the box has the repository, is taken off. Case, spaces and backslashes, which POSIX names may hold, stay.
    """
    path = unicodedata.normalize("NFC", path)
    path = path.removeprefix(f"{workdir}/")
    if not path or path.startswith("/") or _CONTROL.search(path) or ".." in path.split("/"):
        return None
    normal = posixpath.normpath(path)
    return None if normal == "." or len(normal.encode("utf-8")) > MAX_PATH_BYTES else normal


def distinct(entries: Iterable[str], workdir: str = DEFAULT_WORKDIR) -> tuple[set[str], set[str]]:
    """The canonical paths among `entries`, and the entries that are no path; each once."""
    named: set[str] = set()
    strange: set[str] = set()
    for entry in entries:
        path = canonical(entry, workdir)
        if path is None:
            strange.add(entry)
        else:
            named.add(path)
    return named, strange


def answer(source: AnswerSource, evidence: Evidence) -> Sequence[str]:
    """The entries of the answer as they were given. Raises NoAnswer."""
    match source:
        case AnswerSource.FINAL_ANSWER:
            return parsed(evidence.final_answer)
        case AnswerSource.SUBMITTED:
            if evidence.submitted is None:
                raise NoAnswer("nothing was submitted")
            return evidence.submitted
        case AnswerSource.EDITED_FILES:
            if evidence.truncated:
                raise NoAnswer("more files were changed than are looked at")
            return [change.path for change in evidence.changes if not _byproduct(change.path)]


def _byproduct(path: str) -> bool:
    """What running code leaves behind without anyone editing it."""
    return path.endswith(".pyc") or not _BYPRODUCT_FOLDERS.isdisjoint(path.split("/"))


def parsed(text: str) -> list[str]:
    """The list that the whole of `text` is (form: see the module). Raises NoAnswer."""
    if len(text) > MAX_ANSWER_CHARACTERS:
        raise NoAnswer("the final answer is too long to be a list of files")
    body = _unfenced(text).strip()
    if not body:
        raise NoAnswer("the final answer is empty")
    return _json_list(body) if body[0] in '[{"' else [_line(line) for line in body.splitlines() if line.strip()]


def _unfenced(text: str) -> str:
    if not _FENCE_MARK.search(text):
        return text
    blocks = _FENCE.findall(text)
    if len(blocks) != 1 or len(_FENCE_MARK.findall(text)) != 2:
        raise NoAnswer("the final answer must hold exactly one closed code block, or none")
    return str(blocks[0])


def _json_list(body: str) -> list[str]:
    try:
        items = json.loads(body)
    except (ValueError, RecursionError):
        raise NoAnswer("the final answer starts like JSON, but is not valid JSON") from None
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise NoAnswer("the final answer is JSON, but not an array of strings")
    return items


def _line(line: str) -> str:
    entry = _MARK.sub("", line.strip(), count=1) if _MARK.match(line.strip()) else line.strip()
    if len(entry) > 2 and entry[0] == entry[-1] == "`" and "`" not in entry[1:-1]:
        return entry[1:-1]
    if re.search(r"\s|`", entry):
        raise NoAnswer(f"the final answer must be a list and nothing else; this line is no path: {entry[:80]!r}")
    return entry
