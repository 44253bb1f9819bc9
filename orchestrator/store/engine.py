"""Connections to the record, and the words for what goes wrong with them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from orchestrator.errors import Misconfigured, StoreError

Role = Literal["quick", "durable", "reader"]
"""quick: a commit survives the process's death; durable: the machine's, too (fsync); reader: cannot write."""

_PRAGMAS: dict[Role, tuple[str, ...]] = {
    "quick": ("synchronous=NORMAL", "foreign_keys=ON"),
    "durable": ("synchronous=FULL", "foreign_keys=ON"),
    "reader": ("query_only=ON",),
}
_READING: dict[str, Any] = {"isolation_level": "AUTOCOMMIT", "pool_reset_on_return": None}
"""A reader's one statement is its transaction: no BEGIN and ROLLBACK around it, each a hop to the driver's thread."""
READERS = 4
"""Reading connections at once; each is a thread."""

_WORDS = (
    ("disk is full", "the disk of the store is full: nothing was recorded; free space and retry"),
    ("locked", "the store is held by another process for too long: nothing was recorded; retry, or end that process"),
    ("malformed", "the store's file is damaged: restore it from a backup, or name a new file"),
    ("could not decode", "the store's file is damaged: restore it from a backup, or name a new file"),
    ("not a database", "the store's file is not an SQLite database: name another file, or restore it from a backup"),
    ("unable to open", "the store's file cannot be opened: check that its folder exists and may be written to"),
    ("readonly", "the store's file may not be written to: check its owner and mode, and its folder's"),
    ("disk i/o", "the disk of the store fails: nothing was recorded; see the kernel's log"),
    ("no such table", "the store's file lacks a table: restore it from a backup, or name a new file"),
)
"""Part of SQLite's message -> what an operator should do. The messages name no path: trainers may see them."""


def words(error: BaseException) -> str:
    """What to tell about a database error."""
    text = str(getattr(error, "orig", None) or error).lower()
    for part, told in _WORDS:
        if part in text:
            return told
    return f"the store failed ({type(getattr(error, 'orig', None) or error).__name__}); see the server's log"


@contextmanager
def store_errors() -> Iterator[None]:
    """Database errors become StoreError with words."""
    try:
        yield
    except SQLAlchemyError as error:
        raise StoreError(words(error)) from error


def file_of(url: str) -> Path:
    """The SQLite file that `url` (sqlite:///relative or sqlite:////absolute) names. Raises Misconfigured for anything else."""
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise Misconfigured("the store's URL is not one: use sqlite:////absolute/path/record.db") from error
    if parsed.get_backend_name() != "sqlite":
        raise Misconfigured(f"no store for {parsed.get_backend_name()} yet: use sqlite:////absolute/path/record.db")
    if not parsed.database or parsed.database == ":memory:" or parsed.query:
        raise Misconfigured("the record needs a plain file: use sqlite:////absolute/path/record.db")
    return Path(parsed.database)


def open_engine(path: Path, role: Role, *, busy_timeout_s: float) -> AsyncEngine:
    """An engine for one role. Writers hold one connection and begin with the write lock, so that no decision is made on old rows."""
    readers = role == "reader"
    engine = create_async_engine(
        URL.create("sqlite+aiosqlite", database=str(path)),
        connect_args={"timeout": busy_timeout_s, "isolation_level": None},
        pool_size=READERS if readers else 1,
        max_overflow=0,
        pool_timeout=60.0,
        **_READING if readers else {},
    )

    @event.listens_for(engine.sync_engine, "connect")
    def _configure(connection: Any, _record: object) -> None:
        cursor = connection.cursor()
        for pragma in _PRAGMAS[role]:
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    if not readers:
        event.listen(engine.sync_engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))

    return engine
