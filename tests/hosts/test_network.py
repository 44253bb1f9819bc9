"""A box's network ends before its evidence is gathered, and what it tried is in the record."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from orchestrator.backends.fake import DiesLater, FakeBackend
from orchestrator.backends.fake.backend import FakeWorld
from orchestrator.backends.fake.faults import Faults
from orchestrator.egress.names import network
from orchestrator.errors import EngineUnavailable, SandboxError, SandboxLost, TiltyardError
from orchestrator.interfaces import EgressControl, Sandbox, SandboxSpec
from orchestrator.models import BoxEnd, Finding, Network, NetworkAttempt, SandboxId, Task
from tests.hosts.world import World, a_call, a_grade, a_task, key

pytestmark = pytest.mark.anyio

TRIED = (
    NetworkAttempt(host="evil.example", port=443, allowed=False, reason="not in the allow-list", count=2),
    NetworkAttempt(host="pypi.org", port=443, allowed=True, reason="", count=1),
)
TOLD = (
    Finding(code="network_refused", detail="evil.example:443 (2 times): not in the allow-list"),
    Finding(code="network_allowed", detail="pypi.org:443"),
)


class Connected(FakeBackend):
    """Grants every list, and tells the same attempts of every box; remembers what it saw when it was asked to cut."""

    def __init__(self, world: FakeWorld, *orders: object) -> None:
        super().__init__(faults=Faults(orders=orders), world=world)  # type: ignore[arg-type]
        self.cuts: list[tuple[SandboxId, bool]] = []
        self.granted: list[Network] = []
        self.failures: list[TiltyardError] = []

    async def create(self, sandbox_id: SandboxId, spec: SandboxSpec, *, deadline: float) -> Sandbox:
        self.granted.append(spec.network)
        return await super().create(sandbox_id, replace(spec, network=Network()), deadline=deadline)

    async def check_network(self) -> None:
        """Nothing is lacking."""

    async def cut(self, sandbox_id: SandboxId) -> Sequence[NetworkAttempt]:
        if self.failures:
            raise self.failures.pop()
        self.cuts.append((sandbox_id, self.world.boxes[sandbox_id].frozen))
        return TRIED


def connected_task(world: World) -> Task:
    return world.task(a_task(network=network(["pypi.org"])))


async def told(world: World) -> tuple[BoxEnd, tuple[Finding, ...]]:
    evidence = await world.store.evidence(key())
    assert evidence is not None
    return evidence.box_end, evidence.findings


async def test_the_network_is_cut_before_the_freeze_and_attempts_become_findings(world: World) -> None:
    task, backend = connected_task(world), Connected(world.machine)
    async with world.host(backend) as host:
        await host.call(a_call("echo x > made"), task, timeout_s=10)
        await host.grade(a_grade(), task, timeout_s=10)
    ((_, frozen),) = backend.cuts
    assert not frozen
    assert backend.granted == [task.network]
    assert await told(world) == (BoxEnd.ALIVE, TOLD)


async def test_a_task_without_a_network_is_not_asked_for_attempts(world: World) -> None:
    task, backend = world.task(), Connected(world.machine)
    async with world.host(backend) as host:
        await host.call(a_call("true"), task, timeout_s=10)
        await host.grade(a_grade(), task, timeout_s=10)
    assert (backend.cuts, backend.granted) == ([], [Network()])
    assert await told(world) == (BoxEnd.ALIVE, ())


async def test_a_box_keeps_being_cut_off_when_its_task_lost_the_network_meanwhile(world: World) -> None:
    """The task of today says nothing of what the box was made with."""
    task, backend = connected_task(world), Connected(world.machine)
    async with world.host(backend) as host:
        await host.call(a_call("true"), task, timeout_s=10)
    without = world.task(replace(task, network=Network()))
    async with world.host(backend) as host:
        await host.grade(a_grade(), without, timeout_s=10)
    assert len(backend.cuts) == 1
    assert await told(world) == (BoxEnd.ALIVE, TOLD)


async def test_a_box_that_died_by_the_models_doing_tells_its_attempts_too(world: World) -> None:
    task = connected_task(world)
    backend = Connected(world.machine, DiesLater(after_operations=1, dead=True))
    async with world.host(backend) as host:
        await host.call(a_call("true"), task, timeout_s=10)
        await host.call(a_call("true", "c2"), task, timeout_s=10)
        await host.grade(a_grade(), task, timeout_s=10)
    end, findings = await told(world)
    assert end is not BoxEnd.ALIVE
    assert findings == TOLD


async def test_a_network_that_broke_is_no_reward(world: World) -> None:
    task, backend = connected_task(world), Connected(world.machine)
    async with world.host(backend) as host:
        await host.call(a_call("true"), task, timeout_s=10)
        backend.failures += [SandboxLost("its proxy ended"), SandboxLost("its proxy ended")]
        with pytest.raises(SandboxError):
            await host.grade(a_grade(), task, timeout_s=10)
    assert await world.store.reward(key()) is None


async def test_an_engine_that_does_not_answer_at_the_cut_is_asked_again_by_the_retry(world: World) -> None:
    task, backend = connected_task(world), Connected(world.machine)
    async with world.host(backend) as host:
        await host.call(a_call("true"), task, timeout_s=10)
        backend.failures.append(EngineUnavailable("no answer"))
        with pytest.raises(EngineUnavailable):
            await host.grade(a_grade(), task, timeout_s=10)
        await host.grade(a_grade(), task, timeout_s=10)
    assert await told(world) == (BoxEnd.ALIVE, TOLD)


async def test_only_backends_that_can_cut_are_taken_for_such(world: World) -> None:
    assert isinstance(Connected(world.machine), EgressControl)
    assert not isinstance(world.backend(), EgressControl)
