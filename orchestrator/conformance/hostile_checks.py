"""Hostile life: floods, trees that will not die, orphans and zombies, full disks, words that look like an engine's."""

import asyncio
import os
import secrets
import time
from pathlib import Path

from orchestrator.conformance import expect
from orchestrator.conformance.exec_checks import environment_is_given, output_below_and_at_its_cap_is_whole
from orchestrator.conformance.file_checks import text_is_written_and_read
from orchestrator.conformance.isolation_checks import own_processes_are_seen
from orchestrator.conformance.model import Group
from orchestrator.conformance.rig import PROBE, Box, Rig, beside, until
from orchestrator.errors import SandboxDead
from orchestrator.operations import (
    Delta,
    DeltaResult,
    ExecResult,
    Failure,
    FailureCode,
    Freeze,
    FreezeResult,
    Get,
    GetResult,
    Read,
    ReadResult,
    Write,
)

GROUP = Group("hostile")

MIB = 1024 * 1024
FLOOD_BYTES = 5 * 1024 * MIB
FLOOD_S = 1.0
GROWTH_MIB = 48
"""What a flood may cost the host's process and PID 1 beyond what they had: caps and buffers, not the flood."""
QUIET_S = 0.4
LIFE_S = 25
"""For how long the probe's daemons live where nobody ends them, so that none outlives the suite by much."""
DISK_MIB = 32
ENGINE_WORDS = (
    (125, "docker: Error response from daemon: No such container: tiltyard"),
    (126, "OCI runtime exec failed: exec failed: unable to start container process: unknown"),
    (127, "Error response from daemon: container is not running"),
    (137, "Killed"),
    (255, '{"type":"failure","code":"io","message":"sandbox lost"}'),
)


@GROUP.positive(proves=("C16",))
async def a_flood_of_a_few_megabytes_is_counted(rig: Rig) -> None:
    """What the probe's flood prints is counted to the byte, kept within the cap, and cut with a flag."""
    box = await rig.box()
    await box.bring_probe()
    result = expect.succeeded(await box.exec(box.probe_op("flood", 4 * MIB, limit=65_536)), "the flood")
    kept = len(result.stdout.head) + len(result.stdout.tail)
    expect.that(60_000 <= kept <= 65_536, f"a full cap, found {kept}")
    expect.equal((result.stdout.total_bytes, result.stdout.cut_bytes), (4 * MIB, 4 * MIB - kept), "total and cut")


@GROUP.negative(control=a_flood_of_a_few_megabytes_is_counted, proves=("C16",), limit_s=60)
async def a_flood_of_gigabytes_fills_nobody(rig: Rig) -> None:
    """Five gigabytes of output: cut, ended by its time-out, and neither the agent nor the host's process grows by it."""
    async with rig.own_box() as box:
        await box.bring_probe()
        agent, host = await _resident_mib(box), await asyncio.to_thread(_own_resident_mib)
        result = await box.probe("flood", FLOOD_BYTES, timeout_s=FLOOD_S)
        expect.that(result.timed_out and result.stdout.cut_bytes > 8 * MIB, "megabytes to be cut until the time-out")
        expect.that(await _resident_mib(box) - agent < GROWTH_MIB, "PID 1 not to grow by the flood")
        expect.that(await asyncio.to_thread(_own_resident_mib) - host < GROWTH_MIB, "the host not to grow by it")
        await box.alive()


async def _resident_mib(box: Box) -> int:
    return int((await box.text("grep VmRSS /proc/1/status")).split()[1]) // 1024


def _own_resident_mib() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // MIB


async def _size(box: Box) -> int:
    return int((await box.text("test -e beat && wc -c < beat || echo 0")).strip())


async def _beating(box: Box) -> bool:
    before = await _size(box)
    await asyncio.sleep(QUIET_S)
    return await _size(box) > before


@GROUP.positive()
async def a_daemon_of_the_probe_shows(rig: Rig) -> None:
    """The probe's daemons outlive the command that started them, and show in a file that they live."""
    async with rig.own_box() as box:
        await box.probe("deaf", "beat", LIFE_S)
        expect.that(await _beating(box), "the daemon to be alive")


async def _ended_by_time_out(rig: Rig, kind: str) -> None:
    async with rig.own_box() as box:
        await box.bring_probe()
        result = await box.sh(f"{PROBE} {kind} beat {LIFE_S}; sleep {LIFE_S}", timeout_s=0.6)
        expect.that(result.timed_out, "a time-out")
        expect.that(await _size(box) > 0, "the daemon to have lived before the time-out")
        expect.that(not await _beating(box), "the daemon to be dead after the time-out")
        await box.alive()


@GROUP.negative(control=a_daemon_of_the_probe_shows, proves=("C18", "C33"))
async def time_out_kills_what_is_deaf_to_every_signal(rig: Rig) -> None:
    """A daemon that ignores and blocks each signal there is dies with its command's time-out."""
    await _ended_by_time_out(rig, "deaf")


@GROUP.negative(control=a_daemon_of_the_probe_shows, proves=("C18",))
async def time_out_kills_what_is_never_the_same_process(rig: Rig) -> None:
    """A daemon that forks and exits as fast as it can, so that no pid is ever its own for long, dies too."""
    await _ended_by_time_out(rig, "runner")


@GROUP.negative(control=a_daemon_of_the_probe_shows, proves=("C18", "C33"))
async def freeze_ends_what_will_not_die(rig: Rig) -> None:
    """Deaf daemons and runners at once: a freeze ends them all, and the evidence stands still."""
    async with rig.own_box() as box:
        await box.bring_probe()
        start = f"for i in 1 2 3; do {PROBE} deaf beat {LIFE_S}; {PROBE} runner beat {LIFE_S}; done"
        await box.text(start)
        expect.that(await _beating(box), "the daemons to live")
        expect.kind(await box.run(Freeze()), FreezeResult)
        sizes = set()
        for _ in range(3):
            got = expect.kind(await box.run(Get(root=".", paths=("beat",), max_bytes=512 * MIB)), GetResult)
            sizes.add(len(got.tar))
            await asyncio.sleep(QUIET_S / 2)
        expect.equal(len(sizes), 1, "sizes of the file that the daemons wrote to")


@GROUP.negative(control=a_daemon_of_the_probe_shows, proves=("C33",))
async def destroy_ends_what_will_not_die(rig: Rig) -> None:
    """A box full of deaf daemons and runners is gone when destroy returns, and soon."""
    async with rig.own_box() as box:
        await box.bring_probe()
        await box.text(f"for i in 1 2 3; do {PROBE} deaf beat {LIFE_S}; {PROBE} runner beat {LIFE_S}; done")
        began = time.monotonic()
        await rig.backend.destroy(box.id)
        expect.that(time.monotonic() - began < 15, "destroy to be quick")
        expect.that(box.id not in await rig.listed(), "the box to be gone")


async def _dead(box: Box) -> int:
    return sum(state == "Z" for _, _, state, _ in await box.facts("processes"))


@GROUP.positive(proves=("C33",))
async def orphans_are_buried(rig: Rig) -> None:
    """Grandchildren whose parents ended first leave no zombies: PID 1 buries them."""
    async with rig.own_box() as box:
        expect.equal(await box.facts("orphans", 40), [["40"]], "orphans made")

        async def buried() -> bool:
            return await _dead(box) == 0

        await until(buried, "all orphans to be buried")


@GROUP.negative(control=own_processes_are_seen, proves=("C33",))
async def a_storm_of_zombies_is_survived(rig: Rig) -> None:
    """A process that buries none of its children uses up processes, not the box: others work, and its end frees them."""
    async with rig.own_box() as box:
        await box.bring_probe()

        async def stormy() -> bool:
            return await _dead(box) >= 50

        async with beside(box.exec(box.probe_op("zombies", 60, timeout_s=1.0))) as storm:
            await until(stormy, "the zombies")
            await box.alive()
            expect.that((await storm).timed_out, "the storm to go on until its time-out")

        async def over() -> bool:
            return await _dead(box) == 0

        await until(over, "the zombies to be gone with their parent")


@GROUP.negative(control=own_processes_are_seen, proves=("C11",), limit_s=60)
async def many_small_hogs_harm_no_neighbour(rig: Rig) -> None:
    """Many processes that share the taking of too much memory end themselves, or the box: told as its own doing, and no other's harm."""
    neighbour = await rig.box()
    async with rig.own_box(rig.limited(memory_mib=192)) as box, beside(_to_its_end(box)) as storm:
        while not storm.done():
            began = time.monotonic()
            await neighbour.text("true")
            expect.that(time.monotonic() - began < 5, "the neighbour to be quick")
            await asyncio.sleep(0.2)
        if await storm:
            await box.alive()


async def _to_its_end(box: Box) -> bool:
    """Whether the box outlived the hogs."""
    await box.bring_probe()
    try:
        await box.exec(box.probe_op("hogs", 60, 8, timeout_s=8.0))
        await box.alive()
    except SandboxDead:
        return False
    return True


@GROUP.negative(control=text_is_written_and_read, proves=("C15",))
async def a_full_box_can_still_be_graded(rig: Rig) -> None:
    """With no byte left on its disk a box runs commands, gives its files and its delta, and freezes."""
    async with rig.own_box(rig.limited(disk_mib=DISK_MIB)) as box:
        await box.write("kept", b"kept")
        await box.sh("cat /dev/zero > full")  # a command meets the limit as well, where there is such a device
        await _fill_up(box)
        await box.alive()
        expect.kind(await box.run(Freeze()), FreezeResult)
        delta = expect.kind(await box.run(Delta(root=".", manifest=rig.manifest)), DeltaResult)
        expect.that({"kept", "full"} <= {change.path for change in delta.changes}, "the delta to name what was written")
        expect.kind(await box.run(Get(root=".", paths=("kept",), max_bytes=MIB)), GetResult)


async def _fill_up(box: Box) -> None:
    """Take what is left, in ever smaller pieces; the last one must be refused."""
    for size in (MIB, MIB // 4, 4096):
        for number in range(2 * DISK_MIB):
            result = await box.run(Write(path=f"rest-{size}-{number}", data=b"x" * size))
            if isinstance(result, Failure):
                break
    expect.refused(result, FailureCode.NO_SPACE)


@GROUP.negative(control=output_below_and_at_its_cap_is_whole)
async def words_of_an_engine_are_only_words(rig: Rig) -> None:
    """A command that prints and exits as a broken engine would is a command that printed and exited so."""
    box = await rig.box()
    for status, words in ENGINE_WORDS:
        result = await box.exec(box.shell_op(f"echo '{words}' >&2; exit {status}"))
        found = (result.exit_code, result.signal, result.stdout.head.decode(), result.oom_killed)
        expect.equal(found, (status, None, f"{words}\n", False), "the result")
    await box.alive()


@GROUP.negative(control=environment_is_given, proves=("C23",))
async def no_secret_of_the_host_is_in_any_environment(rig: Rig) -> None:
    """No process of a box, its agent's included, has a value of this process's environment in its own or in its command line."""
    box = await rig.box()
    seen = "\n".join(text for _, text in await box.facts("environ"))
    expect.that("TILTYARD" in seen or "PATH=" in seen, "the probe to read its own environment at least")
    shared = {"PATH", "HOME", "LANG", "LC_ALL", "TERM", "SHELL", "TZ", "PAGER", "GIT_PAGER", "PWD", "OLDPWD", "USER"}
    values = {name: value for name, value in os.environ.items() if name not in shared and len(value) >= 12}
    expect.equal(sorted(name for name, value in values.items() if value in seen), [], "variables of the host")


@GROUP.positive()
async def limits_can_be_lowered(rig: Rig) -> None:
    """A command may take less than it was given."""
    expect.equal((await (await rig.box()).text("ulimit -n 64; ulimit -n")).strip(), "64", "the lowered limit")


@GROUP.negative(control=limits_can_be_lowered, proves=("C19",))
async def limits_cannot_be_raised(rig: Rig) -> None:
    """Open files, core files and processes have hard limits that no command can raise."""
    box = await rig.box()
    limits = {name: values for name, *values in await box.facts("rlimits")}
    expect.equal(limits["core"], ["0", "0"], "core files")
    for name in ("nofile", "nproc"):
        expect.that(int(limits[name][1]) > 0, f"a limit of {name}, found {limits[name]}")
    for flag, more in (("-n", rig.spec.limits.open_files + 1), ("-c", 1), ("-c", "unlimited"), ("-n", "unlimited")):
        result = await box.sh(f"ulimit {flag} {more}")
        expect.that(result.exit_code != 0, f"ulimit {flag} {more} to be refused")


@GROUP.negative(control=text_is_written_and_read, proves=("C19",))
async def no_core_file_is_written(rig: Rig) -> None:
    """A process that crashes leaves nothing behind."""
    box = await rig.box()
    mark = secrets.token_hex(4)
    result = await box.sh("ulimit -c unlimited 2>/dev/null; kill -SEGV $$")
    expect.equal((result.exit_code, result.signal), (None, "SIGSEGV"), "the crash")
    expect.equal(await box.text(f"ls; find /tmp -name 'core*'; echo {mark}"), f"{mark}\n", "files after the crash")


@GROUP.positive(proves=("C17",))
async def a_character_at_the_cap_is_whole_or_cut(rig: Rig) -> None:
    """Text of one byte less, exactly, and one byte more than the cap, whose last character takes four bytes, stays text."""
    box = await rig.box()
    for size in (1023, 1024, 1025):
        data = b"x" * (size - 4) + "😀".encode()
        result: ExecResult = await box.sh("cat", stdin=data, limit=1024)
        output = result.stdout
        if size <= 1024:
            expect.equal((output.head + output.tail, output.cut_bytes), (data, 0), f"output of {size} bytes")
            continue
        expect.that(output.cut_bytes > 0 and output.tail.endswith("😀".encode()), "a cut, and the last character whole")
        expect.equal(len(output.head) + len(output.tail) + output.cut_bytes, size, "kept and cut in all")


@GROUP.positive(proves=("C27",))
async def names_that_look_alike_are_apart(rig: Rig) -> None:
    """Names that differ in case or in how an umlaut is written are different files, to operations, commands and the delta."""
    box = await rig.box()
    names = ("Readme", "README", "ü", "u\u0308", "a", "\u0430")
    for number, name in enumerate(names):
        await box.write(name, b"%d" % number)
    for number, name in enumerate(names):
        read = expect.kind(await box.run(Read(path=box.path(name))), ReadResult)
        expect.equal(read.data, b"%d" % number, f"content of {name!r}")
    delta = expect.kind(await box.run(Delta(root=box.dir, manifest={})), DeltaResult)
    expect.equal({change.path for change in delta.changes}, {*names}, "names in the delta")
    expect.equal(len((await box.text("ls")).splitlines()), len(names), "names that a command sees")
