"""Files that change under an operation's hands: swapped, grown, hollow, or no files at all. Each race is bounded in time."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from orchestrator.conformance import expect
from orchestrator.conformance.file_checks import packed, sha256, text_is_written_and_read, unpacked
from orchestrator.conformance.model import Group
from orchestrator.conformance.rig import PROBE, Box, Rig, beside, until
from orchestrator.errors import TiltyardError
from orchestrator.operations import (
    Delta,
    DeltaResult,
    Edit,
    ExecResult,
    Failure,
    FailureCode,
    Get,
    GetResult,
    Glob,
    List,
    Operation,
    OperationResult,
    Put,
    Read,
    ReadResult,
    Search,
    SearchResult,
    Write,
    WriteResult,
)

GROUP = Group("races")

RACE_S = 1.0
OPERATION_S = 5.0
"""An operation that takes longer was caught by what it should have refused."""
OUTSIDE = b"outside: nobody may see or change this\n"
MIB = 1024 * 1024
HOLLOW_BYTES = 1024 * 1024 * MIB


@asynccontextmanager
async def _swapping(box: Box, first: str, second: str) -> AsyncIterator["asyncio.Task[ExecResult]"]:
    """While the body runs, up to RACE_S, the probe swaps two names of this check's folder."""
    await box.bring_probe()
    async with beside(box.exec(box.probe_op("race", first, second, RACE_S))) as racing:
        yield racing


async def _tried(box: Box, ops: Sequence[Operation], racing: "asyncio.Task[ExecResult]") -> list[OperationResult]:
    """Results of these operations, over and over until the race is over. Refusals of the host's own are left out."""
    results = []
    while not racing.done():
        for op in ops:
            try:
                results.append(await box.run(op, timeout_s=OPERATION_S))
            except TiltyardError:  # how a put, get or delta may say that the tree is not what it was
                continue
    return results


def _every_way(path: str, folder: str) -> list[Operation]:
    """Every operation that could be led astray at `path`, a file in `folder`."""
    return [
        Read(path=path),
        Write(path=path, data=b"inside\n", parents=False),
        Edit(path=path, old="outside", new="changed", expected_count=None),
        List(path=folder),
        Glob(pattern="*", path=folder),
        Search(pattern="outside", path=folder),
    ]


async def _trap(box: Box) -> str:
    """A folder beyond the workspace, with a file in it that must stay as it is and unseen."""
    folder = f"/home/agent/trap-{box.dir}"
    await box.text(f"mkdir -p {folder}; cat > {folder}/file", stdin=OUTSIDE)
    return folder


async def _untouched(box: Box, folder: str) -> None:
    found = await box.text(f"ls -a {folder} | tr '\\n' ' '; cat {folder}/file")
    expect.equal(found, f". .. file {OUTSIDE.decode()}", "the folder outside, and its file")


def _told_nothing(results: Sequence[OperationResult]) -> None:
    """None of them holds what lies outside."""
    for result in results:
        if isinstance(result, ReadResult):
            expect.that(OUTSIDE not in result.data, "never the content outside the workspace")
        if isinstance(result, SearchResult):
            expect.equal(result.matches, (), "matches outside the workspace")
        if isinstance(result, GetResult):
            expect.that(OUTSIDE not in unpacked(result.tar).values(), "never a file from outside in a get")
        if isinstance(result, DeltaResult):
            hashes = {change.sha256 for change in result.changes}
            expect.that(sha256(OUTSIDE) not in hashes, "never the hash of a file outside in a delta")


@GROUP.positive()
async def a_swapped_folder_can_be_used(rig: Rig) -> None:
    """The probe swaps two plain folders hundreds of times while operations read and write in them, and those succeed."""
    box = await rig.box()
    await box.text("mkdir d e; echo x > d/file; echo x > e/file")
    async with _swapping(box, "d", "e") as racing:
        results = await _tried(box, _every_way(box.path("d/file"), box.path("d")), racing)
        swaps = expect.succeeded(await racing, "the racer").stdout.head
    expect.that(int(swaps) > 100, f"hundreds of swaps, found {swaps!r}")
    for kind in (ReadResult, WriteResult):
        expect.that(any(isinstance(result, kind) for result in results), f"a {kind.__name__} now and then")


@GROUP.negative(control=a_swapped_folder_can_be_used, proves=("C27",), limit_s=45)
async def a_folder_swapped_for_a_link_leads_nowhere(rig: Rig) -> None:
    """No operation that meets a folder swapped for a link, in one step and thousands of times, reads or writes where it points."""
    box = await rig.box()
    trap = await _trap(box)
    await box.text(f"mkdir d; echo inside > d/file; ln -s {trap} l")
    async with _swapping(box, "d", "l") as racing:
        results = await _tried(box, _every_way(box.path("d/file"), box.path("d")), racing)
    expect.that(len(results) > 20, "operations enough for a race")
    _told_nothing(results)
    await _untouched(box, trap)


@GROUP.negative(control=a_swapped_folder_can_be_used, proves=("C27", "C28"), limit_s=45)
async def what_the_host_takes_is_never_led_outside(rig: Rig) -> None:
    """Put, get and delta, which the host asks for, keep to the folder too while it is swapped for a link."""
    box = await rig.box()
    trap = await _trap(box)
    await box.text(f"mkdir d; echo inside > d/file; ln -s {trap} l")
    ops: list[Operation] = [
        Get(root=box.dir, paths=("d/file",), max_bytes=MIB),
        Delta(root=box.dir, manifest={}),
        Put(path=box.path("d"), tar=packed({"file": b"put\n"})),
    ]
    async with _swapping(box, "d", "l") as racing:
        results = await _tried(box, ops, racing)
    expect.that(any(isinstance(result, DeltaResult) for result in results), "deltas during the race")
    _told_nothing(results)
    await _untouched(box, trap)


@GROUP.negative(control=a_swapped_folder_can_be_used, proves=("C27",), limit_s=45)
async def a_file_swapped_for_a_link_leads_nowhere(rig: Rig) -> None:
    """The same where the last name of the path is swapped for a link to a file."""
    box = await rig.box()
    trap = await _trap(box)
    await box.text(f"echo inside > file; ln -s {trap}/file link")
    ops = [*_every_way(box.path("file"), box.dir)[:3], Get(root=box.dir, paths=("file",), max_bytes=MIB)]
    async with _swapping(box, "file", "link") as racing:
        results = await _tried(box, ops, racing)
    expect.that(len(results) > 20, "operations enough for a race")
    _told_nothing(results)
    await _untouched(box, trap)


@GROUP.negative(control=a_swapped_folder_can_be_used, proves=("C27",), limit_s=45)
async def a_file_swapped_for_a_pipe_hangs_nobody(rig: Rig) -> None:
    """An operation that meets a file swapped for a named pipe ends at once all the same."""
    box = await rig.box()
    await box.text("echo inside > file; mkfifo pipe")
    path = box.path("file")
    ops: list[Operation] = [
        Read(path=path),
        Edit(path=path, old="inside", new="inside"),
        Search(pattern="inside", path=box.dir),
        Get(root=box.dir, paths=("file",), max_bytes=MIB),
        Delta(root=box.dir, manifest={}),
    ]
    async with _swapping(box, "file", "pipe") as racing:
        results = await _tried(box, ops, racing)
    expect.that(any(isinstance(result, ReadResult) for result in results), "reads of the file during the race")


@GROUP.negative(control=text_is_written_and_read, proves=("C27",), limit_s=45)
async def a_hollow_file_costs_nothing(rig: Rig) -> None:
    """A sparse file as large as the box allows, up to a terabyte, is read in slices and named in the delta, quickly."""
    box = await rig.box()
    size = int((await box.facts("sparse", "hollow", HOLLOW_BYTES))[-1][0])
    expect.that(size >= 256 * MIB, f"a large sparse file, found {size} bytes")
    began, path = time.monotonic(), box.path("hollow")
    read = expect.kind(await box.run(Read(path=path, offset_bytes=size - 10)), ReadResult)
    expect.equal((read.data, read.size_bytes, read.eof), (bytes(10), size, True), "its end")
    expect.equal(len(expect.kind(await box.run(Read(path=path)), ReadResult).data), MIB, "bytes of one read")
    expect.refused(await box.run(Edit(path=path, old="a", new="b")), FailureCode.TOO_LARGE)
    found = expect.kind(await box.run(Search(pattern="x", path=box.dir)), SearchResult)
    expect.equal(found.files_searched, 0, "files searched")
    delta = expect.kind(await box.run(Delta(root=box.dir, manifest={})), DeltaResult)
    expect.equal([(change.path, change.size_bytes) for change in delta.changes], [("hollow", size)], "the delta")
    await _refused_get(box, Get(root=box.dir, paths=("hollow",), max_bytes=MIB))
    expect.that(time.monotonic() - began < 15, "all of it to be quick")
    await box.text("rm hollow")


async def _refused_get(box: Box, op: Get) -> None:
    try:
        result = await box.run(op, timeout_s=OPERATION_S)
    except TiltyardError:
        return
    expect.kind(result, Failure)


@GROUP.positive(proves=("C27",))
async def a_growing_file_is_taken_as_it_was(rig: Rig) -> None:
    """A get of a file that grows meanwhile is a sound tar of one member, as long as the file was when it was looked at."""
    box = await rig.box()
    await box.bring_probe()
    async with beside(box.sh(f"for i in $(seq 400); do {PROBE} flood 10000 >> log; done", timeout_s=6)):

        async def begun() -> bool:
            return (await box.sh("test -s log")).exit_code == 0

        await until(begun, "the file to grow")
        for _ in range(10):
            got = expect.kind(await box.run(Get(root=box.dir, paths=("log",), max_bytes=64 * MIB)), GetResult)
            expect.equal([*unpacked(got.tar)], ["log"], "members")


@GROUP.negative(control=text_is_written_and_read, proves=("C27",))
async def a_socket_is_no_file(rig: Rig) -> None:
    """A unix socket is refused by operations and named as something else in listing and delta."""
    box = await rig.box()
    await box.bring_probe()
    async with beside(box.exec(box.probe_op("listen", "socket", timeout_s=10))):

        async def there() -> bool:
            return (await box.sh("test -S socket")).exit_code == 0

        await until(there, "the socket")
        for op in (Read(path=box.path("socket")), Edit(path=box.path("socket"), old="a", new="b")):
            expect.refused(await box.run(op), FailureCode.NOT_REGULAR)
        await _refused_get(box, Get(root=box.dir, paths=("socket",), max_bytes=MIB))
        delta = expect.kind(await box.run(Delta(root=box.dir, manifest={})), DeltaResult)
        expect.equal([(change.path, change.type) for change in delta.changes], [("socket", "other")], "the delta")
        await box.text("rm socket")
