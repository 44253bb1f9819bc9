"""A git repository whose commits are the releases of a package, oldest first."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from git import Git, Repo

from orchestrator.cli.demo.releases import SourceFile

DATE = "2024-01-01T00:00:00+00:00"
PLAIN_GIT = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_AUTHOR_NAME": "tiltyard demo",
    "GIT_AUTHOR_EMAIL": "demo@localhost",
    "GIT_COMMITTER_NAME": "tiltyard demo",
    "GIT_COMMITTER_EMAIL": "demo@localhost",
    "GIT_AUTHOR_DATE": DATE,
    "GIT_COMMITTER_DATE": DATE,
}
"""Fixed names and dates, so that the same releases give the same commit ids on every machine."""


def build(target: Path, releases: Sequence[tuple[str, Sequence[SourceFile]]]) -> tuple[str, ...]:
    """Write one commit per (version, files) into a new repository at `target`; returns the commit ids in order."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    commits: list[str] = []
    Git(target).init("--quiet", "--template=", "--initial-branch=main")
    with Repo(target) as repo:
        repo.git.update_environment(**PLAIN_GIT)
        for version, files in releases:
            _replace_tree(target, files)
            repo.git.add("--all", "--force")
            repo.git.commit("--quiet", "--message", f"Release {version}")
            commits.append(repo.git.rev_parse("HEAD"))
    return tuple(commits)


def _replace_tree(root: Path, files: Sequence[SourceFile]) -> None:
    for entry in root.iterdir():
        if entry.name != ".git":
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    for file in files:
        path = root / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.data)
        path.chmod(0o755 if file.executable else 0o644)
