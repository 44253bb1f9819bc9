"""The record's tables: one schema, in plain SQL types that SQLite and PostgreSQL share. Changes go through migrations/versions."""

import re

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Dialect,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
)

ESCAPE = "\x1a"
_UNSTORABLE = re.compile("[\x00\x1a\ud800-\udfff]")
_ESCAPED = re.compile("\x1a([0-9a-f]{4})")


def to_stored(text: str) -> str:
    """`text` without NUL and lone surrogates, which databases refuse and trainers' JSON may hold. Injective."""
    if text.isascii() and "\x00" not in text and ESCAPE not in text:
        return text
    return _UNSTORABLE.sub(lambda found: f"{ESCAPE}{ord(found[0]):04x}", text)


def from_stored(text: str) -> str:
    """The inverse of `to_stored`."""
    return text if ESCAPE not in text else _ESCAPED.sub(lambda found: chr(int(found[1], 16)), text)


class AnyText(TypeDecorator[str]):
    """Any Python string, lossless."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else to_stored(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else from_stored(value)


metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)

_RowId = BigInteger().with_variant(Integer(), "sqlite")  # SQLite counts up only columns that are exactly INTEGER

rollouts = Table(
    "rollouts",
    metadata,
    Column("id", _RowId, primary_key=True, autoincrement=True),
    Column("job", AnyText, nullable=False),
    Column("trace_id", AnyText, nullable=False),
    Column("task", AnyText, nullable=False),
    Column("host", AnyText, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("state", Text, nullable=False),
    Column("sandbox", Text),
    Column("boot_id", AnyText),
    Column("reason", AnyText, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("touched_at", Double, nullable=False),
    Column("template", Text),
    UniqueConstraint("job", "trace_id"),
    Index(None, "host", "state"),
    Index(None, "state"),
    Index(None, "job", "created_at"),
    Index(None, "created_at"),
)
"""One row per binding; `epoch` and `host` are the fence that every host write is conditional on."""

calls = Table(
    "calls",
    metadata,
    Column("rollout_id", _RowId, ForeignKey("rollouts.id"), primary_key=True),
    Column("sequence", Integer, primary_key=True, autoincrement=False),
    Column("key", Text, nullable=False),
    Column("call_id", AnyText, nullable=False),
    Column("tool", AnyText, nullable=False),
    Column("arguments_text", AnyText, nullable=False),
    Column("reply_text", AnyText, nullable=False),
    Column("is_error", Boolean, nullable=False),
    Column("started_at", Double, nullable=False),
    Column("finished_at", Double, nullable=False),
    Column("charged", Boolean, nullable=False),
    UniqueConstraint("key", "rollout_id"),
)
"""`key` leads its index: a batch looks its calls up by key alone."""

evidence = Table(
    "evidence",
    metadata,
    Column("rollout_id", _RowId, ForeignKey("rollouts.id"), primary_key=True, autoincrement=False),
    Column("body", AnyText, nullable=False),
)
"""`body` is JSON, see codec.py."""

rewards = Table(
    "rewards",
    metadata,
    Column("rollout_id", _RowId, ForeignKey("rollouts.id"), primary_key=True, autoincrement=False),
    Column("outcome", Text, nullable=False),
    Column("score", Double),
    Column("body", AnyText, nullable=False),
)
"""`outcome` and `score` repeat what `body` holds, for people who query the database."""

taints = Table(
    "taints",
    metadata,
    Column("job", AnyText, primary_key=True),
    Column("trace_id", AnyText, primary_key=True),
    Column("reason", AnyText, nullable=False),
)
"""By name and not by id: a rollout may be tainted before it is bound."""

findings = Table(
    "findings",
    metadata,
    Column("id", _RowId, primary_key=True, autoincrement=True),
    Column("job", AnyText, nullable=False),
    Column("trace_id", AnyText, nullable=False),
    Column("code", AnyText, nullable=False),
    Column("detail", AnyText, nullable=False),
    Index(None, "job", "trace_id"),
)

pulse = Table(
    "pulse",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("at", Double, nullable=False),
)
"""One row that the readiness check writes: a store that cannot be written to is not ready."""
