"""What each connection promises, and the words for what goes wrong."""

import sqlite3
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from orchestrator.store.engine import Role, open_engine, words
from orchestrator.store.migrate import migrate

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(("role", "synchronous", "query_only"), [("quick", 1, 0), ("durable", 2, 0), ("reader", 2, 1)])
async def test_durable_means_fsync_and_readers_cannot_write(
    tmp_path: Path, role: Role, synchronous: int, query_only: int
) -> None:
    """SQLite numbers: synchronous 1 is NORMAL (no fsync per commit in WAL), 2 is FULL."""
    path = tmp_path / "record.db"
    migrate(path, busy_timeout_s=1)
    engine = open_engine(path, role, busy_timeout_s=3)
    async with engine.connect() as connection:
        for pragma, value in (("synchronous", synchronous), ("query_only", query_only), ("busy_timeout", 3000)):
            assert (await connection.exec_driver_sql(f"PRAGMA {pragma}")).scalar() == value
        insert = connection.exec_driver_sql("INSERT INTO taints VALUES ('j', 't', 'r')")
        if query_only:
            with pytest.raises(OperationalError, match="readonly"):
                await insert
        else:
            assert (await insert).rowcount == 1
    await engine.dispose()


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("database or disk is full", "free space"),
        ("database is locked", "another process"),
        ("database table is locked", "another process"),
        ("database disk image is malformed", "restore it from a backup"),
        ("Could not decode to UTF-8 column", "restore it from a backup"),
        ("file is not a database", "not an SQLite database"),
        ("unable to open database file", "folder exists"),
        ("attempt to write a readonly database", "owner and mode"),
        ("disk I/O error", "kernel's log"),
        ("no such table: rollouts", "lacks a table"),
        ("something new in /secret/path", "OperationalError"),
    ],
)
def test_words_say_what_to_do_and_name_no_path(message: str, told: str) -> None:
    text = words(OperationalError("SELECT", {}, sqlite3.OperationalError(message)))
    assert told in text
    assert "/secret" not in text
