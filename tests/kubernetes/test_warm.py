"""Warm pods: whose they are not, how they are claimed, and that they give way."""

import asyncio
from typing import Any, cast

import pytest

from orchestrator.agent.client import AgentClient
from orchestrator.backends.kubernetes.warm import WarmPods
from orchestrator.interfaces import SandboxSpec
from orchestrator.models import Limits, SandboxId

pytestmark = pytest.mark.anyio

SPEC = SandboxSpec(image="i", template=None, limits=Limits(), labels={"rollout": "somebody's"})


class Maker:
    def __init__(self) -> None:
        self.made: dict[SandboxId, SandboxSpec] = {}
        self.removed: list[SandboxId] = []

    async def make(self, sandbox_id: SandboxId, spec: SandboxSpec) -> AgentClient:
        self.made[sandbox_id] = spec
        return cast(AgentClient, cast(Any, sandbox_id))

    async def remove(self, sandbox_id: SandboxId) -> None:
        self.removed.append(sandbox_id)


async def test_a_warm_box_bears_no_rollouts_name_and_is_used_once() -> None:
    maker = Maker()
    warm = WarmPods(2, maker.make, maker.remove)
    assert warm.claim(SPEC) is None
    await asyncio.sleep(0.05)
    assert [spec.labels for spec in maker.made.values()] == [{}, {}]
    claimed = [warm.claim(SPEC), warm.claim(SPEC)]
    assert set(claimed) == set(list(maker.made)[:2])
    assert None not in claimed
    await warm.aclose()
    assert not set(claimed) & set(maker.removed)


async def test_it_gives_way() -> None:
    maker = Maker()
    warm = WarmPods(2, maker.make, maker.remove)
    warm.want(SPEC)
    await asyncio.sleep(0.05)
    assert await warm.give_way()
    assert set(maker.removed) == set(maker.made)
    assert not await warm.give_way()


async def test_what_was_claimed_and_never_taken_goes() -> None:
    """Another host got the rollout first."""
    maker = Maker()
    warm = WarmPods(2, maker.make, maker.remove, claim_s=0.5)
    warm.want(SPEC)
    await asyncio.sleep(0.05)
    forgotten, used = warm.claim(SPEC), warm.claim(SPEC)
    assert forgotten is not None
    assert used is not None
    assert warm.taken(used) is not None
    warm.want(SPEC)
    await asyncio.sleep(0.05)
    assert maker.removed == []
    await asyncio.sleep(1.0)
    warm.want(SPEC)
    await asyncio.sleep(0.05)
    assert maker.removed == [forgotten]
    assert warm.taken(forgotten) is None
    await warm.aclose()
