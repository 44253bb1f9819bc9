"""File operations on paths that mean harm: everything here was tried by somebody's box."""

import asyncio
import io
import tarfile

from orchestrator.conformance import expect
from orchestrator.conformance.file_checks import packed, text_is_written_and_read, unpacked
from orchestrator.conformance.model import Group
from orchestrator.conformance.rig import Box, Rig
from orchestrator.operations import (
    Edit,
    Failure,
    FailureCode,
    Get,
    GetResult,
    Glob,
    GlobResult,
    List,
    ListResult,
    Operation,
    Put,
    PutResult,
    Read,
    ReadResult,
    Search,
    SearchResult,
    Write,
)

GROUP = Group("paths")

TEXT = b"in the workspace\n"


def _all_kinds(path: str) -> list[Operation]:
    """One operation of each kind that touches `path`."""
    return [
        Read(path=path),
        Write(path=path, data=b"x"),
        Edit(path=path, old="a", new="b"),
        List(path=path),
        Glob(pattern="*", path=path),
        Search(pattern="a", path=path),
    ]


async def _all_refused(box: Box, path: str, *codes: FailureCode) -> None:
    for op in _all_kinds(path):
        expect.refused(await box.run(op), *codes)


@GROUP.negative(control=text_is_written_and_read, proves=("C27",))
async def dot_dot_is_refused(rig: Rig) -> None:
    """`..` anywhere in a path is refused, also where it would stay inside."""
    box = await rig.box()
    for path in ("../x", box.path("a/../b"), "..", f"{rig.spec.workdir}/../etc/passwd"):
        await _all_refused(box, path, FailureCode.BAD_PATH)


@GROUP.negative(control=text_is_written_and_read, proves=("C27",))
async def nul_is_refused(rig: Rig) -> None:
    """A NUL byte in a path is refused, not cut at."""
    await _all_refused(await rig.box(), "a\0b", FailureCode.BAD_PATH)


@GROUP.negative(control=text_is_written_and_read, proves=("C27",))
async def empty_path_is_refused(rig: Rig) -> None:
    """An empty path names nothing."""
    await _all_refused(await rig.box(), "", FailureCode.BAD_PATH)


@GROUP.positive()
async def longest_names_work(rig: Rig) -> None:
    """Names of 255 bytes, blanks, quotes and letters beyond ASCII are fine."""
    box = await rig.box()
    for name in ("n" * 255, "a b 'c' \"d\"", "grüße-世界", "-rf", "new\nline", "*"):
        await box.write(name, TEXT)
        expect.equal(await box.read(name), TEXT, f"content of {name[:20]!r}")


@GROUP.negative(control=longest_names_work, proves=("C27",))
async def too_long_names_are_refused(rig: Rig) -> None:
    """A name over 255 bytes or a path over 4,096 is the model's mistake."""
    box = await rig.box()
    for path in ("n" * 256, "/".join(["d" * 200] * 21)):
        await _all_refused(box, path, FailureCode.BAD_PATH, FailureCode.NOT_FOUND)


@GROUP.negative(control=text_is_written_and_read, proves=("C27",))
async def writing_outside_is_refused(rig: Rig) -> None:
    """Only workspace, home and /tmp may be written by operations."""
    box = await rig.box()
    for path in ("/etc/conformance", "/conformance", "/usr/bin/conformance", "/root/x", f"{rig.spec.workdir}-other/x"):
        expect.refused(await box.run(Write(path=path, data=b"x")), FailureCode.OUTSIDE)


@GROUP.positive()
async def the_image_is_readable(rig: Rig) -> None:
    """Files of the image may be read, as a model may want to."""
    result = expect.kind(await (await rig.box()).run(Read(path="/etc/passwd")), ReadResult)
    expect.that(b"root:" in result.data, "the image's /etc/passwd")


@GROUP.negative(control=the_image_is_readable, proves=("C27",))
async def kernel_files_are_refused(rig: Rig) -> None:
    """/proc, /sys and /dev are no places for operations; magic links lead nowhere."""
    box = await rig.box()
    for path in (
        "/proc/self/root/etc/passwd",
        "/proc/1/environ",
        "/proc/self/fd/0",
        "/sys/kernel/mm",
        "/dev/zero",
        "/dev/null",
    ):
        expect.refused(await box.run(Read(path=path)), FailureCode.OUTSIDE)


@GROUP.negative(control=the_image_is_readable, proves=("C27",))
async def the_agents_files_are_refused(rig: Rig) -> None:
    """The folder of the agent's socket, journal and configuration is closed to operations."""
    box = await rig.box()
    for path in (
        "/run/tiltyard",
        "/run/tiltyard/state/journal",
        "/run/tiltyard/agent.sock",
        "/run/tiltyard/config.json",
    ):
        for op in (Read(path=path), List(path=path)):
            expect.refused(await box.run(op), FailureCode.OUTSIDE)


@GROUP.negative(control=text_is_written_and_read, proves=("C27",))
async def final_symlink_is_refused(rig: Rig) -> None:
    """A link is neither read nor written through, wherever it points, and its target stays as it was."""
    box = await rig.box()
    await box.write("target", TEXT)
    await box.text("ln -s target inside; ln -s /etc/passwd outside; ln -s nowhere dangling; ln -s loop loop")
    for name in ("inside", "outside", "dangling", "loop"):
        for op in (
            Read(path=box.path(name)),
            Write(path=box.path(name), data=b"x"),
            Edit(path=box.path(name), old="a", new="b"),
        ):
            expect.refused(await box.run(op), FailureCode.SYMLINK)
    expect.equal(await box.text("cat target; test -e nowhere || echo none"), TEXT.decode() + "none\n", "targets")


@GROUP.negative(control=text_is_written_and_read, proves=("C27",))
async def symlink_on_the_way_is_refused(rig: Rig) -> None:
    """A linked folder is not walked through, by any operation."""
    box = await rig.box()
    await box.text("mkdir real; echo a > real/file; ln -s real near; ln -s /etc far; ln -s / root")
    for path in ("near/file", "far/passwd", "root/etc/passwd"):
        for op in (
            Read(path=box.path(path)),
            Write(path=box.path(path), data=b"x"),
            Edit(path=box.path(path), old="a", new="b"),
        ):
            expect.refused(await box.run(op), FailureCode.SYMLINK)
    for folder in (
        List(path=box.path("far")),
        Glob(pattern="*", path=box.path("far")),
        Search(pattern="root", path=box.path("far")),
    ):
        expect.refused(await box.run(folder), FailureCode.SYMLINK)


@GROUP.positive()
async def walks_find_files_beside_links(rig: Rig) -> None:
    """List, glob and search name links and do not enter them."""
    box = await rig.box()
    await box.text("mkdir d; echo needle > d/in; ln -s /etc d/etc; ln -s in d/link")
    entries = expect.kind(await box.run(List(path=box.dir, depth=9)), ListResult).entries
    kinds = {entry.path.removeprefix(f"{box.dir}/"): entry.kind for entry in entries}
    expect.equal(kinds, {"d": "dir", "d/etc": "symlink", "d/in": "file", "d/link": "symlink"}, "listing")
    globbed = expect.kind(await box.run(Glob(pattern="**/*", path=box.dir)), GlobResult)
    expect.equal([path.rpartition("/")[2] for path in globbed.paths], ["in"], "files by pattern")
    found = expect.kind(await box.run(Search(pattern="needle|root", path=box.dir)), SearchResult)
    expect.equal([match.path.rpartition("/")[2] for match in found.matches], ["in"], "files by content")


@GROUP.negative(control=text_is_written_and_read, limit_s=15, proves=("C27",))
async def fifo_does_not_hang(rig: Rig) -> None:
    """A named pipe is refused at once by every operation, though nobody holds its other end."""
    box = await rig.box()
    await box.text("mkfifo pipe")
    for op in (
        Read(path=box.path("pipe")),
        Write(path=box.path("pipe"), data=b"x"),
        Edit(path=box.path("pipe"), old="a", new="b"),
    ):
        expect.refused(await box.run(op, timeout_s=5), FailureCode.NOT_REGULAR)
    found = expect.kind(await box.run(Search(pattern="x", path=box.dir), timeout_s=5), SearchResult)
    expect.equal(found.files_searched, 0, "files searched")


@GROUP.positive(proves=("C27",))
async def a_write_leaves_other_names_alone(rig: Rig) -> None:
    """A write replaces the name, not the file behind a hard link to it."""
    box = await rig.box()
    await box.text("echo old > one; ln one two")
    await box.write("one", b"new\n")
    expect.equal(await box.text("cat one two"), "new\nold\n", "both names")


@GROUP.positive(proves=("C27",))
async def growing_file_is_read_within_its_cap(rig: Rig) -> None:
    """A file that grows while it is read yields a slice, not a hang."""
    box = await rig.box()
    pid = (await box.text("(while true; do echo more >> log; done) & echo $!")).strip()
    try:
        for _ in range(5):
            result = await box.run(Read(path=box.path("log"), limit_bytes=1000), timeout_s=5)
            size = len(result.data) if isinstance(result, ReadResult) else 0
            expect.that(size <= 1000, "at most what was asked for")
    finally:
        await box.text(f"kill -9 {pid}")


@GROUP.positive(proves=("C27",))
async def names_that_are_no_text_are_survived(rig: Rig) -> None:
    """A name that is not UTF-8 is listed as something, and does not spoil what lies beside it."""
    box = await rig.box()
    await box.text(': > good; : > "$(printf "bad\\377")"')
    entries = expect.kind(await box.run(List(path=box.dir)), ListResult).entries
    kinds = [entry.kind for entry in entries]
    expect.equal((len(entries), sorted(kinds)), (2, ["file", "other"]), "the listing")
    expect.equal(expect.kind(await box.run(Glob(pattern="g*", path=box.dir)), GlobResult).truncated, False, "a glob")


@GROUP.negative(control=text_is_written_and_read, proves=("C27",))
async def half_surrogates_are_refused(rig: Rig) -> None:
    """Text that has no UTF-8 form names no file."""
    result = await (await rig.box()).run(Read(path="a\udcffb"))
    expect.refused(result, FailureCode.BAD_PATH, FailureCode.NOT_TEXT)


@GROUP.positive()
async def swapped_folder_is_usable(rig: Rig) -> None:
    """The race's probe works: a folder that a command makes anew all the time can be read and written now and then."""
    box = await rig.box()
    await _race(rig, box, "mkdir d", "rm -rf d; mkdir d")


@GROUP.negative(control=swapped_folder_is_usable, proves=("C27",))
async def swap_race_never_leaves_the_workspace(rig: Rig) -> None:
    """A folder that a command swaps for a link outside, over and over, never leads an operation there."""
    box = await rig.box()
    trap = f"/tmp/{box.id}-trap"  # noqa: S108  (in the box)
    await box.text(f"mkdir {trap}; echo outside > {trap}/file")
    await _race(rig, box, f"ln -s {trap} d", "rm -rf d; mkdir d; rmdir d; ln -s " + trap + " d", trap=trap)
    expect.equal(await box.text(f"cat {trap}/file; ls {trap}"), "outside\nfile\n", "the folder outside")


async def _race(rig: Rig, box: Box, first: str, swap: str, *, trap: str = "") -> None:
    """Reads and writes of `d/file` while a loop swaps `d`; without a trap some must succeed, with one no read may tell of it."""
    del rig
    pid = (await box.text(f"{first}; (while true; do {swap}; done) >/dev/null 2>&1 & echo $!")).strip()
    path, reached = box.path("d/file"), 0
    try:
        for _ in range(40):
            write = await box.run(Write(path=path, data=b"inside\n", parents=False))
            read = await box.run(Read(path=path))
            reached += not isinstance(write, Failure)
            if isinstance(read, ReadResult):
                expect.that(read.data != b"outside\n", "never the content outside the workspace")
            await asyncio.sleep(0)
    finally:
        await box.text(f"kill -9 {pid}; sleep 0.1")
    if not trap:
        expect.that(reached > 0, "some operation to reach the folder between two swaps")


def _tar_of(info: tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(info)
    return buffer.getvalue()


@GROUP.positive()
async def put_takes_plain_members(rig: Rig) -> None:
    """Regular files of a tar land below the folder."""
    box = await rig.box()
    expect.kind(await box.run(Put(path=box.dir, tar=packed({"plain/file": TEXT}))), PutResult)
    expect.equal(await box.read("plain/file"), TEXT, "content")


@GROUP.negative(control=put_takes_plain_members, proves=("C28",))
async def put_of_a_link_is_refused(rig: Rig) -> None:
    """Links, devices and FIFOs in a tar are not unpacked."""
    box = await rig.box()
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
        info = tarfile.TarInfo("member")
        info.type, info.linkname = kind, "/etc/passwd"
        await _not_put(box, Put(path=box.dir, tar=_tar_of(info)))
        expect.equal((await box.sh("test -e member || test -L member")).exit_code, 1, "the member's absence")


@GROUP.negative(control=put_takes_plain_members, proves=("C28",))
async def put_that_climbs_is_refused(rig: Rig) -> None:
    """`..`, absolute names and linked folders in a tar lead nowhere."""
    box = await rig.box()
    await box.text("mkdir t out; ln -s ../out t/link")
    for name in ("../climbed", "a/../../climbed", "link/climbed"):
        await _not_put(box, Put(path=box.path("t"), tar=packed({name: b"x"})))
    expect.equal(await box.text("ls out; test -e climbed || echo none"), "none\n", "what was put elsewhere")


async def _not_put(box: Box, op: Put) -> None:
    """The put must be refused, as a result or as an error of the caller's doing."""
    try:
        result = await box.run(op)
    except Exception as error:  # noqa: BLE001  (a tar is the host's own: backends differ in how they refuse one)
        expect.that(not isinstance(error, TimeoutError), f"a refusal, not {error!r}")
        return
    expect.kind(result, Failure)


@GROUP.positive()
async def get_takes_regular_files(rig: Rig) -> None:
    """Named regular files come out as a tar."""
    box = await rig.box()
    await box.write("one", TEXT)
    got = expect.kind(await box.run(Get(root=box.dir, paths=("one",), max_bytes=10_000)), GetResult)
    expect.equal(unpacked(got.tar), {"one": TEXT}, "the tar")


@GROUP.negative(control=get_takes_regular_files, limit_s=15, proves=("C28",))
async def get_of_links_and_pipes_is_refused(rig: Rig) -> None:
    """What is not a regular file does not leave the box, and does not hang."""
    box = await rig.box()
    await box.text("ln -s /etc/passwd link; mkfifo pipe; mkdir folder; ln -s /etc linked")
    for path in ("link", "pipe", "folder", "linked/passwd", "../x"):
        try:
            result = await box.run(Get(root=box.dir, paths=(path,), max_bytes=10_000_000), timeout_s=5)
        except Exception as error:  # noqa: BLE001  (as for put)
            expect.that(not isinstance(error, TimeoutError), f"a refusal, not {error!r}")
            continue
        expect.kind(result, Failure)
