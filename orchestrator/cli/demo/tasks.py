"""The demo's two tasks, made from two releases of a published pure-Python package; nothing of it is committed here."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from orchestrator.cli.demo import measure, repository
from orchestrator.cli.demo.releases import Release, SourceFile, fetch, unpack
from orchestrator.interfaces import SandboxBackend, Templates
from orchestrator.models import JsonValue, Task, TaskId

PROJECT = "boltons"
HISTORY = (
    ("21.0.0", "65e70a79a731a7fe6e98592ecfb5ccf2115873d01dbc576079874629e5c90f13"),
    ("23.0.0", "8c50a71829525835ca3c849c7ed2511610c972b4dddfcd41a4a5447222beb4b0"),
    ("23.1.1", "d2cb2fa83cf2ebe791be1e284183e8a43a1031355156a968f8e0a333ad2448fc"),
    ("24.0.0", "7153feccaea1ff2e1472f68d4b57fadb796a2ee49d29f638f1c9cd8fb5ebd916"),
)
"""Earlier releases, the last being what the agent starts from. Hashes of the published source archives."""
NEW = ("24.1.0", "4a49b7d57ee055b83a458c8682a2a6f199d263a8aa517098bda9bab813554b87")
HIDDEN = ("tests/test_fileutils.py", "tests/test_iterutils.py", "tests/test_typeutils.py")
"""The new release's test files that its source change is about."""
SIBLING = ("tests/test_typeutils.py", "copy.copy(test)", "copy.copy(NOT_SET)")
"""That file states no literal that could be altered, so its must-fail sibling is written by hand: it expects the copy of another sentinel."""
IMAGE = "tiltyard/python:3.11"
TESTS_TASK = "boltons-tests"
FILES_TASK = "boltons-files"

PROMPT = (
    "boltons is a library of utilities. Three things are missing: iter_find_files() should take a max_depth, "
    "research() should take an enter callback, and sentinels made by make_sentinel() should survive copy.copy(). "
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What the releases hold: the upstream repository (its future included), what changes in the library itself (`gold`, path -> text),
    and which of those files the hidden tests are about (`answer`)."""

    repo: Path
    base: str
    future: str
    gold: Mapping[str, str]
    answer: tuple[str, ...]
    all_files: tuple[str, ...]
    hidden: Mapping[str, str]


def fetch_source(folder: Path) -> Source:
    """Download (once), unpack and lay down the repository. Raises Misconfigured with the fix. Blocking."""
    unpacked = [
        (version, unpack(fetch(Release(project=PROJECT, version=version, sha256=digest), folder / "archives")))
        for version, digest in (*HISTORY, NEW)
    ]
    commits = repository.build(folder / "upstream", unpacked)
    old, new = (_texts(files) for _, files in unpacked[-2:])
    gold = {path: text for path, text in new.items() if _library(path) and old.get(path) != text}
    return Source(
        repo=folder / "upstream",
        base=commits[-2],
        future=commits[-1],
        gold=gold,
        answer=tuple(sorted(path for path in gold if _tested_by(path) in HIDDEN)),
        all_files=tuple(path for path in old if _library(path)),
        hidden={path: new[path] for path in HIDDEN},
    )


def _texts(files: tuple[SourceFile, ...]) -> dict[str, str]:
    return {file.path: file.data.decode("utf-8", "replace") for file in files}


def _library(path: str) -> bool:
    return path.startswith("boltons/") and path.endswith(".py")


def _tested_by(path: str) -> str:
    return "tests/test_" + path.removeprefix("boltons/")


async def measured_ids(
    backend: SandboxBackend, templates: Templates, source: Source, image: str, deadline: float
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(fail_to_pass, pass_to_pass) of the hidden tests, found by running them in two throw-away boxes."""
    probe = Task(
        id=TaskId("measure"), repo=str(source.repo), commit=source.base, image=image, prompt="", grader="file_f1"
    )
    template = await templates.template(probe, deadline=deadline)
    base = await measure.outcomes(backend, template, source.hidden, HIDDEN)
    gold = await measure.outcomes(backend, template, {**source.hidden, **source.gold}, HIDDEN)
    return measure.split_ids(base, gold)


def task_rows(
    source: Source, image: str, fail_to_pass: tuple[str, ...], pass_to_pass: tuple[str, ...]
) -> list[dict[str, JsonValue]]:
    """The two rows of the task file."""
    common: dict[str, JsonValue] = {"repo": str(source.repo), "commit": source.base, "image": image, "max_calls": 40}
    tests: dict[str, JsonValue] = {
        "hidden": [{"path": path, "text": text} for path, text in source.hidden.items()],
        "fail_to_pass": [*fail_to_pass],
        "pass_to_pass": [*pass_to_pass],
        "written_mutants": [{"path": SIBLING[0], "text": source.hidden[SIBLING[0]].replace(*SIBLING[1:])}],
        "timeout_s": 120,
    }
    return [
        {
            "id": TESTS_TASK,
            **common,
            "prompt": PROMPT + "Implement them.",
            "grader": "tests",
            "tests": tests,
        },
        {
            "id": FILES_TASK,
            **common,
            "prompt": PROMPT + "Submit the list of files below boltons/ that must change for it.",
            "grader": "file_f1",
            "file_f1": {"source": "submitted", "gold": [*source.answer]},
        },
    ]


def write_tasks(path: Path, rows: list[dict[str, JsonValue]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
