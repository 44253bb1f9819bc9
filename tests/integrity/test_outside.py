"""Every process of a box looks from outside exactly as it must: at first, with more threads, and after a pause."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.operations import Exec
from tests.integrity import expected
from tests.integrity.live import Live, backend, descendants, live, parent
from tests.integrity.outside import HOST, differences, inodes, posture
from tests.needs import needs

pytestmark = [pytest.mark.anyio, needs("docker", "root")]

THREADS = "import threading,time\nfor _ in range(6): threading.Thread(target=time.sleep,args=(60,)).start()"
SLEEPERS = 24
OWN = ("cgroup", "ipc", "mnt", "net", "pid", "uts")


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def runc() -> AsyncIterator[Live]:
    async with backend() as made, live(made) as opened:
        yield opened


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


async def started(box: Live, mark: str, parts: int = 1) -> list[int]:
    """The processes of the box whose command line holds `mark`, once there are `parts` of them, with all their threads."""
    for _ in range(200):
        found = [pid for pid in descendants(box.pid) if mark in command_line(pid)]
        if len(found) >= parts:
            return found
        await asyncio.sleep(0.05)
    raise AssertionError(f"no {parts} processes with {mark!r}")


async def with_threads(pid: int, count: int) -> None:
    for _ in range(200):
        if len(os.listdir(f"/proc/{pid}/task")) >= count:
            return
        await asyncio.sleep(0.05)
    raise AssertionError("no threads")


def run_beside(stack: AsyncExitStack, box: Live, *argv: str) -> None:
    """A command that runs until the stack closes; whoever looks it up adds its end to the stack."""
    running = asyncio.create_task(box.box.run(Exec(argv=argv, timeout_s=60), timeout_s=70))

    async def ended() -> None:
        await asyncio.wait({running})

    stack.push_async_callback(ended)


def kill_at_end(stack: AsyncExitStack, pids: Sequence[int]) -> None:
    for pid in pids:
        stack.callback(os.kill, pid, signal.SIGKILL)


async def test_agent_command_and_background_child_are_exactly_as_expected(runc: Live) -> None:
    async with AsyncExitStack() as stack:
        run_beside(stack, runc, "python3", "-c", THREADS)
        await runc.box.text("sleep 61 >/dev/null 2>&1 &")
        foreground, left = (await started(runc, "threading"))[0], (await started(runc, "sleep\x0061"))[0]
        kill_at_end(stack, (foreground, left))
        await with_threads(foreground, 7)
        found = {pid: posture(pid, runc.container) for pid in (runc.pid, foreground, left)}
    assert differences(found[runc.pid], expected.agent(runc)) == []
    assert differences(found[foreground], expected.command(runc)) == []
    assert differences(found[left], expected.background(runc, found[left].oom_score_adj)) == []


async def test_many_commands_at_once_and_a_pause_change_nothing(runc: Live) -> None:
    """Every thread that serves commands side by side has what the first one has."""
    async with AsyncExitStack() as stack:
        for _ in range(SLEEPERS):
            run_beside(stack, runc, "sleep", "62")
        sleepers = await started(runc, "sleep\x0062", SLEEPERS)
        kill_at_end(stack, sleepers)
        assert len(os.listdir(f"/proc/{runc.pid}/task")) > 16
        found = [look(runc, sleepers)]
        runc.pause()
        try:
            found.append(look(runc, sleepers))
        finally:
            runc.unpause()
        found.append(look(runc, sleepers))
    assert found == [[], [], []]


def look(box: Live, commands: Sequence[int]) -> list[str]:
    """What is not as it must be, of the agent and of some commands."""
    told = differences(posture(box.pid, box.container), expected.agent(box))
    wanted = expected.command(box)
    return told + [line for pid in commands for line in differences(posture(pid, box.container), wanted)]


async def test_two_boxes_and_the_machine_share_no_namespace(runc: Live) -> None:
    async with backend() as made, live(made) as other:
        ours, theirs = inodes(Path(f"/proc/{runc.pid}")), inodes(Path(f"/proc/{other.pid}"))
        assert other.uid_base != runc.uid_base
    for name in OWN:
        assert len({ours[name], theirs[name], HOST[name]}) == 3, name


async def test_the_comparison_sees_every_kind_of_change(runc: Live) -> None:
    """The control: each field, changed, is told by its name."""
    sound = posture(runc.pid, runc.container)
    assert differences(sound, sound) == []
    told = differences(posture(parent(runc.pid), runc.container), sound)
    for field in ("rights", "root", "mounts", "descriptors", "limits", "environment", "cgroups"):
        assert any(line.startswith(field) for line in told), field
    for changed, word in (
        (replace(sound, uid_map="0 1000 1"), "uid_map"),
        (replace(sound, oom_score_adj=-500), "oom_score_adj"),
        (replace(sound, caps={**sound.caps, "pids": -1}), "caps pids"),
        (replace(sound, threads=frozenset({"thread 7 seccomp"})), "threads"),
    ):
        assert [line.partition(":")[0] for line in differences(changed, sound)] == [word]


@needs("runsc")
async def test_what_the_machine_sees_of_a_gvisor_box_is_its_kernel_alone() -> None:
    """The sentry and the stub processes that run commands' code: an empty root, six capabilities in their own user namespace."""
    async with backend("runsc") as made, live(made, runtime="runsc") as box:
        await box.box.text("sleep 63 >/dev/null 2>&1 & python3 -c 'print(1)'")
        for paused in (False, True):
            if paused:
                box.pause()
            try:
                found = {pid: posture(pid, box.container) for pid in (box.pid, *descendants(box.pid))}
            finally:
                if paused:
                    box.unpause()
            assert len(found) > 3
            told = {pid: differences(expected.of_sentry(each), expected.sentry(box)) for pid, each in found.items()}
            assert {pid: lines for pid, lines in told.items() if lines} == {}
        assert await box.box.text("echo still here") == "still here\n"
        ours = inodes(Path(f"/proc/{box.pid}"))
        assert all(ours[name] != HOST[name] for name in (*OWN[1:], "user"))
