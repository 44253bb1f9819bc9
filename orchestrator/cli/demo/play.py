"""Play the whole cast against the server at once, and hold what came back against what must come back."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import aiohttp

from orchestrator.cli.demo.agents import Agent
from orchestrator.cli.demo.trainer import Rollout, RolloutDropped
from orchestrator.models import JsonValue

TOLERANCE = 1e-9
REQUEST_TIMEOUT_S = 600.0
"""What a trainer waits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """One line of the table. `score` is None when the rollout was dropped."""

    agent: Agent
    score: float | None
    outcome: str
    reason: str
    calls: int

    @property
    def as_it_must(self) -> bool:
        right = self.score is not None and abs(self.score - self.agent.score) <= TOLERANCE
        return right and self.outcome in self.agent.outcomes


async def play_all(url: str, token: str, cast: Sequence[Agent], on_done: Callable[[], None]) -> list[Played]:
    """All rollouts in parallel, each with parallel calls of its own."""
    headers = {"Authorization": f"Bearer {token}"}
    timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout) as session:

        async def one(agent: Agent) -> Played:
            played = await _play(session, url, agent)
            on_done()
            return played

        return list(await asyncio.gather(*(one(agent) for agent in cast)))


async def _play(session: aiohttp.ClientSession, url: str, agent: Agent) -> Played:
    rollout = Rollout(session=session, url=url, task_id=agent.task_id)
    try:
        answer = await agent.script(rollout)
        score = await rollout.grade(answer)
    except RolloutDropped as dropped:
        return Played(agent=agent, score=None, outcome="dropped", reason=dropped.message, calls=rollout.calls)
    async with session.get(f"{url}/rollouts/{rollout.trace_id}") as response:
        shown = await response.json()
    outcome, reason = told(shown)
    return Played(agent=agent, score=score, outcome=outcome, reason=reason, calls=rollout.calls)


def told(shown: JsonValue) -> tuple[str, str]:
    """(outcome, reason) from what `GET /rollouts/{trace_id}` shows."""
    rollout = shown.get("rollout") if isinstance(shown, dict) else None
    reward = rollout.get("reward") if isinstance(rollout, dict) else None
    if not isinstance(reward, dict):
        return "unknown", "no reward is shown"
    return str(reward.get("outcome")), str(reward.get("reason"))
