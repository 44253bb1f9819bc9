"""Overlay's work folders without root: what cannot be removed is used again."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from orchestrator.repos import folders, mounts
from orchestrator.repos.works import WorkPool
from tests.needs import needs

USER = 12345


@contextmanager
def as_user(uid: int) -> Iterator[None]:
    """With that user's rights, and none of root's."""
    os.setegid(uid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


@contextmanager
def mounted(place: Path) -> Iterator[Path]:
    """As the engine mounts a box's volume."""
    mounts.overlay(place / "merged", lowers=[place / "lower"], upper=place / "upper", work=place / "work")
    try:
        yield place / "merged"
    finally:
        mounts.unmount(place / "merged")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for name in ("lower", "upper", "merged"):
        (tmp_path / name).mkdir()
    (tmp_path / "lower" / "file").touch()
    for parent in tmp_path.parents[:2]:
        parent.chmod(parent.stat().st_mode & 0o7777 | 0o055)
    for path in (tmp_path, *tmp_path.rglob("*")):
        os.chown(path, USER, USER)
    return tmp_path


@needs("root")
def test_a_work_folder_that_root_wrote_in_is_kept_and_used_again(place: Path) -> None:
    pool = WorkPool(place / "works")
    with as_user(USER):
        pool.take(place / "work")
    with mounted(place) as merged:
        (merged / "file").unlink()
    left = os.listdir(place / "work" / "work")
    assert left
    with as_user(USER):
        with pytest.raises(OSError, match=r"not empty|denied"):
            folders.remove_tree(place / "work")  # positive control
        pool.give(place / "work")
        assert not (place / "work").exists()
        pool.take(place / "work")
    assert os.listdir(place / "works") == []
    (place / "upper" / "file").unlink()
    with mounted(place) as merged:
        (merged / "file").write_text("as new")
    assert not set(left) & set(os.listdir(place / "work" / "work"))


def test_a_work_folder_that_can_be_removed_is(tmp_path: Path) -> None:
    pool = WorkPool(tmp_path / "works")
    pool.take(tmp_path / "work")
    (tmp_path / "work" / "work").mkdir(mode=0)
    pool.give(tmp_path / "work")
    pool.give(tmp_path / "work")
    assert os.listdir(tmp_path) == []
