"""Allow-lists are refused before anything is served, where the backend or the machine cannot grant them."""

import json
from pathlib import Path

import pytest

from orchestrator.backends.fake import FakeBackend
from orchestrator.cli.networks import check_networks
from orchestrator.cli.wiring import gateway
from orchestrator.egress.names import network
from orchestrator.errors import Misconfigured
from orchestrator.models import Job, JobId, Network, TaskId
from orchestrator.settings import load_settings
from tests.hosts.world import a_task

pytestmark = pytest.mark.anyio


class Granting(FakeBackend):
    """A backend with networks, on a machine that lacks `lacking`."""

    lacking = ""

    async def check_network(self) -> None:
        if self.lacking:
            raise Misconfigured(self.lacking)

    async def cut(self, sandbox_id: object) -> tuple[()]:
        return ()


def jobs(**lists: Network) -> dict[JobId, Job]:
    tasks = {TaskId("plain"): a_task("plain")}
    for name, listed in lists.items():
        changes = {"setup_network": listed, "setup": ("true",)} if name == "setup" else {"network": listed}
        tasks[TaskId(name)] = a_task(name, **changes)
    return {JobId("j"): Job(id=JobId("j"), tasks=tasks)}


PYPI = network(["pypi.org"])


async def test_tasks_without_a_list_need_no_network() -> None:
    await check_networks(jobs(), FakeBackend())


@pytest.mark.parametrize("name", ["box", "setup"])
async def test_a_list_on_a_backend_without_networks_is_refused_with_words(name: str) -> None:
    with pytest.raises(Misconfigured, match=rf"task j/{name} names hosts .* the fake backend have no network: leave"):
        await check_networks(jobs(**{name: PYPI}), FakeBackend())
    await check_networks(jobs(**{name: PYPI}), Granting())


async def test_what_the_machine_lacks_is_told_only_when_a_task_needs_it() -> None:
    backend = Granting()
    backend.lacking = "iptables is missing: apt-get install iptables"
    await check_networks(jobs(), backend)
    with pytest.raises(Misconfigured, match="apt-get install iptables"):
        await check_networks(jobs(box=PYPI), backend)


async def test_a_server_refuses_to_start_with_a_list_that_its_backend_cannot_grant(tmp_path: Path) -> None:
    row: dict[str, object] = {
        "id": "t",
        "repo": str(tmp_path),
        "commit": "a" * 40,
        "image": "i",
        "prompt": "p",
        "grader": "file_f1",
    }
    row |= {"file_f1": {"source": "submitted", "gold": ["a"]}, "network": {"allow": ["pypi.org"]}}
    (tmp_path / "tasks.jsonl").write_text(json.dumps(row))
    settings = load_settings(
        backend="fake", tasks=tmp_path / "tasks.jsonl", state_dir=tmp_path / "state", insecure_loopback=True
    )
    with pytest.raises(Misconfigured, match="task default/t names hosts to reach, but boxes of the fake backend"):
        async with gateway(settings):
            pytest.fail("it served")
