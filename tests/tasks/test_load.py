"""Task files: every field is read, every mistake is told with file, line, field and what to write."""

import json
from dataclasses import fields
from pathlib import Path

import pytest

from orchestrator import models
from orchestrator.errors import Misconfigured
from orchestrator.models import (
    AnswerSource,
    FileF1Spec,
    HiddenFile,
    Limits,
    Network,
    RewardRange,
    Task,
    TaskId,
)
from orchestrator.tasks import load
from orchestrator.tasks.load import LimitsRow, TaskRow, load_tasks

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ROW = {
    "id": "repo__1",
    "repo": "../repo",
    "commit": COMMIT,
    "image": "tiltyard/python:3.11",
    "prompt": "Find the files.",
    "grader": "file_f1",
    "file_f1": {"source": "submitted", "gold": ["a.py"]},
}


def file(folder: Path, *rows: object, name: str = "tasks.jsonl") -> Path:
    path = folder / name
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_the_smallest_row(tmp_path: Path) -> None:
    task = load_tasks(file(tmp_path, ROW))[TaskId("repo__1")]
    assert task == Task(
        id=TaskId("repo__1"),
        repo=str(tmp_path.parent / "repo"),
        commit=COMMIT,
        image="tiltyard/python:3.11",
        prompt="Find the files.",
        grader="file_f1",
        file_f1=FileF1Spec(source=AnswerSource.SUBMITTED, gold=("a.py",)),
    )


def test_every_field(tmp_path: Path) -> None:
    row = {
        **ROW,
        "setup": ["pip install -e ."],
        "gold_patch": "--- a\n+++ b\n",
        "tests": {
            "hidden": [{"path": "tests/test_a.py", "text": "def test(): ..."}],
            "fail_to_pass": ["tests/test_a.py::test"],
            "pass_to_pass": ["tests/test_a.py::other"],
            "command": ["pytest", "-x"],
            "timeout_s": 60,
            "rebuild": "make",
            "import_roots": ["src"],
            "mutants": 2,
            "written_mutants": [{"path": "tests/test_a.py", "text": "def test(): assert 0"}],
        },
        "reward": {"low": -1, "high": 2.5},
        "limits": {
            "memory_mib": 2048,
            "cpus": 2,
            "pids": 512,
            "disk_mib": 2048,
            "inodes": 100_000,
            "open_files": 1024,
            "command_timeout_s": 30.5,
            "output_bytes": 10_000,
        },
        "tools": ["shell", "submit"],
        "max_calls": 7,
        "split": "test",
        "network": {"allow": ["PyPI.org", "*.example.org"], "ports": [443]},
        "setup_network": {"allow": ["deb.debian.org"]},
        "history": "orphan",
    }
    assert {*row, "workspace"} == {field.name for field in fields(Task)}
    assert set(TaskRow.model_fields) == {field.name for field in fields(Task)}
    assert set(load.TestsRow.model_fields) == {field.name for field in fields(models.TestsSpec)}
    assert set(LimitsRow.model_fields) == {field.name for field in fields(Limits)}
    task = load_tasks(file(tmp_path, row))[TaskId("repo__1")]
    hidden = HiddenFile(path="tests/test_a.py", text="def test(): ...")
    assert task.tests == models.TestsSpec(
        hidden=(hidden,),
        fail_to_pass=("tests/test_a.py::test",),
        pass_to_pass=("tests/test_a.py::other",),
        command=("pytest", "-x"),
        timeout_s=60,
        rebuild="make",
        import_roots=("src",),
        mutants=2,
        written_mutants=(HiddenFile(path="tests/test_a.py", text="def test(): assert 0"),),
    )
    assert task.reward == RewardRange(low=-1, high=2.5)
    assert task.limits == Limits(
        memory_mib=2048,
        cpus=2,
        pids=512,
        disk_mib=2048,
        inodes=100_000,
        open_files=1024,
        command_timeout_s=30.5,
        output_bytes=10_000,
    )
    assert (task.setup, task.gold_patch) == (("pip install -e .",), "--- a\n+++ b\n")
    assert (task.tools, task.max_calls, task.split, task.network, task.history) == (
        ("shell", "submit"),
        7,
        "test",
        Network(allow=("*.example.org", "pypi.org"), ports=(443,)),
        "orphan",
    )
    assert task.setup_network == Network(allow=("deb.debian.org",))


IMAGED = {name: value for name, value in ROW.items() if name not in ("repo", "commit")} | {
    "workspace": "image:/testbed"
}


def test_a_repository_inside_the_image_needs_no_repo_and_no_commit(tmp_path: Path) -> None:
    (task,) = load_tasks(file(tmp_path, IMAGED)).values()
    assert (task.repo, task.commit, task.workspace, task.workdir) == ("", "", "image:/testbed", "/testbed")
    (task,) = load_tasks(file(tmp_path, {**IMAGED, "commit": "c" * 40})).values()
    assert task.commit == "c" * 40
    (task,) = load_tasks(file(tmp_path, ROW)).values()
    assert (task.workspace, task.workdir) == ("", "/workspace")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"repo": "r"}, "repo and workspace are both given; leave one out"),
        *(
            ({"workspace": wrong}, "workspace: write image: and the repository's absolute path")
            for wrong in (
                "/testbed",
                "image:testbed",
                "image:/",
                "image:/a/../b",
                "image:/tmp/x",
                "image:/a//b",
                "image:/a/",
            )
        ),
    ],
)
def test_an_image_workspace_of_another_form_is_told(tmp_path: Path, changed: dict[str, str], words: str) -> None:
    with pytest.raises(Misconfigured, match=words):
        load_tasks(file(tmp_path, {**IMAGED, **changed}))


@pytest.mark.parametrize(
    ("repo", "is_"),
    [
        ("https://example.org/a/b.git", "https://example.org/a/b.git"),
        ("file:///srv/repo", "file:///srv/repo"),
        ("ssh://git@example.org/a", "ssh://git@example.org/a"),
        ("git@example.org:a/b.git", "git@example.org:a/b.git"),
        ("/srv/repo", "/srv/repo"),
        ("repo", "{folder}/repo"),
        ("./deep/../repo", "{folder}/repo"),
        ("odd:name", "{folder}/odd:name"),
    ],
)
def test_only_local_paths_are_resolved_and_against_the_file(tmp_path: Path, repo: str, is_: str) -> None:
    (task,) = load_tasks(file(tmp_path, {**ROW, "repo": repo})).values()
    assert task.repo == is_.format(folder=tmp_path)


def test_order_blank_lines_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = file(tmp_path, {**ROW, "id": "b"}, "", "  ", {**ROW, "id": "a", "prompt": "\u2028 one\x85line"})
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert list(load_tasks(path)) == ["b", "a"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"id": ""}, "id: "),
        ({"id": "a b"}, "id: "),
        ({"commit": "main"}, "commit: must be a full hash of 40 or 64 lower-case hex digits; `git rev-parse"),
        ({"commit": COMMIT.upper()}, "commit: must be a full hash"),
        ({"commit": COMMIT[:12]}, "commit: must be a full hash"),
        ({"prompt": ""}, "prompt: "),
        ({"prompts": "x"}, "prompts: there is no such field; did you mean prompt?"),
        ({"zzz": 1}, "zzz: there is no such field; there are: id, repo"),
        ({"limits": {"memory": 4}}, "limits.memory: there is no such field; did you mean memory_mib?"),
        ({"limits": {"memory_mib": 1}}, "limits.memory_mib: Input should be greater than or equal to 64"),
        ({"limits": {"memory_mib": "2048"}}, "limits.memory_mib: Input should be a valid integer"),
        ({"limits": {"command_timeout_s": 601}}, "limits.command_timeout_s: "),
        ({"reward": {"low": 1, "high": 1}}, "reward: low must be below high"),
        ({"reward": {"high": "NaN"}}, "reward.high: "),
        ({"tools": ["shel"]}, "tools.0: no such tool; there are: shell, read_file"),
        ({"tools": ["shell", "shell"]}, "tools: holds a name twice"),
        ({"tools": []}, "tools: is empty; name a tool"),
        ({"max_calls": 0}, "max_calls: "),
        ({"network": "bridge"}, 'network: write "none", or {"allow": ['),
        ({"network": {"allow": []}}, "network.allow: is empty; give at least one"),
        ({"network": {"allow": ["a.org"], "ports": []}}, "network.ports: is empty; give at least one"),
        ({"network": {"allow": ["a.b"], "port": [1]}}, "network.port: there is no such field; did you mean ports?"),
        ({"network": {"allow": ["10.0.0.1"]}}, "network.allow: '10.0.0.1' looks like an address"),
        ({"setup_network": {"allow": ["a.org"]}}, "line: setup_network is given but no set-up command"),
        ({"history": "some"}, "history: Input should be 'full' or 'orphan'"),
        ({"grader": "f1"}, "grader: no grader is named 'f1'; there are: file_f1, tests"),
        ({"file_f1": None}, "grader: the grader file_f1 needs the field file_f1"),
        (
            {"file_f1": {"source": "guess", "gold": []}},
            "file_f1.source: Input should be 'final_answer', 'submitted' or",
        ),
        ({"file_f1": {"source": "submitted", "gold": ["/etc/x"]}}, "grader: file_f1.gold: '/etc/x' is no path"),
        (
            {"file_f1": {"source": "submitted", "glod": ["a"]}},
            "file_f1.glod: there is no such field; did you mean gold?",
        ),
        (
            {"tests": {"hidden": [{"path": "../x", "text": ""}], "fail_to_pass": []}},
            "tests.hidden.0.path: must be relative to the repository's root",
        ),
        (
            {"tests": {"hidden": [{"path": "x", "txt": ""}], "fail_to_pass": []}},
            "tests.hidden.0.txt: there is no such field; did you mean text?",
        ),
    ],
)
def test_a_mistake_names_file_line_field_and_fix(tmp_path: Path, change: dict[str, object], told: str) -> None:
    path = file(tmp_path, {**ROW, "id": "fine"}, {**ROW, **change})
    with pytest.raises(Misconfigured) as wrong:
        load_tasks(path)
    assert any(line.startswith(f"{path}:2: {told}") for line in wrong.value.message.splitlines()), wrong.value.message


@pytest.mark.parametrize("missing", ["id", "repo", "commit", "image", "prompt", "grader"])
def test_a_missing_field_is_told(tmp_path: Path, missing: str) -> None:
    path = file(tmp_path, {key: value for key, value in ROW.items() if key != missing})
    with pytest.raises(Misconfigured, match=f":1: {missing}: is missing; add it"):
        load_tasks(path)


@pytest.mark.parametrize("line", ["nope", "{", "[]", "3", '{"reward": {"low": NaN}}'])
def test_a_line_that_is_no_object_is_told(tmp_path: Path, line: str) -> None:
    with pytest.raises(Misconfigured, match=r"tasks\.jsonl:1: "):
        load_tasks(file(tmp_path, line))


def test_ids_are_unique(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match=r":3: id: 'repo__1' is line 1's; give each task its own"):
        load_tasks(file(tmp_path, ROW, "", ROW))


def test_many_mistakes_are_told_up_to_a_number(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured) as wrong:
        load_tasks(file(tmp_path, *["nope"] * 25))
    assert len(wrong.value.message.splitlines()) == 11
    assert wrong.value.message.endswith("and 15 more")


def test_files_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="cannot be read: No such file"):
        load_tasks(tmp_path / "none.jsonl")
    with pytest.raises(Misconfigured, match="holds no task"):
        load_tasks(file(tmp_path, ""))
    (tmp_path / "latin.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(Misconfigured, match="not UTF-8"):
        load_tasks(tmp_path / "latin.jsonl")
