"""Every statement of the hot path finds its rows by index, however large the record grows."""

import sqlite3
from collections.abc import Iterator

import pytest
from sqlalchemy import Select
from sqlalchemy.dialects import sqlite

from orchestrator.store import queries
from orchestrator.store.migrate import migrate

PARAMETERS = {
    "job": "j",
    "trace_id": "t",
    "key": "k",
    "host": "h",
    "row_limit": 5,
    "traces": ["t", "u"],
    "keys": ["k", "l"],
    "ids": [1, 2],
}
STATEMENTS = {
    name: value
    for name, value in vars(queries).items()
    if isinstance(value, Select) and name.isupper() and name != "BINDINGS"
}


@pytest.fixture(scope="module")
def connection(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sqlite3.Connection]:
    path = tmp_path_factory.mktemp("plans") / "record.db"
    migrate(path, busy_timeout_s=1)
    opened = sqlite3.connect(path)
    yield opened
    opened.close()


def plan(connection: sqlite3.Connection, statement: str) -> list[str]:
    return [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}")]


def scans(steps: list[str]) -> list[str]:
    """Steps that walk a whole table; walking an index in order, up to a limit, is none."""
    return [step for step in steps if step.startswith("SCAN") and "USING INDEX ix_rollouts_created_at" not in step]


@pytest.mark.parametrize("name", STATEMENTS)
def test_no_statement_scans_a_table(connection: sqlite3.Connection, name: str) -> None:
    needed = {key: PARAMETERS[key] for key in STATEMENTS[name].compile().params if key in PARAMETERS}
    compiled = STATEMENTS[name].params(needed).compile(dialect=sqlite.dialect(), compile_kwargs={"literal_binds": True})
    steps = plan(connection, str(compiled))
    assert steps
    assert scans(steps) == []


def test_a_scan_is_seen(connection: sqlite3.Connection) -> None:
    assert scans(plan(connection, "SELECT * FROM calls WHERE reply_text = 'x'"))
    assert scans(plan(connection, "SELECT * FROM rollouts WHERE (job, trace_id) IN (VALUES ('a', 'b'), ('c', 'd'))"))
