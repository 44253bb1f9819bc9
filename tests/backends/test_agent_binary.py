"""Copies of the in-box agent: one per content, never changed once written."""

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from orchestrator.backends.agent_binary import install_agent
from orchestrator.errors import Misconfigured


@pytest.fixture
def source(tmp_path: Path) -> Path:
    made = tmp_path / "agent"
    made.write_bytes(b"first version")
    return made


def test_an_upgrade_leaves_the_copy_of_live_boxes_alone(source: Path, tmp_path: Path) -> None:
    first = install_agent(source, tmp_path / "state")
    before = os.stat(first)
    source.write_bytes(b"second version")
    second = install_agent(source, tmp_path / "state")
    assert second != first
    assert first.read_bytes() == b"first version"
    assert os.stat(first).st_ino == before.st_ino
    assert stat.S_IMODE(before.st_mode) == 0o755


def test_racing_installers_agree_and_leave_no_scraps(source: Path, tmp_path: Path) -> None:
    source.write_bytes(b"x" * 5_000_000)
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: install_agent(source, tmp_path / "state"), range(8)))
    assert len(found) == 1
    installed = found.pop()
    assert installed.read_bytes() == source.read_bytes()
    assert [path.name for path in installed.parent.iterdir()] == ["tiltyard-agent"]


def test_a_missing_agent_names_its_fix(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="make setup"):
        install_agent(tmp_path / "none", tmp_path / "state")
