"""Real git, real folders; engine parts are the shipped fakes."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from orchestrator.models import Task, TaskId
from orchestrator.repos.fakes import FakeImages, FakeSetup
from orchestrator.repos.templates import TemplateCache

GOLD = "the answer nobody may find\n"
"""Content of the future commit."""
CLEAN = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "GIT_CONFIG_NOSYSTEM": "1", "LC_ALL": "C"}


def soon(seconds: float = 60.0) -> float:
    return time.monotonic() + seconds


@dataclass(frozen=True)
class Repo:
    """A work tree made by plain git, with a clock of its own."""

    path: Path

    def git(self, *arguments: str, stdin: str = "", **environment: str) -> str:
        identity = ("-c", "user.name=Dev", "-c", "user.email=dev@example.org")
        command = ["git", *identity, "-C", str(self.path), *arguments]
        env = {**CLEAN, **environment}
        return subprocess.run(command, check=True, capture_output=True, text=True, input=stdin, env=env).stdout.strip()

    def commit(self, files: dict[str, str], message: str = "work", date: str = "@1600000000 +0000") -> str:
        for name, text in files.items():
            (self.path / name).parent.mkdir(parents=True, exist_ok=True)
            (self.path / name).write_text(text)
        self.git("add", "-A")
        self.git("commit", "-qm", message, "--allow-empty", GIT_AUTHOR_DATE=date, GIT_COMMITTER_DATE=date)
        return self.git("rev-parse", "HEAD")


def make_repo(path: Path) -> Repo:
    path.mkdir(parents=True)
    repo = Repo(path)
    repo.git("init", "-q", "--initial-branch=main")
    return repo


@dataclass(frozen=True)
class Origin:
    """Three commits: `base` and `middle` are history, `future` holds GOLD. Tasks ask for `middle`."""

    repo: Repo
    base: str
    middle: str
    future: str
    gold_blob: str

    @property
    def path(self) -> str:
        return str(self.repo.path)


@pytest.fixture
def origin(tmp_path: Path) -> Origin:
    repo = make_repo(tmp_path / "origin")
    base = repo.commit({"README": "one\n", "src/a.py": "a = 1\n"}, "base")
    (repo.path / "run.sh").write_text("#!/bin/sh\n")
    (repo.path / "run.sh").chmod(0o755)
    (repo.path / "link").symlink_to("src/a.py")
    middle = repo.commit({"README": "two\n"}, "middle", "@1600000100 +0000")
    future = repo.commit({"src/gold.py": GOLD}, "future", "@1600000200 +0000")
    return Origin(
        repo=repo, base=base, middle=middle, future=future, gold_blob=repo.git("rev-parse", "HEAD:src/gold.py")
    )


def make_task(
    repo: str, commit: str, *, setup: tuple[str, ...] = (), history: str = "full", image: str = "base"
) -> Task:
    return Task(
        id=TaskId("t"),
        repo=repo,
        commit=commit,
        image=image,
        prompt="",
        grader="tests",
        setup=setup,
        history=history,
    )


@pytest.fixture
def cache(tmp_path: Path) -> TemplateCache:
    return TemplateCache(tmp_path / "cache", setup=FakeSetup(), images=FakeImages())


@pytest.fixture
def mirror(tmp_path: Path, origin: Origin) -> Path:
    """A bare mirror with everything of the origin in it, the future included."""
    path = tmp_path / "mirror.git"
    origin.repo.git("clone", "-q", "--mirror", origin.path, str(path))
    return path


@pytest.fixture
def worker() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `tests.repos.worker` in a process of its own; killed at the end."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str | Path, prefix: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        command = [*prefix, sys.executable, "-m", "tests.repos.worker", *map(str, arguments)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def line_of(process: "subprocess.Popen[str]") -> str:
    """The next line that the worker says; its log is passed over."""
    assert process.stdout is not None
    while line := process.stdout.readline():
        if line.startswith("> "):
            return line[2:].strip()
    raise AssertionError(f"the worker ended early, status {process.wait()}")
