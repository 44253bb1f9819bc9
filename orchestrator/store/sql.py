"""The record over SQL (D9): bindings, calls, evidence, rewards. SQLite in WAL mode.

Every write goes through one task (writer.py) that commits in groups; readers see the last commit. Two processes may share a file: each
decision is made under the database's write lock.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Self, TypeVar

from anyio import CancelScope
from sqlalchemy import Select
from sqlalchemy.ext.asyncio import AsyncEngine

from orchestrator.interfaces import RolloutSummary
from orchestrator.models import (
    Binding,
    CallKey,
    CallRecord,
    Evidence,
    Finding,
    HostId,
    JobId,
    Reward,
    RolloutKey,
    RolloutState,
    SandboxId,
    TaskId,
)
from orchestrator.store import codec, queries, writes
from orchestrator.store.engine import file_of, open_engine, store_errors
from orchestrator.store.migrate import migrate
from orchestrator.store.writer import Writer

T = TypeVar("T")

BUSY_TIMEOUT_S = 10.0
"""How long a write waits for another process's lock: far above a commit, far below a trainer's ten minutes."""


class SqlStore:
    """`orchestrator.interfaces.Store`. Made by `open` alone. All methods raise StoreError where the database fails."""

    def __init__(self, *, writer: Writer, reader: AsyncEngine, now: Callable[[], float]) -> None:
        self._writer = writer
        self._reader = reader
        self._now = now
        self._serving: asyncio.Task[None] | None = None

    @classmethod
    @asynccontextmanager
    async def open(
        cls, url: str, *, busy_timeout_s: float = BUSY_TIMEOUT_S, now: Callable[[], float] = time.time
    ) -> AsyncIterator[Self]:
        """The store at `url` (sqlite:////absolute/path), created or migrated first. `now` is the wall clock.

        Raises Misconfigured (not a URL we serve), StoreError (damaged, newer schema, disk).
        """
        path = file_of(url)
        await asyncio.to_thread(migrate, path, busy_timeout_s=busy_timeout_s)
        quick, durable, reader = (
            open_engine(path, role, busy_timeout_s=busy_timeout_s) for role in ("quick", "durable", "reader")
        )
        store = cls(writer=Writer(quick=quick, durable=durable), reader=reader, now=now)
        store._serving = asyncio.create_task(store._writer.run(), name="store-writer")
        try:
            yield store
        finally:
            with CancelScope(shield=True):
                await store.aclose()
                for engine in (quick, durable, reader):
                    await engine.dispose()

    async def aclose(self) -> None:
        """Commit what waits, then take nothing more. Idempotent."""
        self._writer.stop()
        if self._serving is not None:
            await asyncio.shield(self._serving)

    async def check(self) -> None:
        """Readiness: a write reaches the file. Raises StoreError."""
        await self._writer.pulse(writes.Pulse(now=self._now()))

    async def bind(self, rollout: RolloutKey, task: TaskId, host: HostId) -> Binding:
        """First wins: the binding that exists, else a new one with epoch 1."""
        return await self._writer.submit(writes.Bind(rollout=rollout, task=task, host=host, now=self._now()))

    async def binding(self, rollout: RolloutKey) -> Binding | None:
        rows = await self._read(queries.BINDING, rollout)
        return codec.binding_of(rows[0]) if rows else None

    async def attach_sandbox(
        self, binding: Binding, sandbox: SandboxId, boot_id: str | None, *, template: str = ""
    ) -> Binding:
        """Raises StaleLease."""
        return await self._writer.submit(
            writes.AttachSandbox(
                rollout=binding.rollout, binding=binding, sandbox=sandbox, boot_id=boot_id, template=template
            )
        )

    async def adopt(self, binding: Binding, host: HostId) -> Binding:
        """Compare-and-set (host, epoch) -> (new host, epoch + 1). Raises StaleLease."""
        return await self._writer.submit(
            writes.Adopt(rollout=binding.rollout, binding=binding, host=host, now=self._now())
        )

    async def close(self, binding: Binding, state: RolloutState, reason: str) -> Binding:
        """What stands afterwards: a final state (all but OPEN and GRADING) never changes, and nothing reopens. Raises StaleLease."""
        return await self._writer.submit(
            writes.Close(rollout=binding.rollout, binding=binding, state=state, reason=reason)
        )

    async def touch(self, binding: Binding) -> None:
        """Raises StaleLease."""
        await self._writer.submit(writes.Touch(rollout=binding.rollout, binding=binding, now=self._now()))

    async def taint(self, rollout: RolloutKey, reason: str) -> None:
        """The first reason stays."""
        await self._writer.submit(writes.Taint(rollout=rollout, reason=reason))

    async def tainted(self, rollout: RolloutKey) -> str:
        """The reason, or an empty string."""
        rows = await self._read(queries.TAINT, rollout)
        return str(rows[0]["reason"]) if rows else ""

    async def open_bindings(self, host: HostId | None) -> Sequence[Binding]:
        """In state OPEN or GRADING, oldest first; None: of every host."""
        if host is None:
            return [codec.binding_of(row) for row in await self._read(queries.ALL_OPEN_BINDINGS)]
        return [codec.binding_of(row) for row in await self._read(queries.OPEN_BINDINGS, host=host)]

    async def record(self, binding: Binding, call: CallRecord) -> None:
        """Append; the same key twice is the first one's. Raises StaleLease, StoreError (also for a sequence that another key has)."""
        await self._writer.submit(writes.Record(rollout=binding.rollout, binding=binding, call=call))

    async def recorded(self, rollout: RolloutKey, key: CallKey) -> CallRecord | None:
        rows = await self._read(queries.CALL, rollout, key=key)
        return codec.call_of(rollout, rows[0]) if rows else None

    async def calls(self, rollout: RolloutKey) -> Sequence[CallRecord]:
        """In order of their sequence."""
        rows = await self._read(queries.CALLS, rollout)
        return [codec.call_of(rollout, row) for row in rows]

    async def put_evidence(self, binding: Binding, evidence: Evidence) -> Evidence:
        """First wins. Raises StaleLease."""
        return await self._writer.submit(
            writes.PutEvidence(rollout=binding.rollout, binding=binding, evidence=evidence)
        )

    async def evidence(self, rollout: RolloutKey) -> Evidence | None:
        rows = await self._read(queries.EVIDENCE, rollout)
        return codec.evidence_of(rows[0]["body"]) if rows else None

    async def put_reward(self, binding: Binding, reward: Reward) -> Reward:
        """First wins. Raises StaleLease, RolloutClosed (tainted, and no reward stood before)."""
        return await self._writer.submit(writes.PutReward(rollout=binding.rollout, binding=binding, reward=reward))

    async def reward(self, rollout: RolloutKey) -> Reward | None:
        rows = await self._read(queries.REWARD, rollout)
        return codec.reward_of(rows[0]["body"]) if rows else None

    async def add_finding(self, rollout: RolloutKey, code: str, detail: str) -> None:
        """Once per (code, detail), at most `writes.MAX_FINDINGS` a rollout; later ones are dropped."""
        await self._writer.submit(writes.AddFinding(rollout=rollout, finding=Finding(code=code, detail=detail)))

    async def findings(self, rollout: RolloutKey) -> Sequence[tuple[str, str]]:
        """(code, detail), oldest first."""
        return [(row["code"], row["detail"]) for row in await self._read(queries.FINDINGS_OF, rollout)]

    async def rollouts(self, job: JobId | None, limit: int) -> Sequence[RolloutSummary]:
        """The newest `limit`, newest first."""
        if job is None:
            rows = await self._read(queries.SUMMARIES, row_limit=limit)
        else:
            rows = await self._read(queries.SUMMARIES_OF_JOB, row_limit=limit, job=job)
        return [
            RolloutSummary(
                binding=codec.binding_of(row),
                calls=row["call_count"],
                reward=None if row["reward_body"] is None else codec.reward_of(row["reward_body"]),
            )
            for row in rows
        ]

    async def _read(self, query: Select[Any], rollout: RolloutKey | None = None, **parameters: Any) -> Sequence[Any]:
        if rollout is not None:
            parameters |= {"job": rollout.job, "trace_id": rollout.trace_id}
        with store_errors():
            async with self._reader.connect() as connection:
                rows: Sequence[Any] = (await connection.execute(query, parameters)).mappings().all()
        return rows
