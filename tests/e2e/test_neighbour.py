"""A box that forks, hoards, fills, floods and spins at once takes nothing from its neighbour but time, and little of that from the machine."""

from pathlib import Path

import pytest

from tests.e2e.harness import make_repository, serving, task_rows
from tests.e2e.neighbours import ABUSES, watch
from tests.needs import needs

pytestmark = [pytest.mark.anyio, needs("docker", "root")]

BOX_MEMORY_MIB, BOX_DISK_MIB = 256, 64
SLACK_MIB = 512
"""For the page cache, the engine, and whatever else runs on the machine."""


async def test_a_neighbour_and_the_machine_bear_a_box_that_abuses_everything(tmp_path: Path) -> None:
    commit = make_repository(tmp_path / "calc")
    async with serving(tmp_path, task_rows(tmp_path / "calc", commit, max_calls=100_000)) as server:
        seen = await watch(server, seconds=6.0, at_least=50)
    assert set(seen.abuses) == set(ABUSES)
    assert min(seen.abuses.values()) >= 1, seen.abuses
    assert len(seen.noisy_s) >= 50
    assert seen.memory_fall_mib <= BOX_MEMORY_MIB + SLACK_MIB
    assert seen.disk_fall_mib <= BOX_DISK_MIB + SLACK_MIB
    assert seen.server_rss_mib <= 512
