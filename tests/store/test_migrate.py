"""The schema's history: from nothing to what schema.py says; never backwards."""

import sqlite3
from pathlib import Path

import anyio
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine

from orchestrator.errors import StoreError
from orchestrator.models import Binding, JobId, RolloutKey, TraceId
from orchestrator.store.migrate import migrate
from orchestrator.store.schema import metadata
from orchestrator.store.sql import SqlStore


def test_migrations_lead_to_the_schema(tmp_path: Path) -> None:
    migrate(tmp_path / "record.db", busy_timeout_s=1)
    engine = create_engine(f"sqlite:///{tmp_path}/record.db")
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, metadata) == []
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
    engine.dispose()


def test_migrating_twice_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "folder" / "record.db"
    migrate(path, busy_timeout_s=1)
    with sqlite3.connect(path) as connection:
        connection.execute("INSERT INTO taints VALUES ('j', 't', 'r')")
        connection.commit()
    connection.close()
    migrate(path, busy_timeout_s=1)
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT count(*) FROM taints").fetchone() == (1,)
    connection.close()


def test_a_record_of_the_first_schema_is_read(tmp_path: Path) -> None:
    """Rows of before a rollout's template was kept."""
    path = tmp_path / "record.db"
    migrate(path, busy_timeout_s=1)
    connection = sqlite3.connect(path)
    connection.executescript(
        "DROP INDEX ix_rollouts_state; ALTER TABLE rollouts DROP COLUMN template; UPDATE alembic_version SET version_num = '0001';"
        "INSERT INTO rollouts VALUES (1, 'j', 't', 'task', 'h', 3, 'open', 'r-1', 'boot', '', 1.0, 2.0);"
    )
    connection.close()

    async def read() -> Binding | None:
        async with SqlStore.open(f"sqlite:///{path}") as store:
            return await store.binding(RolloutKey(job=JobId("j"), trace_id=TraceId("t")))

    binding = anyio.run(read)
    assert binding is not None
    assert (binding.epoch, binding.boot_id, binding.template) == (3, "boot", "")


def test_a_newer_schema_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "record.db"
    migrate(path, busy_timeout_s=1)
    connection = sqlite3.connect(path)
    connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.commit()
    with pytest.raises(StoreError, match=r"newer tiltyard.*upgrade"):
        migrate(path, busy_timeout_s=1)
    assert connection.execute("SELECT version_num FROM alembic_version").fetchone() == ("9999",)
    connection.close()


def test_a_failed_migration_leaves_nothing_half_done(tmp_path: Path) -> None:
    """A table of ours that is there already makes the first migration fail in its middle."""
    path = tmp_path / "record.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE rewards (other INTEGER)")
    connection.commit()
    with pytest.raises(StoreError):
        migrate(path, busy_timeout_s=1)
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert tables == {"rewards"}
    connection.execute("DROP TABLE rewards")
    connection.commit()
    connection.close()
    migrate(path, busy_timeout_s=1)
