"""Archives that mean harm, put into a box: nothing of them lands outside the folder, and nothing is anything but a file."""

import io
import tarfile
from collections.abc import Mapping

from orchestrator.conformance import expect
from orchestrator.conformance.file_checks import packed
from orchestrator.conformance.model import Group
from orchestrator.conformance.path_checks import put_takes_plain_members
from orchestrator.conformance.rig import Box, Rig
from orchestrator.errors import TiltyardError
from orchestrator.operations import Failure, FailureCode, List, ListResult, Put, PutResult

GROUP = Group("archives")

MIB = 1024 * 1024
GIB = 1024 * MIB
DISK_MIB = 32
BLOCK = tarfile.BLOCKSIZE


def _member(name: str, *, kind: bytes = tarfile.REGTYPE, link: str = "", data: bytes = b"", size: int = -1) -> bytes:
    """One member as ustar; `size` may lie."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, len(data) if size < 0 else size
    return info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % BLOCK)


def _pax(headers: Mapping[str, str], name: str = "plain", data: bytes = b"x") -> bytes:
    """A member whose extended header says something else than its own."""
    info = tarfile.TarInfo(name)
    info.size, info.pax_headers = len(data), dict(headers)
    return info.tobuf(tarfile.PAX_FORMAT) + data + bytes(-len(data) % BLOCK)


def _long_name(name: str, real: bytes) -> bytes:
    return _member("././@LongLink", kind=tarfile.GNUTYPE_LONGNAME, data=real + b"\0") + _member(name, data=b"x")


END = bytes(2 * BLOCK)
TRICKS: Mapping[str, bytes] = {
    "a link, then a file through it": _member("l", kind=tarfile.SYMTYPE, link="../out")
    + _member("l/climbed", data=b"x"),
    "a chain of links": b"".join(
        [
            _member("a", kind=tarfile.SYMTYPE, link="."),
            _member("b", kind=tarfile.SYMTYPE, link="a/.."),
            _member("b/climbed", data=b"x"),
        ]
    ),
    "a hard link outside": _member("h", kind=tarfile.LNKTYPE, link="../out/kept") + _member("h", data=b"x"),
    "a hard link to an absolute name": _member("h", kind=tarfile.LNKTYPE, link="/etc/passwd"),
    "a device": _member("disk", kind=tarfile.BLKTYPE),
    "a pipe": _member("pipe", kind=tarfile.FIFOTYPE),
    "an extended header's path": _pax({"path": "../climbed"}),
    "an extended header's absolute path": _pax({"path": "/tmp/climbed"}),  # noqa: S108  (in the box)
    "an extended header's size": _pax({"size": str(10 * GIB)}),
    "an extended header's sparse map": _pax({"GNU.sparse.major": "1", "GNU.sparse.realsize": str(10 * GIB)}),
    "a long name": _long_name("plain", b"../climbed"),
    "a member that says to be larger": _member("big", data=b"x", size=10 * GIB % (8 * GIB)),
    "a folder's name that climbs": _member("../climbed/", kind=tarfile.DIRTYPE),
    "an absolute folder": _member("/climbed/", kind=tarfile.DIRTYPE),
    "a broken checksum": b"name" + bytes(144) + b"999999 " + bytes(BLOCK - 155),
}


@GROUP.negative(control=put_takes_plain_members, proves=("C28",))
async def tricks_are_refused(rig: Rig) -> None:
    """Links and files through them, devices, extended headers, long names, lies about sizes: refused, each without effect elsewhere."""
    box = await rig.box()
    await box.text("mkdir out; echo kept > out/kept")
    for number, (name, members) in enumerate(TRICKS.items()):
        folder = f"t{number}"
        await box.text(f"mkdir {folder}")
        await _refused(box, folder, members + END, name)
        landed = expect.kind(await box.run(List(path=box.path(folder), depth=9)), ListResult).entries
        expect.that({entry.kind for entry in landed} <= {"file", "dir"}, f"only files to come of {name}")
        climbed = "for f in climbed /climbed /tmp/climbed; do test ! -e $f || echo $f; done"
        expect.equal(await box.text(f"{climbed}; ls out; cat out/kept"), "kept\nkept\n", f"what came of {name}")
    await box.alive()


async def _refused(box: Box, folder: str, tar: bytes, name: str) -> None:
    """A refusal, as a result or as an error of the caller's doing."""
    try:
        result = await box.run(Put(path=box.path(folder), tar=tar))
    except TiltyardError:
        return
    expect.that(isinstance(result, Failure), f"{name} to be refused")


@GROUP.negative(control=put_takes_plain_members, proves=("C28",))
async def a_torn_archive_is_refused(rig: Rig) -> None:
    """An archive that ends in the middle of a member is told, not taken for whole."""
    box = await rig.box()
    whole = packed({"first": b"1" * 2000, "second": b"2" * 2000})
    for cut in (BLOCK // 2, BLOCK + 100, 3 * BLOCK + 100, 5 * BLOCK + 100, 6 * BLOCK + 700):
        await box.text("rm -rf torn; mkdir torn")
        await _refused(box, "torn", whole[:cut], f"an archive cut at {cut} bytes")
    await box.alive()


@GROUP.negative(control=put_takes_plain_members, proves=("C2", "C28"))
async def no_privilege_comes_by_an_archive(rig: Rig) -> None:
    """Set-user and set-group bits, sticky bits, owners and attributes of a member are not taken over."""
    box = await rig.box()
    info = tarfile.TarInfo("tool")
    info.mode, info.uid, info.gid, info.uname, info.gname = 0o7755, 0, 0, "root", "root"
    info.pax_headers = {"SCHILY.xattr.security.capability": "all"}
    info.size = 2
    tar = info.tobuf(tarfile.PAX_FORMAT) + b"x\n" + bytes(BLOCK - 2) + END
    try:
        result = await box.run(Put(path=box.dir, tar=tar))
    except TiltyardError:
        return
    if isinstance(result, PutResult):
        entries = expect.kind(await box.run(List(path=box.dir)), ListResult).entries
        expect.equal([entry.mode & 0o7777 for entry in entries], [0o755], "its mode")
        expect.equal(await box.text("echo more >> tool; cat tool"), "x\nmore\n", "the file, which is the commands' own")


@GROUP.negative(control=put_takes_plain_members, proves=("C15", "C28"))
async def an_archive_larger_than_the_disk_is_refused(rig: Rig) -> None:
    """Zeros without end stop at the box's disk, which can be used again when they are removed."""
    async with rig.own_box(rig.limited(disk_mib=DISK_MIB)) as box:
        buffer = io.BytesIO(_member("zeros", data=bytes(2 * DISK_MIB * MIB)) + END)
        try:
            result = await box.run(Put(path=".", tar=buffer.getvalue()))
        except TiltyardError:
            result = None
        if result is not None:
            expect.refused(result, FailureCode.NO_SPACE)
        await box.text("rm -rf zeros")
        await box.write("again", b"x" * 1000)
        await box.alive()
