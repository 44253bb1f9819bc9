"""Bring a store's file to this version's schema: once, under a lock, before anything else opens it."""

import fcntl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from orchestrator.errors import StoreError
from orchestrator.store.engine import words

MIGRATIONS = Path(__file__).parent / "migrations"
_ONE_AT_A_TIME = threading.Lock()
"""Alembic keeps its context in a module."""


def migrate(path: Path, *, busy_timeout_s: float) -> None:
    """Create or upgrade the store at `path`. Blocks; run it in a thread.

    Raises StoreError: the file cannot be used, or a newer version of the program wrote it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _ONE_AT_A_TIME, _locked(path), _connected(path, busy_timeout_s) as connection:
            _upgrade(connection)
    except SQLAlchemyError as error:
        raise StoreError(words(error)) from error
    except OSError as error:
        raise StoreError(
            f"the store's folder cannot be used ({error.strerror}): check its owner, mode and disk"
        ) from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One migrating process at a time; the lock file stays, because removing it would race."""
    with path.with_name(path.name + ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _connected(path: Path, busy_timeout_s: float) -> Iterator[Connection]:
    engine = create_engine(
        URL.create("sqlite", database=str(path)),
        connect_args={"timeout": busy_timeout_s, "isolation_level": None},
        poolclass=NullPool,
    )
    event.listen(engine, "connect", lambda connection, _record: connection.execute("PRAGMA journal_mode=WAL"))
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    try:
        with engine.begin() as connection:
            yield connection
    finally:
        engine.dispose()


def _upgrade(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    scripts = ScriptDirectory.from_config(config)
    standing = MigrationContext.configure(connection).get_current_revision()
    if standing == scripts.get_current_head():
        return
    if standing is not None and standing not in {script.revision for script in scripts.walk_revisions()}:
        raise StoreError(
            f"the store was written by a newer tiltyard (schema {standing}; this one knows {scripts.get_current_head()}): "
            "upgrade tiltyard, or name another file"
        )
    command.upgrade(config, "head")
