"""A box that is full to its cap, in bytes or in names: it hurts nobody, still answers, and is still graded."""

from pathlib import Path

import aiohttp
import pytest

from orchestrator.hosts.parts import JOURNAL_MIB
from orchestrator.models import JobId, Outcome, RolloutKey, TraceId
from orchestrator.store.sql import SqlStore
from tests.e2e.harness import Server, Trainer, make_repository, serving, task_rows
from tests.needs import needs

pytestmark = [needs("docker", "root"), pytest.mark.anyio]

DISK_MIB = 64
BYTES = "cat /dev/zero > {place}/filler; dd if=/dev/zero of={place}/rest bs=512 2>&1 | tail -1; echo x > {place}/more"
NAMES = "mkdir -p {place}/d; for n in $(seq 1 9000); do : > {place}/d/$n || break; done 2>&1 | tail -1"
PLACES = {"workspace": ".", "tmp": "/tmp", "home": "$HOME"}


def rows(tmp_path: Path) -> list[dict[str, object]]:
    limits = {"memory_mib": 256, "disk_mib": DISK_MIB, "inodes": 3000, "pids": 128}
    repo = tmp_path / "repo"
    return task_rows(repo, make_repository(repo), limits=limits)


def taken_mib(server: Server) -> list[int]:
    """What each box holds of the machine's disk: its own disk, and the agent's folder beside it."""
    boxes = (server.state / server.deployment / "boxes").iterdir()
    return [
        sum(path.lstat().st_blocks for path in (box / "disk.img", *(box / "agent").rglob("*"))) // 2048 for box in boxes
    ]


async def outcome(server: Server, trace: str) -> Outcome:
    async with SqlStore.open(f"sqlite:///{server.state}/{server.deployment}/store.db") as store:
        reward = await store.reward(RolloutKey(job=JobId("default"), trace_id=TraceId(trace)))
        assert reward is not None
        return reward.outcome


@pytest.mark.parametrize("task", ["calc-files", "calc-tests"])
@pytest.mark.parametrize("fill", [BYTES, NAMES], ids=["bytes", "names"])
async def test_a_full_box_answers_hurts_nobody_and_is_graded(fill: str, task: str, tmp_path: Path) -> None:
    async with serving(tmp_path, rows(tmp_path)) as server, aiohttp.ClientSession() as session:
        neighbour = Trainer(server, "neighbour", task, session)
        await neighbour.call("1", "shell", command="sed -i s/-/+/ calc.py")
        for name, place in PLACES.items():
            full = Trainer(server, f"full-{name}", task, session)
            await full.call("1", "shell", command="sed -i s/-/+/ calc.py")
            await full.call("2", "submit", files=["calc.py"])
            told = await full.call("3", "shell", command=fill.format(place=place))
            assert "No space left on device" in told
            written = await full.call("4", "write_file", path="new.txt", content="x" * 9000)
            assert "No space left" in written or "space" in written, written
            assert "return a + b" in await full.call("5", "read_file", path="calc.py")
            assert "calc.py" in await full.call("6", "list_dir")
            assert await full.call("7", "shell", command="echo well; exit 3") != ""
            assert (
                await neighbour.call(f"n-{name}", "shell", command="head -c 1M /dev/zero > f && echo well") == "well\n"
            )
            cap_mib = DISK_MIB + 8  # inode tables and bitmaps
            assert all(taken < cap_mib + JOURNAL_MIB for taken in taken_mib(server))
            fits = name != "workspace" or task == "calc-files"  # a delta that fills its grading box is the agent's
            assert await full.grade() == (1.0 if fits else 0.0)
            assert await outcome(server, full.trace_id) in (Outcome.SCORED, Outcome.AGENT_FAULT)
        await neighbour.call("2", "submit", files=["calc.py"])
        assert await neighbour.grade() == 1.0
