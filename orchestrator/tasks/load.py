"""Task files: JSONL -> tasks, every mistake told with file, line, field and what to write instead."""

import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from orchestrator.egress.names import network
from orchestrator.errors import Misconfigured
from orchestrator.graders.registry import grader
from orchestrator.models import (
    IMAGE_WORKSPACE_FORM,
    AnswerSource,
    FileF1Spec,
    HiddenFile,
    Limits,
    Network,
    RewardRange,
    Task,
    TaskId,
    TestsSpec,
)
from orchestrator.tools.registry import TABLE as TOOLS

MAX_TOLD = 10
"""Mistakes told at once."""
_REMOTE = re.compile(r"[a-z][a-z0-9+.-]*://|[^/\s]+@[^/\s]+:", re.IGNORECASE)
"""URLs and git's user@host:path; everything else is a local path."""


def _inside(path: str) -> str:
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or not pure.parts or "\x00" in path:
        raise ValueError("must be relative to the repository's root, without '..'")
    return str(pure)


def _of_an_image(workspace: str) -> str:
    if not IMAGE_WORKSPACE_FORM.fullmatch(workspace):
        raise ValueError("write image: and the repository's absolute path in the image, for example image:/testbed")
    return workspace


def _known_tool(name: str) -> str:
    if name not in TOOLS:
        raise ValueError(f"no such tool; there are: {', '.join(TOOLS)}")
    return name


def _unique(names: tuple[str, ...]) -> tuple[str, ...]:
    if not names:
        raise ValueError("is empty; name a tool, or leave the field out for all of them")
    if len(set(names)) != len(names):
        raise ValueError("holds a name twice; leave the second out")
    return names


def _allowed(names: tuple[str, ...]) -> tuple[str, ...]:
    return network(names).allow


Inside = Annotated[str, AfterValidator(_inside)]
NonEmpty = Annotated[str, Field(min_length=1)]
Positive = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
ToolName = Annotated[str, AfterValidator(_known_tool)]

_LIMITS, _TESTS = Limits(), TestsSpec(hidden=(), fail_to_pass=())
_TASK = Task(id=TaskId(""), repo="", commit="", image="", prompt="", grader="")


class _Row(BaseModel):
    """Strict: "3" is no number. Defaults are those of models.py."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class LimitsRow(_Row):
    memory_mib: Annotated[int, Field(ge=64)] = _LIMITS.memory_mib
    cpus: Annotated[float, Field(gt=0, le=1024)] = _LIMITS.cpus
    pids: Annotated[int, Field(ge=16)] = _LIMITS.pids
    disk_mib: Annotated[int, Field(ge=16)] = _LIMITS.disk_mib
    inodes: Annotated[int, Field(ge=1000)] = _LIMITS.inodes
    open_files: Annotated[int, Field(ge=64)] = _LIMITS.open_files
    command_timeout_s: Annotated[float, Field(gt=0, le=480)] = _LIMITS.command_timeout_s
    """At most 480 s: a call must end before the trainer's ten minutes (D7)."""
    output_bytes: Annotated[int, Field(ge=1024, le=512 * 1024)] = _LIMITS.output_bytes
    """At most half of what a trainer takes as a reply (1 MB)."""

    def value(self) -> Limits:
        return Limits(**self.model_dump())


class HiddenFileRow(_Row):
    path: Inside
    text: str

    def value(self) -> HiddenFile:
        return HiddenFile(path=self.path, text=self.text)


class TestsRow(_Row):
    hidden: tuple[HiddenFileRow, ...]
    fail_to_pass: tuple[NonEmpty, ...]
    pass_to_pass: tuple[NonEmpty, ...] = ()
    command: Annotated[tuple[NonEmpty, ...], Field(min_length=1)] = _TESTS.command
    timeout_s: Seconds = _TESTS.timeout_s
    rebuild: NonEmpty | None = None
    import_roots: tuple[str, ...] = _TESTS.import_roots
    mutants: Annotated[int, Field(ge=0, le=100)] = _TESTS.mutants
    written_mutants: tuple[HiddenFileRow, ...] = ()

    def value(self) -> TestsSpec:
        return TestsSpec(
            hidden=tuple(row.value() for row in self.hidden),
            fail_to_pass=self.fail_to_pass,
            pass_to_pass=self.pass_to_pass,
            command=self.command,
            timeout_s=self.timeout_s,
            rebuild=self.rebuild,
            import_roots=self.import_roots,
            mutants=self.mutants,
            written_mutants=tuple(row.value() for row in self.written_mutants),
        )


class FileF1Row(_Row):
    source: AnswerSource
    gold: tuple[str, ...]

    def value(self) -> FileF1Spec:
        return FileF1Spec(source=self.source, gold=self.gold)


class RewardRow(_Row):
    low: float = RewardRange().low
    high: float = RewardRange().high

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low >= self.high:
            raise ValueError("low must be below high")
        return self

    def value(self) -> RewardRange:
        return RewardRange(low=self.low, high=self.high)


class NetworkRow(_Row):
    allow: Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(_allowed)]
    ports: Annotated[tuple[Annotated[int, Field(ge=1, le=65_535)], ...], Field(min_length=1)] = Network().ports


def _form(value: object) -> str:
    return _LIST if isinstance(value, dict | NetworkRow) else _NONE


_NONE, _LIST = '"none"', "{allow}"
NetworkField = Annotated[
    Annotated[Literal["none"], Tag(_NONE)] | Annotated[NetworkRow, Tag(_LIST)], Discriminator(_form)
]


def _reach(field: Literal["none"] | NetworkRow) -> Network:
    return Network() if field == "none" else network(field.allow, field.ports)


def _place(repo: str, folder: Path) -> str:
    return repo if _REMOTE.match(repo) else str((folder / Path(repo).expanduser()).resolve())


class TaskRow(_Row):
    """One line of a task file; the fields are those of `orchestrator.models.Task`."""

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:/@+-]{0,199}$")]
    repo: NonEmpty | None = None
    commit: Annotated[str, Field(pattern=r"^([0-9a-f]{40}|[0-9a-f]{64})$")] | None = None
    workspace: Annotated[str, AfterValidator(_of_an_image)] | None = None
    image: NonEmpty
    prompt: NonEmpty
    grader: NonEmpty
    setup: tuple[NonEmpty, ...] = ()
    gold_patch: str | None = None
    tests: TestsRow | None = None
    file_f1: FileF1Row | None = None
    reward: RewardRow = RewardRow()
    limits: LimitsRow = LimitsRow()
    tools: Annotated[tuple[ToolName, ...], AfterValidator(_unique)] = _TASK.tools
    max_calls: Positive = _TASK.max_calls
    split: NonEmpty = _TASK.split
    network: NetworkField = "none"
    setup_network: NetworkField = "none"
    history: Literal["full", "orphan"] = "full"

    @model_validator(mode="after")
    def _set_up(self) -> Self:
        if self.setup_network != "none" and not self.setup:
            raise ValueError("setup_network is given but no set-up command; leave it out, or write setup")
        return self

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        for name in ("repo", "commit") if self.workspace is None else ():
            if getattr(self, name) is None:
                raise PydanticCustomError("missing_part", "{field}: is missing; add it", {"field": name})
        if self.workspace is not None and self.repo is not None:
            raise ValueError("repo and workspace are both given; leave one out")
        return self

    def value(self, folder: Path) -> Task:
        """The task; a relative `repo` is relative to `folder`."""
        return Task(
            id=TaskId(self.id),
            repo=_place(self.repo, folder) if self.repo else "",
            commit=self.commit or "",
            workspace=self.workspace or "",
            image=self.image,
            prompt=self.prompt,
            grader=self.grader,
            setup=self.setup,
            gold_patch=self.gold_patch,
            tests=self.tests.value() if self.tests else None,
            file_f1=self.file_f1.value() if self.file_f1 else None,
            reward=self.reward.value(),
            limits=self.limits.value(),
            tools=self.tools,
            max_calls=self.max_calls,
            split=self.split,
            network=_reach(self.network),
            setup_network=_reach(self.setup_network),
            history=self.history,
        )


def load_tasks(path: Path) -> Mapping[TaskId, Task]:
    """The tasks of a JSONL file, by id, in its order. Blank lines are skipped. Blocking.

    Raises Misconfigured with up to MAX_TOLD mistakes, one a line: `file:line: field: what is wrong, what to write`.
    """
    tasks: dict[TaskId, Task] = {}
    first_line: dict[TaskId, int] = {}
    wrong: list[str] = []
    for number, line in _lines(path):
        task, mistakes = _task(line, path.resolve().parent)
        if task is not None and task.id in tasks:
            mistakes = [f"id: {task.id!r} is line {first_line[task.id]}'s; give each task its own"]
        elif task is not None:
            tasks[task.id], first_line[task.id] = task, number
        wrong += [f"{path}:{number}: {mistake}" for mistake in mistakes]
    if wrong:
        more = f"\nand {len(wrong) - MAX_TOLD} more" if len(wrong) > MAX_TOLD else ""
        raise Misconfigured("\n".join(wrong[:MAX_TOLD]) + more)
    if not tasks:
        raise Misconfigured(f"{path} holds no task: write one JSON object per line")
    return tasks


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise Misconfigured(f"the task file {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise Misconfigured(f"the task file {path} is not UTF-8 (byte {error.start}): save it as UTF-8") from error
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, line


def _task(line: str, folder: Path) -> tuple[Task | None, list[str]]:
    """The task of one line, or what is wrong with it."""
    try:
        task = TaskRow.model_validate_json(line).value(folder)
        grader(task.grader).check(task)
    except ValidationError as error:
        return None, [_told(details) for details in error.errors()]
    except Misconfigured as error:
        return None, [f"grader: {error.message}"]
    return task, []


def _told(details: ErrorDetails) -> str:
    field = ".".join(str(part) for part in details["loc"] if part not in (_NONE, _LIST)) or "line"
    match details["type"]:
        case "missing":
            return f"{field}: is missing; add it"
        case "extra_forbidden":
            return f"{field}: there is no such field{_meant(details['loc'])}"
        case "missing_part":
            return details["msg"]
        case "too_short":
            return f"{field}: is empty; give at least one"
        case "json_invalid":
            return f"not valid JSON ({details['msg'].removeprefix('Invalid JSON: ')}); write one JSON object per line"
    if field == "commit":
        return "commit: must be a full hash of 40 or 64 lower-case hex digits; `git rev-parse NAME^{commit}` tells it"
    if details["loc"][-1:] == (_NONE,):
        return f'{field}: write "none", or {{"allow": ["pypi.org", "*.example.org"]}}'
    return f"{field}: {details['msg'].removeprefix('Value error, ')}"


_ROWS: Mapping[str, type[_Row]] = {
    "limits": LimitsRow,
    _LIST: NetworkRow,
    "tests": TestsRow,
    "file_f1": FileF1Row,
    "reward": RewardRow,
    "hidden": HiddenFileRow,
    "written_mutants": HiddenFileRow,
}


def _meant(location: Sequence[str | int]) -> str:
    """Fields that the unknown last one of `location` may have meant."""
    names = [part for part in location if isinstance(part, str)]
    row = _ROWS.get(names[-2], TaskRow) if len(names) > 1 else TaskRow
    close = get_close_matches(names[-1], list(row.model_fields), n=1)
    return f"; did you mean {close[0]}?" if close else f"; there are: {', '.join(row.model_fields)}"
