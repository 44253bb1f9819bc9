"""File operations on well-meant paths."""

import asyncio
import hashlib
import io
import tarfile

from orchestrator.conformance import expect
from orchestrator.conformance.model import Group
from orchestrator.conformance.rig import Box, Rig
from orchestrator.operations import (
    Edit,
    EditResult,
    FailureCode,
    Get,
    GetResult,
    Glob,
    GlobResult,
    List,
    ListResult,
    Put,
    PutResult,
    Read,
    ReadResult,
    Search,
    SearchResult,
    Write,
    WriteResult,
)

GROUP = Group("files")
BIG_BYTES = 10 * 1024 * 1024


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def packed(members: dict[str, bytes], mode: int = 0o644) -> bytes:
    """A tar of regular files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), mode
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def unpacked(data: bytes) -> dict[str, bytes]:
    """Contents of a tar's regular files."""
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
        members = [(member, archive.extractfile(member)) for member in archive if member.isreg()]
        return {member.name: stream.read() for member, stream in members if stream is not None}


@GROUP.positive()
async def text_is_written_and_read(rig: Rig) -> None:
    """Text comes back as it was written, by operation and by command, with size and hash."""
    box = await rig.box()
    data = "eins\nzwei: ä\n".encode()
    written = await box.write("text", data)
    expect.equal((written.size_bytes, written.created, written.sha256), (len(data), True, sha256(data)), "write")
    result = expect.kind(await box.run(Read(path=box.path("text"))), ReadResult)
    expect.equal((result.data, result.size_bytes, result.eof), (data, len(data), True), "read")
    expect.equal(result.sha256, sha256(data), "hash of the whole file")
    expect.equal(await box.text("cat text"), data.decode(), "the file as a command sees it")


@GROUP.positive()
async def binary_is_written_and_read(rig: Rig) -> None:
    """All byte values survive."""
    box = await rig.box()
    data = bytes(range(256)) * 16
    await box.write("binary", data)
    expect.equal(await box.read("binary"), data, "content")


@GROUP.positive()
async def empty_file_is_written_and_read(rig: Rig) -> None:
    """An empty file is a file."""
    box = await rig.box()
    await box.write("empty", b"")
    result = expect.kind(await box.run(Read(path=box.path("empty"))), ReadResult)
    expect.equal((result.data, result.size_bytes, result.eof), (b"", 0, True), "read")


@GROUP.positive()
async def absolute_paths_in_the_workspace_work(rig: Rig) -> None:
    """A path may be given from the root where it lies in the workspace."""
    box = await rig.box()
    await box.write("here", b"x")
    path = f"{rig.spec.workdir}/{box.path('here')}"
    expect.equal(expect.kind(await box.run(Read(path=path)), ReadResult).data, b"x", "content")


@GROUP.positive()
async def slices_are_read(rig: Rig) -> None:
    """Offset and limit select bytes; the end is told; a slice has no hash of the whole."""
    box = await rig.box()
    await box.write("digits", b"0123456789")
    found = []
    for offset, limit in ((0, 4), (4, 6), (8, 100), (10, 5), (99, 5)):
        op = Read(path=box.path("digits"), offset_bytes=offset, limit_bytes=limit)
        result = expect.kind(await box.run(op), ReadResult)
        found.append((result.data, result.eof, result.size_bytes))
    wanted = [(b"0123", False, 10), (b"456789", True, 10), (b"89", True, 10), (b"", True, 10), (b"", True, 10)]
    expect.equal(found, wanted, "slices")


@GROUP.positive()
async def commands_own_what_is_written(rig: Rig) -> None:
    """A file from an operation can be changed and removed by commands, and the other way round."""
    box = await rig.box()
    await box.write("ours", b"a")
    await box.text("echo b >> ours; mv ours theirs; echo c > made")
    expect.equal(await box.read("theirs"), b"ab\n", "content after the command")
    await box.write("made", b"d")
    expect.equal(await box.text("cat made; rm made theirs; ls"), "d", "after the operation and the removal")


@GROUP.positive()
async def home_and_tmp_are_writable(rig: Rig) -> None:
    """Besides the workspace there are a home and a /tmp."""
    box = await rig.box()
    home = (await box.text('printf %s "$HOME"')).rstrip("/")
    for path in (f"{home}/conformance", "/tmp/conformance"):  # noqa: S108  (in the box)
        expect.kind(await box.run(Write(path=path, data=b"x")), WriteResult)
        expect.equal(await box.text(f"cat {path}; rm {path}"), "x", path)


@GROUP.positive()
async def parents_are_made(rig: Rig) -> None:
    """Missing folders on the way are made where that is asked for."""
    box = await rig.box()
    await box.write("a/b/c/file", b"x")
    expect.equal(await box.text("cat a/b/c/file"), "x", "content")


@GROUP.negative(control=parents_are_made)
async def missing_parents_are_refused(rig: Rig) -> None:
    """Without leave to make folders, a missing one is a refusal and nothing is made."""
    box = await rig.box()
    result = await box.run(Write(path=box.path("no/such/file"), data=b"x", parents=False))
    expect.refused(result, FailureCode.NOT_FOUND)
    expect.equal((await box.sh("test -e no")).exit_code, 1, "the folder's absence")


@GROUP.positive()
async def modes_are_set_and_kept(rig: Rig) -> None:
    """New files are 0644, a given mode is set, an overwrite without one keeps what was."""
    box = await rig.box()
    await box.write("plain", b"")
    await box.write("script", b"echo run", mode=0o755)
    await box.write("script", b"echo again")
    entries = expect.kind(await box.run(List(path=box.dir)), ListResult).entries
    modes = {entry.path.rpartition("/")[2]: entry.mode & 0o777 for entry in entries}
    expect.equal(modes, {"plain": 0o644, "script": 0o755}, "modes")


@GROUP.positive()
async def writes_are_atomic(rig: Rig) -> None:
    """A reader sees the old content or the new, never a part."""
    box = await rig.box()
    sizes = 200_000
    await box.write("swapped", b"a" * sizes)

    async def write() -> None:
        for turn in range(12):
            await box.write("swapped", (b"b" if turn % 2 else b"a") * sizes)

    async def read() -> list[bytes]:
        return [await box.read("swapped") for _ in range(24)]

    _, seen = await asyncio.gather(write(), read())
    bad = [data for data in seen if len(data) != sizes or len(set(data)) != 1]
    expect.equal(len(bad), 0, "reads that saw a part of a write")


@GROUP.positive()
async def expected_hash_lets_the_right_write_through(rig: Rig) -> None:
    """A write may name the content it replaces, or that there is none."""
    box = await rig.box()
    path = box.path("guarded")
    first = await box.run(Write(path=path, data=b"one", expected_sha256="absent"))
    second = await box.run(Write(path=path, data=b"two", expected_sha256=sha256(b"one")))
    expect.that(isinstance(first, WriteResult) and isinstance(second, WriteResult), "both writes to succeed")
    expect.equal(await box.read("guarded"), b"two", "content")


@GROUP.negative(control=expected_hash_lets_the_right_write_through)
async def wrong_expected_hash_is_refused(rig: Rig) -> None:
    """A write that expects another content changes nothing."""
    box = await rig.box()
    await box.write("guarded", b"one")
    result = await box.run(Write(path=box.path("guarded"), data=b"two", expected_sha256=sha256(b"other")))
    expect.refused(result, FailureCode.HASH_MISMATCH)
    expect.equal(await box.read("guarded"), b"one", "content")


@GROUP.negative(control=expected_hash_lets_the_right_write_through)
async def expected_absence_is_refused_where_a_file_is(rig: Rig) -> None:
    """A write that must create does not overwrite."""
    box = await rig.box()
    await box.write("guarded", b"one")
    result = await box.run(Write(path=box.path("guarded"), data=b"two", expected_sha256="absent"))
    expect.refused(result, FailureCode.EXISTS, FailureCode.HASH_MISMATCH)
    expect.equal(await box.read("guarded"), b"one", "content")


@GROUP.negative(control=text_is_written_and_read)
async def missing_file_is_refused(rig: Rig) -> None:
    """Reading or editing what is not there is `not_found`."""
    box = await rig.box()
    for op in (Read(path=box.path("none")), Edit(path=box.path("none"), old="a", new="b")):
        expect.refused(await box.run(op), FailureCode.NOT_FOUND)


@GROUP.negative(control=text_is_written_and_read)
async def directory_is_not_a_file(rig: Rig) -> None:
    """A folder can be neither read nor overwritten, and a file is not a folder."""
    box = await rig.box()
    await box.text("mkdir folder; echo x > file")
    for op in (Read(path=box.path("folder")), Write(path=box.path("folder"), data=b"x")):
        expect.refused(await box.run(op), FailureCode.IS_DIRECTORY)
    for inner in (Read(path=box.path("file/x")), List(path=box.path("file"))):
        expect.refused(await box.run(inner), FailureCode.NOT_A_DIRECTORY)


@GROUP.negative(control=text_is_written_and_read)
async def file_without_permission_is_refused(rig: Rig) -> None:
    """Operations act as the commands' user: what that one may not read is refused."""
    box = await rig.box()
    await box.text("echo secret > locked; chmod 000 locked")
    expect.refused(await box.run(Read(path=box.path("locked"))), FailureCode.PERMISSION)


@GROUP.positive()
async def edit_replaces_exactly(rig: Rig) -> None:
    """One occurrence is replaced, lines and mode around it stay, its line is told."""
    box = await rig.box()
    await box.write("code", "a = 1\nb = 'ä'\nc = 3\n".encode(), mode=0o755)
    result = expect.kind(await box.run(Edit(path=box.path("code"), old="b = 'ä'\nc", new="d = 'ö'\ne")), EditResult)
    expect.equal((result.replaced, result.line), (1, 2), "how many, and where")
    expect.equal(await box.read("code"), "a = 1\nd = 'ö'\ne = 3\n".encode(), "content")
    expect.equal((await box.sh("test -x code")).exit_code, 0, "the executable bit")


@GROUP.positive()
async def edit_can_replace_all(rig: Rig) -> None:
    """Every occurrence is replaced where that is asked for."""
    box = await rig.box()
    await box.write("code", b"x y x y x")
    result = expect.kind(await box.run(Edit(path=box.path("code"), old="x", new="zz", expected_count=None)), EditResult)
    expect.equal((result.replaced, await box.read("code")), (3, b"zz y zz y zz"), "how many, and content")


@GROUP.negative(control=edit_replaces_exactly)
async def edit_without_a_match_is_refused(rig: Rig) -> None:
    """Text that does not occur is the model's mistake; the file stays."""
    box = await rig.box()
    await box.write("code", b"abc")
    expect.refused(await box.run(Edit(path=box.path("code"), old="abd", new="x")), FailureCode.NO_MATCH)
    expect.equal(await box.read("code"), b"abc", "content")


@GROUP.negative(control=edit_replaces_exactly)
async def edit_with_many_matches_is_refused(rig: Rig) -> None:
    """Text that occurs more often than expected is not replaced anywhere."""
    box = await rig.box()
    await box.write("code", b"x x")
    expect.refused(await box.run(Edit(path=box.path("code"), old="x", new="y")), FailureCode.MANY_MATCHES)
    expect.equal(await box.read("code"), b"x x", "content")


@GROUP.negative(control=edit_replaces_exactly)
async def edit_of_binary_is_refused(rig: Rig) -> None:
    """What is not UTF-8 is not text."""
    box = await rig.box()
    await box.write("blob", b"\xff\xfe\x00x")
    expect.refused(await box.run(Edit(path=box.path("blob"), old="x", new="y")), FailureCode.NOT_TEXT)


async def _names(box: Box, op: List) -> list[tuple[str, str]]:
    entries = expect.kind(await box.run(op), ListResult).entries
    return [(entry.path.removeprefix(f"{box.dir}/"), entry.kind) for entry in entries]


@GROUP.positive()
async def folders_are_listed(rig: Rig) -> None:
    """Names come sorted, with their kind, to the depth asked for; `.git` is named and not entered."""
    box = await rig.box()
    await box.text("mkdir -p d/e .git/objects; echo x > b; echo y > d/e/f; ln -s b link; mkfifo pipe")
    flat = [(".git", "dir"), ("b", "file"), ("d", "dir"), ("link", "symlink"), ("pipe", "other")]
    expect.equal(await _names(box, List(path=box.dir)), flat, "one level")
    deep = [*flat[:3], ("d/e", "dir"), ("d/e/f", "file"), *flat[3:]]
    expect.equal(await _names(box, List(path=box.dir, depth=5)), deep, "all levels")


@GROUP.positive()
async def long_listings_are_cut(rig: Rig) -> None:
    """A listing over its limit says so."""
    box = await rig.box()
    await box.text("for i in $(seq 30); do echo > f$i; done")
    result = expect.kind(await box.run(List(path=box.dir, limit=10)), ListResult)
    expect.equal((len(result.entries), result.truncated), (10, True), "entries, and whether there are more")


@GROUP.positive()
async def patterns_find_files(rig: Rig) -> None:
    """`*` stays within a folder, `**` does not; only files are found, sorted."""
    box = await rig.box()
    await box.text("mkdir -p a/b; for f in one.py a/two.py a/b/three.py a/b/four.txt; do echo > $f; done")

    async def found(pattern: str) -> list[str]:
        result = expect.kind(await box.run(Glob(pattern=pattern, path=box.dir)), GlobResult)
        return [path.removeprefix(f"{box.dir}/") for path in result.paths]

    expect.equal(await found("*.py"), ["one.py"], "*.py")
    expect.equal(await found("**/*.py"), ["a/b/three.py", "a/two.py", "one.py"], "**/*.py")
    expect.equal(await found("a/?wo.[pq]y"), ["a/two.py"], "a/?wo.[pq]y")


@GROUP.positive()
async def text_is_searched(rig: Rig) -> None:
    """Lines that match come with file and number; binary files and `.git` are passed over."""
    box = await rig.box()
    await box.text(
        "mkdir -p s .git; echo 'def Alpha(): pass' > s/a.py; printf 'x\ndef beta(): pass\n' > s/b.py; echo 'def git' > .git/c"
    )
    await box.write("blob.py", b"def binary\x00\x01")
    result = expect.kind(await box.run(Search(pattern=r"def\s+\w+", path=box.dir)), SearchResult)
    found = [(match.path.removeprefix(f"{box.dir}/"), match.line, match.text) for match in result.matches]
    expect.equal(found, [("s/a.py", 1, "def Alpha(): pass"), ("s/b.py", 2, "def beta(): pass")], "matches")
    insensitive = Search(pattern="ALPHA", path=box.dir, ignore_case=True, glob="*.py")
    expect.equal(len(expect.kind(await box.run(insensitive), SearchResult).matches), 1, "matches ignoring case")


@GROUP.positive()
async def long_searches_are_cut(rig: Rig) -> None:
    """Matches over the limit are not returned, and that is told; long lines are shortened."""
    box = await rig.box()
    await box.write("many", b"needle\n" * 50 + b"needle" + b"y" * 5000 + b"\n")
    result = expect.kind(await box.run(Search(pattern="needle", path=box.dir, limit=20)), SearchResult)
    expect.equal((len(result.matches), result.truncated), (20, True), "matches, and whether there are more")
    long = expect.kind(await box.run(Search(pattern="needley", path=box.dir, line_limit_bytes=100)), SearchResult)
    expect.that(len(long.matches[0].text.encode()) <= 110, "a long line to be shortened")


@GROUP.negative(control=text_is_searched)
async def bad_expressions_are_refused(rig: Rig) -> None:
    """What is not an RE2 expression is told to the model, look-around and back references included."""
    box = await rig.box()
    for pattern in ("(unclosed", r"(?=ahead)x", r"(a)\1"):
        expect.refused(await box.run(Search(pattern=pattern, path=box.dir)), FailureCode.BAD_PATTERN)


@GROUP.positive()
async def ten_megabytes_go_in_and_out(rig: Rig) -> None:
    """The host's own put and get carry large files whole, with their modes."""
    box = await rig.box()
    data = hashlib.sha256(b"big").digest() * (BIG_BYTES // 32)
    put = await box.run(Put(path=box.dir, tar=packed({"in/big": data, "in/small": b"s"}, 0o755)))
    expect.equal(expect.kind(put, PutResult).files, 2, "files put")
    expect.that(sha256(data) in await box.text("sha256sum in/big; test -x in/small"), "the file to be whole in the box")
    got = await box.run(Get(root=box.dir, paths=("in/big", "in/small"), max_bytes=2 * BIG_BYTES))
    files = unpacked(expect.kind(got, GetResult).tar)
    expect.equal(
        {name: sha256(content) for name, content in files.items()},
        {"in/big": sha256(data), "in/small": sha256(b"s")},
        "files got",
    )


@GROUP.positive()
async def put_replaces_files(rig: Rig) -> None:
    """Putting over existing files replaces them; others stay."""
    box = await rig.box()
    await box.text("mkdir t; echo old > t/a; echo kept > t/b")
    expect.kind(await box.run(Put(path=box.path("t"), tar=packed({"a": b"new\n"}))), PutResult)
    expect.equal(await box.text("cat t/a t/b"), "new\nkept\n", "contents")


@GROUP.negative(control=ten_megabytes_go_in_and_out)
async def get_over_its_cap_is_refused(rig: Rig) -> None:
    """More than `max_bytes` never leaves the box."""
    box = await rig.box()
    await box.write("big", b"x" * 10_000)
    result = await box.run(Get(root=box.dir, paths=("big",), max_bytes=5_000))
    expect.refused(result, FailureCode.TOO_LARGE)


@GROUP.negative(control=text_is_written_and_read)
async def oversized_operations_are_refused(rig: Rig) -> None:
    """What is larger than an operation may be is a refusal, not an error, and changes nothing."""
    box = await rig.box()
    expect.refused(await box.run(Write(path=box.path("big"), data=bytes(4 * 1024 * 1024))), FailureCode.TOO_LARGE)
    expect.equal((await box.sh("test -e big")).exit_code, 1, "the file's absence")
