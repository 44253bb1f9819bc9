"""Each setting, weakened on a whole box of our own backend, turns red what watches it; the same looks and checks find nothing on a sound box."""

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from orchestrator.backends.docker.backend import DockerBackend
from orchestrator.conformance import Outcome, Result, Suite, checks
from orchestrator.conformance.gaps import GAPS
from orchestrator.conformance.named import suite_spec
from tests.integrity import expected
from tests.integrity.docker_bench import RULES, violated, with_processes
from tests.integrity.live import Live, backend, descendants, engine, live
from tests.integrity.outside import differences, posture
from tests.integrity.weaken import MUTANTS, NETWORK, ON_GVISOR, Mutant
from tests.needs import needs

pytestmark = [pytest.mark.anyio, needs("docker", "root")]

BY_ID = {check.id: check for check in checks()}
USED = sorted({name for mutant in MUTANTS for name in mutant.checks})


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module", autouse=True)
def network() -> Iterator[None]:
    with engine() as api:
        made = api.create_network(NETWORK, driver="bridge", internal=True)
        try:
            yield
        finally:
            api.remove_network(made["Id"])


async def results(made: DockerBackend, names: Sequence[str]) -> Mapping[str, Result]:
    async with suite_spec() as spec:
        suite = Suite(made, spec, {})
        try:
            return {name: await suite.run(BY_ID[name]) for name in names}
        finally:
            await suite.aclose()


def rules_broken(box: Live) -> set[str]:
    lines = [Path(f"/proc/{pid}/cmdline").read_text() for pid in (box.pid, *descendants(box.pid))]
    return violated(with_processes(box.inspected, lines))


@pytest.fixture(scope="module")
async def sound() -> AsyncIterator[Mapping[str, Result]]:
    """Every check that a mutant turns red, on an unchanged box: the control of them all."""
    async with backend() as made:
        yield await results(made, USED)


async def test_a_sound_box_breaks_nothing(sound: Mapping[str, Result]) -> None:
    async with backend() as made, live(made) as box:
        assert differences(posture(box.pid, box.container), expected.agent(box)) == []
        assert rules_broken(box) == set()
    assert {name: result.text for name, result in sound.items() if result.outcome is not Outcome.PASSED} == {}


@needs("runsc")
async def test_a_sound_box_under_gvisor_breaks_no_rule() -> None:
    async with backend("runsc") as made, live(made, runtime="runsc") as box:
        assert rules_broken(box) == set()


@pytest.mark.parametrize("mutant", [pytest.param(each, id=each.name) for each in MUTANTS])
async def test_a_weakened_box_turns_red(mutant: Mutant) -> None:
    async with backend(weaken=mutant.weaken) as made:
        if mutant.outside or mutant.rules:
            async with live(made) as box:
                told = differences(posture(box.pid, box.container), expected.agent(box))
                broken = rules_broken(box)
            for beginning in mutant.outside:
                assert any(line.startswith(beginning) for line in told), (beginning, told)
            assert broken >= set(mutant.rules), broken
        found = await results(made, mutant.checks)
    _failed_by_themselves(found)


def _failed_by_themselves(found: Mapping[str, Result]) -> None:
    for name, result in found.items():
        assert result.outcome is Outcome.FAILED, f"{name} does not see it"
        assert "positive control" not in result.text, result.text


@needs("runsc")
@pytest.mark.parametrize("mutant", [pytest.param(each, id=each.name) for each in MUTANTS if each.name in ON_GVISOR])
async def test_a_weakened_box_turns_red_under_gvisor_too(mutant: Mutant) -> None:
    watching = [name for name in mutant.checks if name not in GAPS["docker-runsc"]]
    assert watching
    async with backend("runsc") as made:
        sound = await results(made, watching)
        assert {result.outcome for result in sound.values()} == {Outcome.PASSED}
    async with backend("runsc", mutant.weaken) as made:
        _failed_by_themselves(await results(made, watching))


def test_every_rule_has_a_mutant_or_needs_none() -> None:
    """Those without would need a sound box to be something else: a server in it, an engine's exec, another host."""
    covered = {rule for mutant in MUTANTS for rule in mutant.rules}
    uncovered = {"5.2", "5.3", "5.7", "5.8", "5.9", "5.14", "5.20", "5.23", "5.24", "5.27", "5.30", "5.31", "5.5"}
    assert covered | uncovered == {rule.number for rule in RULES}
    assert not covered & uncovered


async def test_rules_without_a_mutant_are_seen_on_a_made_up_answer() -> None:
    async with backend() as made, live(made) as box:
        sound = with_processes(box.inspected, ["/tiltyard-agent"])
    host, config = sound["HostConfig"], sound["Config"]
    ports = {"22/tcp": [{"HostIp": "", "HostPort": "22"}]}
    for changed, rules in (
        ({**sound, "Processes": ["sshd: /usr/sbin/sshd"]}, {"5.7"}),
        ({**sound, "HostConfig": {**host, "PortBindings": ports}}, {"5.8", "5.9", "5.14"}),
        ({**sound, "ExecIDs": ["abc"]}, {"5.23", "5.24"}),
        ({**sound, "Mounts": [{**sound["Mounts"][0], "Propagation": "rshared"}]}, {"5.20"}),
        ({**sound, "Config": {**config, "Healthcheck": {"Test": ["CMD", "true"]}}}, {"5.27"}),
        ({**sound, "HostConfig": {**host, "UsernsMode": "host"}}, {"5.31"}),
        ({**sound, "HostConfig": {**host, "NetworkMode": "default"}}, {"5.10", "5.30"}),
        ({**sound, "HostConfig": {**host, "Privileged": True}}, {"5.5"}),
    ):
        assert violated(changed) == rules
