"""A rollout over an image that holds busybox and nothing else: tools, evidence and grade need nothing of it; and it floods the server."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from orchestrator.backends.docker.base_images import BUSYBOX
from tests.e2e.harness import MENDED, Server, Trainer, make_repository, serving, task_rows
from tests.needs import needs

pytestmark = [needs("docker", "root"), pytest.mark.anyio]

FLOOD = "yes tiltyard | head -c 5368709120"
GROWTH_MIB = 96
"""What a flood of 5 GiB may cost the server: buffers and a reply of 32 KiB, not the flood."""


@pytest.fixture(scope="module")
async def bare_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    repo = tmp_path_factory.mktemp("bare") / "calc"
    rows = task_rows(repo, make_repository(repo), image=BUSYBOX)
    async with serving(
        tmp_path_factory.mktemp("bare-serve"), [row for row in rows if row["grader"] == "file_f1"]
    ) as made:
        yield made
        await made.stop()
        made.sweep()
        assert await made.settled() == []


def resident_mib(pid: int) -> int:
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) // 1024


async def test_every_tool_works_without_python_or_a_shell_of_its_own(
    bare_server: Server, trainer: Callable[..., Trainer]
) -> None:
    rollout = trainer(bare_server, "calc-files")
    assert "absent" in await rollout.call("1", "shell", command="which bash python3 git || echo absent")
    assert "return a - b" in await rollout.call("2", "read_file", path="calc.py")
    assert "calc.py" in await rollout.call("3", "list_dir", path=".")
    assert "calc.py:2" in await rollout.call("4", "search", pattern="return a - b")
    await rollout.call("5", "edit_file", path="calc.py", old="a - b", new="a + b")
    await rollout.call("6", "write_file", path="notes/new.txt", content="new\n")
    assert MENDED in await rollout.call("7", "shell", command="cat calc.py; cat notes/new.txt")
    assert "Recorded: 1 file" in await rollout.call("8", "submit", files=["calc.py"])
    assert await rollout.grade() == 1.0


async def test_a_flood_of_gigabytes_costs_the_server_nothing(
    bare_server: Server, trainer: Callable[..., Trainer]
) -> None:
    rollout = trainer(bare_server, "calc-files")
    await rollout.call("1", "shell", command="true")
    before = resident_mib(bare_server.pid)
    reply = await rollout.call("2", "shell", command=FLOOD, timeout_s=4)
    assert len(reply.encode()) <= 32_768
    assert "timed out" in reply
    assert "tiltyard" in reply
    assert resident_mib(bare_server.pid) - before < GROWTH_MIB
    assert "after" in await rollout.call("3", "shell", command="echo after")


async def test_what_a_box_prints_is_never_a_failure_of_ours(
    bare_server: Server, trainer: Callable[..., Trainer]
) -> None:
    rollout = trainer(bare_server, "calc-files")
    words = "Error response from daemon: No such container"
    reply = await rollout.call("1", "shell", command=f"echo {words} >&2; exit 125")
    assert words in reply
    assert "exit code 125" in reply
    assert "after" in await rollout.call("2", "shell", command="echo after")
