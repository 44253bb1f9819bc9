"""Crashes at random moments under load: every acknowledged effect once, every reply the same, nothing left over.

The seed is printed; `TILTYARD_SEED` repeats a run.
"""

import asyncio
import os
import random
from collections import Counter

import pytest

from orchestrator.backends.fake import SlowExec
from orchestrator.errors import RolloutClosed, SandboxError, TiltyardError
from orchestrator.hosts.host import SandboxHost
from orchestrator.models import RolloutKey, ToolReply
from tests.hosts.test_adoption import crash
from tests.hosts.world import World, a_call, a_grade, a_task, key, until

pytestmark = pytest.mark.anyio

ROLLOUTS, CALLS, CRASHES = 6, 12, 6


class Trainer:
    """Sends every call until it is answered, over whichever host is up; remembers what it was told."""

    def __init__(self, world: World) -> None:
        self.task = world.task(a_task(max_calls=1000))
        self.host: SandboxHost | None = None
        self.told: dict[tuple[RolloutKey, str], set[str]] = {}

    async def call(self, rollout: RolloutKey, token: str) -> ToolReply:
        while True:
            host = self.host
            if host is not None:
                request = a_call(f"echo {token} >> log; tail -n 1 log", token, rollout=rollout)
                try:
                    reply = await host.call(request, self.task, timeout_s=0.5)
                except (RolloutClosed, SandboxError):
                    raise  # a rollout was lost, which no crash of ours may do
                except TiltyardError:
                    pass
                else:
                    self.told.setdefault((rollout, token), set()).add(reply.text)
                    return reply
            await asyncio.sleep(0.005)

    async def play(self, rollout: RolloutKey) -> None:
        for step in range(0, CALLS, 2):
            await asyncio.gather(*(self.call(rollout, f"{rollout.trace_id}-{step + half}") for half in (0, 1)))
            if step:
                await self.call(rollout, f"{rollout.trace_id}-{step - 2}")  # a late retry of an answered call


@pytest.mark.parametrize("run", range(3))
async def test_random_crashes_lose_nothing_and_repeat_nothing(world: World, run: int) -> None:
    seed = int(os.environ.get("TILTYARD_SEED", random.SystemRandom().randrange(10**6)))
    print(f"TILTYARD_SEED={seed}")
    chance = random.Random(seed)
    backend = world.backend(SlowExec(seconds=0.02, nth=(2, 5, 6, 9)))
    trainer = Trainer(world)
    keys = [key(f"r{n}") for n in range(ROLLOUTS)]
    playing = [asyncio.create_task(trainer.play(each)) for each in keys]
    for _ in range(CRASHES):
        host = world.host(backend)
        async with host:
            trainer.host = host
            await asyncio.sleep(chance.uniform(0.005, 0.08))
            trainer.host = None
            await crash(host)
    async with world.host(backend) as host:
        trainer.host = host
        await asyncio.gather(*playing)
        for each in keys:
            log = (await host.call(a_call("cat log", "look", rollout=each), trainer.task, timeout_s=10)).text.split()
            wanted = [f"{each.trace_id}-{n}" for n in range(CALLS)]
            assert Counter(log) == Counter(wanted)
            records = await world.store.calls(each)
            assert len(records) == CALLS + 1
            assert {record.reply.text for record in records} >= {
                text for (k, _), t in trainer.told.items() if k == each for text in t
            }
        assert all(len(texts) == 1 for texts in trainer.told.values())
        assert len(world.machine.boxes) == ROLLOUTS
        await asyncio.gather(*(host.grade(a_grade(each), trainer.task, timeout_s=10) for each in keys))
        await until(lambda: not world.machine.boxes)
        load = await host.load()
        assert (load.live, load.queued, load.free_memory_mib) == (0, 0, 10_000)
