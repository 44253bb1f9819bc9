"""The server as an ordinary user with access to the engine: boxes without a hard cap are ended at their disk limit, as the agent's fault."""

import asyncio
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from orchestrator.models import BoxEnd, JobId, Outcome, RolloutKey, TraceId
from orchestrator.store.sql import SqlStore
from tests.e2e.harness import Server, Trainer, make_repository, serving, task_rows
from tests.needs import needs

pytestmark = [needs("docker", "root"), pytest.mark.anyio]

USER = 54321
FILL = "for n in $(seq 1 80); do dd if=/dev/zero of={place}/f$n bs=1M count=2 2>/dev/null; sleep 0.02; done; sleep 20"


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Path]:
    """A folder of the user's, short, that everybody may enter."""
    folder = Path(tempfile.mkdtemp(prefix="ty-"))
    folder.chmod(0o755)
    os.chown(folder, USER, USER)
    for parent in (tmp_path, *tmp_path.parents[:2]):
        parent.chmod(parent.stat().st_mode & 0o7777 | 0o055)
    yield folder
    shutil.rmtree(folder)


def give(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        os.lchown(path, USER, USER)


def as_user() -> tuple[str, ...]:
    group = str(Path("/var/run/docker.sock").stat().st_gid)
    return ("setpriv", "--reuid", str(USER), "--regid", str(USER), "--groups", group)


async def reward_of(server: Server, trace: str) -> tuple[Outcome, str, BoxEnd]:
    async with SqlStore.open(f"sqlite:///{server.state}/{server.deployment}/store.db") as store:
        key = RolloutKey(job=JobId("default"), trace_id=TraceId(trace))
        reward, evidence = await store.reward(key), await store.evidence(key)
        assert reward is not None
        assert evidence is not None
        return reward.outcome, reward.reason, evidence.box_end


async def test_a_box_that_fills_the_disk_ends_and_its_neighbour_does_not(own: Path, tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    commit = make_repository(repo)
    give(repo)
    setup = ["git log --oneline | wc -l > commits.txt", "mkdir -m 700 closed && touch closed/roots"]
    rows = [row | {"setup": setup, "reward": {"low": -1.0, "high": 1.0}} for row in task_rows(repo, commit)]
    async with serving(tmp_path, rows, state=own, prefix=as_user()) as server, aiohttp.ClientSession() as session:
        neighbour = Trainer(server, "neighbour", "calc-files", session)
        assert (
            await neighbour.call("1", "shell", command="id -u; cat commits.txt; ls -A closed") == f"{USER}\n1\nroots\n"
        )
        for number, place in enumerate((".", "/tmp", "$HOME")):
            filler = Trainer(server, f"filler-{number}", "calc-files", session)
            text = await filler.call("1", "shell", command=FILL.format(place=place))
            assert "has been ended: it took more disk than its limit" in text
            assert "more disk than its limit" in await filler.call("2", "shell", command="echo still here")
            assert await filler.grade() == -1.0
            assert await reward_of(server, filler.trace_id) == (
                Outcome.AGENT_FAULT, "the sandbox took more disk than its limit", BoxEnd.OVER_DISK,
            )  # fmt: skip
        half = await neighbour.call("2", "shell", command="head -c 30M /dev/zero > half; sleep 3; echo well")
        assert half.endswith("well\n")
        await neighbour.call("3", "submit", files=["calc.py"])
        assert await neighbour.grade() == 1.0


async def test_an_idle_box_that_went_over_is_told_after_a_restart_of_the_server(own: Path, tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    commit = make_repository(repo)
    give(repo)
    rows = task_rows(repo, commit)
    async with serving(tmp_path, rows, state=own, prefix=as_user()) as server, aiohttp.ClientSession() as session:
        filler = Trainer(server, "filler", "calc-files", session)
        assert (
            await filler.call(
                "1",
                "shell",
                command="(sleep 3; seq 1 3000 | xargs touch; head -c 90M /dev/zero > f) >/dev/null 2>&1 & echo go",
            )
            == "go\n"
        )
        [(_, pid)] = server.boxes().values()
        await asyncio.to_thread(_gone, pid)
        await server.kill()
        await server.start()
        assert "more disk than its limit" in await filler.call("2", "shell", command="echo 2")
        assert await filler.grade() == 0.0
        assert (await reward_of(server, "filler"))[2] is BoxEnd.OVER_DISK


async def test_a_failed_set_up_leaves_nothing_that_its_user_cannot_remove(own: Path, tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    commit = make_repository(repo)
    give(repo)
    rows = [row | {"setup": ["mkdir -m 700 made && touch made/file && false"]} for row in task_rows(repo, commit)]
    async with serving(tmp_path, rows, state=own, prefix=as_user()) as server, aiohttp.ClientSession() as session:
        body: dict[str, object] = {
            "type": "function_call",
            "id": "f",
            "call_id": "c",
            "name": "shell",
            "arguments": "{}",
            "trace_id": "t",
        }
        body |= {"arguments": json.dumps({"command": "true"}), "item": {"task_id": "calc-files"}}
        async with session.post(server.url + "/tools", json=body) as reply:
            assert reply.status >= 500
            assert "failed with status 1" in await reply.text()
        assert list((own / server.deployment / "cache" / "building").iterdir()) == []


def _gone(pid: int) -> None:
    """Until the process is no more."""
    import select

    descriptor = os.pidfd_open(pid)
    try:
        assert select.select([descriptor], [], [], 60)[0], "the box was not ended"
    finally:
        os.close(descriptor)
