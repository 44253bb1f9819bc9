"""Limits hold by behaviour, and whatever is done to a box, its agent survives."""

import asyncio
import time

from orchestrator.conformance import expect
from orchestrator.conformance.file_checks import text_is_written_and_read
from orchestrator.conformance.isolation_checks import own_processes_can_be_signalled
from orchestrator.conformance.model import Group
from orchestrator.conformance.rig import Box, Rig, beside
from orchestrator.operations import Failure, FailureCode, Read, ReadResult, Write

GROUP = Group("limits")

MIB = 1024 * 1024
DISK_MIB = 32
MEMORY_MIB = 192
PIDS = 64
INODES = 2_000


@GROUP.positive()
async def processes_below_the_limit_start(rig: Rig) -> None:
    """A command may have a few dozen children."""
    expect.equal(await (await rig.box()).facts("forks", 30), [["30"]], "children")


@GROUP.negative(control=processes_below_the_limit_start, proves=("C12",))
async def processes_above_the_limit_do_not_start(rig: Rig) -> None:
    """Forking stops at the box's limit; the agent goes on."""
    async with rig.own_box(rig.limited(pids=PIDS)) as box:
        count = int((await box.facts("forks", 4 * PIDS))[0][0])
        expect.that(PIDS // 2 <= count <= PIDS, f"at most {PIDS} children, found {count}")
        await box.alive()


@GROUP.negative(control=processes_below_the_limit_start, proves=("C12",))
async def fork_bomb_is_survived(rig: Rig) -> None:
    """While a bomb goes off the agent answers, a neighbour box works, and afterwards the box does too."""
    neighbour = await rig.box()
    async with rig.own_box(rig.limited(pids=PIDS)) as box:
        async with beside(box.probe("bomb", 30, timeout_s=2)) as bomb:
            await asyncio.sleep(0.5)
            began = time.monotonic()
            await neighbour.text("true")
            expect.that(time.monotonic() - began < 2, "the neighbour's command to be quick")
            result = await bomb
        expect.that(b"armed" in result.stdout.head and result.timed_out, "the bomb to have gone off until its time-out")
        await box.alive()


@GROUP.positive()
async def a_box_of_few_processes_works(rig: Rig) -> None:
    """What the agent needs for itself is not the commands': a box that may have eight processes starts, and runs commands."""
    async with rig.own_box(rig.limited(pids=8)) as box:
        expect.equal(await box.text("echo here"), "here\n", "the output")


@GROUP.positive()
async def memory_below_the_limit_can_be_used(rig: Rig) -> None:
    """A command may use a good part of the box's memory."""
    async with rig.own_box(rig.limited(memory_mib=MEMORY_MIB)) as box:
        expect.equal((await box.facts("hog", MEMORY_MIB // 3))[-1], [str(MEMORY_MIB // 3)], "MiB held")


@GROUP.negative(control=memory_below_the_limit_can_be_used, proves=("C11",))
async def memory_above_the_limit_kills_the_command(rig: Rig) -> None:
    """A command that takes more dies, is known to have died of it, and the agent goes on."""
    async with rig.own_box(rig.limited(memory_mib=MEMORY_MIB)) as box:
        result = await box.probe("hog", MEMORY_MIB * 2)
        expect.equal((result.exit_code, result.signal), (None, "SIGKILL"), "how the command ended")
        expect.that(result.oom_killed, "the result to say that memory was the reason")
        await box.alive()


@GROUP.positive()
async def disk_below_the_limit_can_be_used(rig: Rig) -> None:
    """Half of the disk can be filled."""
    async with rig.own_box(rig.limited(disk_mib=DISK_MIB)) as box:
        for number in range(DISK_MIB // 2):
            await box.write(f"block-{number}", bytes(MIB))


@GROUP.negative(control=disk_below_the_limit_can_be_used, proves=("C15",))
async def disk_above_the_limit_is_refused(rig: Rig) -> None:
    """Writing stops at the limit, for operations and commands; what is there stays, and removing makes room."""
    async with rig.own_box(rig.limited(disk_mib=DISK_MIB)) as box:
        await box.write("kept", b"kept")
        written = await _fill(box)
        expect.that(DISK_MIB // 2 <= written <= DISK_MIB, f"at most {DISK_MIB} MiB, found {written}")
        flood = await box.sh("cat > flood", stdin=bytes(2 * MIB))
        expect.that(flood.exit_code not in (0, None), "a command's write to fail as well")
        expect.equal(expect.kind(await box.run(Read(path="kept")), ReadResult).data, b"kept", "an earlier file")
        await box.text("rm -f flood block-*" if written < 0 else "rm -f flood block-0 block-1 block-2")
        await box.write("again", b"x" * 1000)
        await box.alive()


async def _fill(box: Box) -> int:
    """Write until there is no space; how many MiB went in."""
    for number in range(2 * DISK_MIB):
        result = await box.run(Write(path=f"block-{number}", data=bytes(MIB)))
        if isinstance(result, Failure):
            expect.refused(result, FailureCode.NO_SPACE)
            return number
    return 2 * DISK_MIB


@GROUP.negative(control=text_is_written_and_read, proves=("C15",))
async def tmp_and_home_count_too(rig: Rig) -> None:
    """Neither home nor the folder for temporary files is a way around the disk's limit."""
    async with rig.own_box(rig.limited(disk_mib=DISK_MIB)) as box:
        for place in ("/tmp", "/home/agent"):  # noqa: S108  (in the box)
            failed = False
            for number in range(2 * DISK_MIB):
                failed = isinstance(await box.run(Write(path=f"{place}/b{number}", data=bytes(MIB))), Failure)
                if failed:
                    break
            expect.that(failed, f"a limit for {place}")
            await box.text(f"cd {place}; for i in $(seq 0 {2 * DISK_MIB}); do rm -f b$i; done")


@GROUP.negative(control=text_is_written_and_read, proves=("C15",))
async def inodes_above_the_limit_are_refused(rig: Rig) -> None:
    """A flood of empty files stops too."""
    async with rig.own_box(rig.limited(inodes=INODES)) as box:
        script = f"mkdir flood; cd flood; for i in $(seq {6 * INODES}); do : > f$i || exit 3; done; echo all"
        result = await box.sh(script)
        expect.that(b"all" not in result.stdout.head and not result.timed_out, "the flood to stop")
        await box.text("rm -rf flood")
        await box.alive()


@GROUP.negative(control=own_processes_can_be_signalled, proves=("C16",))
async def background_flood_does_not_fill_the_agent(rig: Rig) -> None:
    """A background process that prints for ever costs the agent no memory."""
    async with rig.own_box() as box:
        pid = (await box.text("(sleep 0.1; yes) & echo $!")).strip()
        await asyncio.sleep(1.0)
        used = int((await box.text("grep VmRSS /proc/1/status")).split()[1])
        expect.that(used < 64 * 1024, f"PID 1 within 64 MiB, found {used} KiB")
        await box.text(f"kill -9 {pid}")
        await box.alive()


@GROUP.positive(limit_s=20, proves=("C13",))
async def processor_time_is_limited(rig: Rig) -> None:
    """Four spinning processes get what one processor gives, where the box has one."""
    async with rig.own_box(rig.limited(cpus=0.5)) as box:
        used = float((await box.facts("spin", 4, 2))[-1][0])
        expect.that(0.1 < used <= 2 * 0.5 * 1.5, f"about 1 s of processor time in 2 s, found {used:.2f}")


@GROUP.positive(proves=("C19",))
async def descriptors_and_core_files_are_limited(rig: Rig) -> None:
    """Open files are limited to what the task says, and no core files are written."""
    found = (await (await rig.box()).text("ulimit -Sn; ulimit -Hn; ulimit -Sc; ulimit -Hc")).split()
    wanted = str(rig.spec.limits.open_files)
    expect.equal(found, [wanted, wanted, "0", "0"], "limits of open files and of core files")
