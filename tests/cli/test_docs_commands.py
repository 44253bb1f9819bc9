"""Commands, options and targets that the documents name are there; the README's first task is one."""

import re
from pathlib import Path

import pytest
import typer.main
from typer.core import TyperGroup as Group

from orchestrator.cli.main import app
from orchestrator.tasks.load import load_tasks

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r"(?:^|[`/ ])tiltyard ((?:[a-z]+|--[a-z-]+)(?: [^`#|&\n]*)?)", re.MULTILINE)
COMMANDS = {"serve", "demo", "deploy", "doctor", "sweep", "rollouts", "token"}
"""Prose says "tiltyard is", too."""


def mistakes(text: str) -> list[str]:
    """Of the commands of `text`: each that has no such option or subcommand."""
    root = typer.main.get_command(app)
    assert isinstance(root, Group)
    assert set(root.commands) == COMMANDS
    found = []
    for line in COMMAND.findall(text):
        words = line.split()
        if words[0] not in COMMANDS:
            continue
        command = root.commands[words[0]]
        if isinstance(command, Group) and len(words) > 1 and words[1] in command.commands:
            command = command.commands[words[1]]
        known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        found += [f"{line}: {word}" for word in re.findall(r"(?<!\S)--[a-z-]+", line) if word not in known]
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_option_of_a_command_is_one(page: Path) -> None:
    assert mistakes(page.read_text(encoding="utf-8")) == []


def test_an_option_that_is_none_is_seen() -> None:
    assert mistakes("run `tiltyard serve --job x` and\n    .venv/bin/tiltyard rollouts list --jobs x # a list") == [
        "serve --job x: --job",
        "rollouts list --jobs x : --jobs",
    ]


def test_every_target_is_one() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {
        name
        for page in PAGES
        for name in re.findall(r"(?:^    |`)make ([a-z-]+)", page.read_text("utf-8"), re.MULTILINE)
    }
    assert {"demo", "test"} <= named <= targets


def test_the_first_task_of_the_readme_is_one(tmp_path: Path) -> None:
    row = re.search(r"<<END\n(.*)\nEND\n", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert row
    text = row[1].replace("$PWD", str(tmp_path)).replace("$(git rev-parse HEAD)", "a" * 40)
    (tmp_path / "first.jsonl").write_text(text.replace("\\\\", "\\") + "\n")
    assert list(load_tasks(tmp_path / "first.jsonl")) == ["first"]
