"""File operations against the real agent: well-meant ones, and every way to lead them astray."""

import asyncio
import hashlib
import os
import socket

import pytest

from orchestrator.operations import (
    Edit,
    EditResult,
    Failure,
    FailureCode,
    Glob,
    GlobResult,
    List,
    ListResult,
    Operation,
    Read,
    ReadResult,
    Search,
    SearchResult,
    Write,
    WriteResult,
)
from tests.agent.conftest import Box, OpenBox
from tests.needs import needs

pytestmark = [pytest.mark.anyio, needs("root")]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def code(box: Box, op: Operation) -> FailureCode:
    result = await box.run(op)
    assert isinstance(result, Failure), result
    return result.code


async def read(box: Box, path: str) -> bytes:
    result = await box.run(Read(path=path))
    assert isinstance(result, ReadResult), result
    return result.data


async def test_write_read_and_slices(box: Box) -> None:
    data = "eins\nzwei ä\n".encode()
    written = await box.run(Write(path="a/b/c.txt", data=data))
    assert written == WriteResult(size_bytes=len(data), created=True, sha256=sha256(data))
    whole = await box.run(Read(path="a/b/c.txt"))
    assert whole == ReadResult(data=data, size_bytes=len(data), eof=True, sha256=sha256(data))
    part = await box.run(Read(path="a/b/c.txt", offset_bytes=2, limit_bytes=3))
    assert part == ReadResult(data=data[2:5], size_bytes=len(data), eof=False, sha256=None)
    beyond = await box.run(Read(path="a/b/c.txt", offset_bytes=99))
    assert beyond == ReadResult(data=b"", size_bytes=len(data), eof=True, sha256=None)


async def test_files_belong_to_the_commands(box: Box) -> None:
    await box.run(Write(path="new/file", data=b"x"))
    for path in (box.workspace / "new", box.workspace / "new" / "file"):
        assert path.stat().st_uid == path.stat().st_gid == box.uid
    assert oct((box.workspace / "new" / "file").stat().st_mode & 0o7777) == "0o644"
    assert oct((box.workspace / "new").stat().st_mode & 0o7777) == "0o755"


async def test_modes_are_given_kept_and_never_setuid(box: Box) -> None:
    await box.run(Write(path="s", data=b"1", mode=0o755))
    await box.text("chmod 4755 s")
    await box.run(Write(path="s", data=b"2"))
    assert (box.workspace / "s").stat().st_mode & 0o7777 == 0o755


async def test_expected_content_guards_a_write(box: Box) -> None:
    assert isinstance(await box.run(Write(path="g", data=b"1", expected_sha256="absent")), WriteResult)
    assert await code(box, Write(path="g", data=b"2", expected_sha256="absent")) is FailureCode.EXISTS
    assert await code(box, Write(path="g", data=b"2", expected_sha256=sha256(b"0"))) is FailureCode.HASH_MISMATCH
    assert await code(box, Write(path="h", data=b"2", expected_sha256=sha256(b"0"))) is FailureCode.NOT_FOUND
    assert await read(box, "g") == b"1"
    assert isinstance(await box.run(Write(path="g", data=b"2", expected_sha256=sha256(b"1"))), WriteResult)
    assert await read(box, "g") == b"2"


async def test_missing_parents_are_made_only_where_asked(box: Box) -> None:
    assert await code(box, Write(path="no/such", data=b"", parents=False)) is FailureCode.NOT_FOUND
    assert not (box.workspace / "no").exists()


async def test_a_failed_write_leaves_nothing_behind(box: Box) -> None:
    await box.text("mkdir dir closed; chmod 555 closed")
    assert await code(box, Write(path="dir", data=b"x")) is FailureCode.IS_DIRECTORY
    assert await code(box, Write(path="closed/f", data=b"x")) is FailureCode.PERMISSION
    assert sorted(os.listdir(box.workspace)) == ["closed", "dir"]
    assert os.listdir(box.workspace / "closed") == []


async def test_writes_are_seen_whole(box: Box) -> None:
    await box.run(Write(path="f", data=b"a" * 100_000))

    async def write() -> None:
        for turn in range(20):
            await box.run(Write(path="f", data=(b"b" if turn % 2 else b"a") * 100_000))

    writer = asyncio.create_task(write())
    while not writer.done():
        assert len(set(await read(box, "f"))) == 1
    await writer


async def test_edit(box: Box) -> None:
    await box.run(Write(path="code", data="a = 1\nb = 'ä'\nc = 3\nc = 3\n".encode(), mode=0o755))
    edited = await box.run(Edit(path="code", old="b = 'ä'", new="d = 'ö😀'"))
    assert isinstance(edited, EditResult)
    assert (edited.replaced, edited.line) == (1, 2)
    assert await code(box, Edit(path="code", old="c = 3", new="")) is FailureCode.MANY_MATCHES
    assert await code(box, Edit(path="code", old="zz", new="")) is FailureCode.NO_MATCH
    assert await code(box, Edit(path="code", old="", new="x")) is FailureCode.NO_MATCH
    both = await box.run(Edit(path="code", old="c = 3", new="e", expected_count=None))
    assert isinstance(both, EditResult)
    assert (both.replaced, both.line) == (2, 3)
    assert await read(box, "code") == "a = 1\nd = 'ö😀'\ne\ne\n".encode()
    assert (box.workspace / "code").stat().st_mode & 0o777 == 0o755


async def test_edit_refuses_what_is_not_text_or_too_large(box: Box) -> None:
    await box.run(Write(path="blob", data=b"\xff\xfex"))
    assert await code(box, Edit(path="blob", old="x", new="y")) is FailureCode.NOT_TEXT
    await box.text("truncate -s 9000000 big")
    assert await code(box, Edit(path="big", old="x", new="y")) is FailureCode.TOO_LARGE


async def test_text_without_utf8_form_is_refused_and_text_like_it_is_not(box: Box) -> None:
    for text in ("\ud800", "a\udfffb", "\ud83d\ud83d\ude00"):
        assert await code(box, Edit(path="f", old=text, new="x")) is FailureCode.NOT_TEXT
        assert await code(box, Read(path=text)) is FailureCode.NOT_TEXT
    await box.run(Write(path="f", data="\\ud800 \ufffd😀".encode()))
    result = await box.run(Edit(path="f", old="\\ud800 \ufffd😀", new="\ufffd\\ud83d😀"))
    assert isinstance(result, EditResult)
    assert await read(box, "f") == "\ufffd\\ud83d😀".encode()


async def test_list(box: Box) -> None:
    await box.text(
        "mkdir -p a/c .git/objects a-b; echo x > a/c/f; echo x > .git/config; ln -s /etc link; mkfifo pipe; touch $(printf 'bad\\377')"
    )
    flat = await box.run(List())
    assert isinstance(flat, ListResult)
    kinds = [(entry.path, entry.kind) for entry in flat.entries]
    assert kinds == [
        (".git", "dir"), ("a", "dir"), ("a-b", "dir"), ("bad\\xff", "other"), ("link", "symlink"), ("pipe", "other"),
    ]  # fmt: skip
    deep = await box.run(List(path="a", depth=9))
    assert isinstance(deep, ListResult)
    assert [entry.path for entry in deep.entries] == ["a/c", "a/c/f"]
    whole = await box.run(List(path=str(box.workspace), depth=9))
    assert isinstance(whole, ListResult)
    paths = [entry.path for entry in whole.entries]
    assert paths == sorted(paths, key=str.encode)
    assert f"{box.workspace}/a/c/f" in paths
    assert not any(path.startswith(f"{box.workspace}/.git/") for path in paths)
    cut = await box.run(List(depth=9, limit=3))
    assert isinstance(cut, ListResult)
    assert (len(cut.entries), cut.truncated) == (3, True)
    assert await code(box, List(path="a/c/f")) is FailureCode.NOT_A_DIRECTORY


async def test_listing_the_whole_box_stays_out_of_closed_places(box: Box) -> None:
    result = await box.run(List(path="/", depth=2, limit=10_000))
    assert isinstance(result, ListResult)
    paths = {entry.path for entry in result.entries}
    assert "/proc" in paths
    assert "/usr/bin" in paths, "the control"
    assert not any(path.startswith(("/proc/", "/sys/", "/dev/")) for path in paths)


async def test_glob(box: Box) -> None:
    await box.text(
        "mkdir -p a/b .git; "
        "for f in one.py a/two.py a/b/three.py a/b/four.txt .hidden.py .git/x.py; do echo > $f; done; mkdir d.py;"
        " ln -s one.py l.py"
    )

    async def found(pattern: str, path: str = ".") -> list[str]:
        result = await box.run(Glob(pattern=pattern, path=path))
        assert isinstance(result, GlobResult), result
        return list(result.paths)

    assert await found("*.py") == [".hidden.py", "one.py"]
    assert await found("**/*.py") == [".hidden.py", "a/b/three.py", "a/two.py", "one.py"]
    assert await found("a/**") == ["a/b/four.txt", "a/b/three.py", "a/two.py"]
    assert await found("**/b/*.[tp][!y]*") == ["a/b/four.txt"]
    assert await found("?wo.py", "a") == ["a/two.py"]
    assert await found("*.py", str(box.workspace)) == [f"{box.workspace}/.hidden.py", f"{box.workspace}/one.py"]
    for bad in ("", "[a", "/etc/*", "../*", "[z-a]", "a" * 5000, "/".join("ab" * 40)):
        assert await code(box, Glob(pattern=bad)) is FailureCode.BAD_PATTERN, bad


async def test_search(box: Box) -> None:
    await box.text(
        "mkdir -p s .git; echo 'def Alpha(): pass' > s/a.py; "
        "printf 'x\\r\\ndef beta(): pass\\r\\n' > s/b.py; echo 'def git' > .git/c; printf 'def b\\000' > blob; ln -s s/a.py link"
    )
    result = await box.run(Search(pattern=r"^def\s+\w+.*pass$"))
    assert isinstance(result, SearchResult)
    assert [(m.path, m.line, m.text) for m in result.matches] == [
        ("s/a.py", 1, "def Alpha(): pass"),
        ("s/b.py", 2, "def beta(): pass"),
    ]
    assert result.files_searched == 2
    for op, paths in (
        (Search(pattern="ALPHA", ignore_case=True), ["s/a.py"]),
        (Search(pattern="def", glob="b.*"), ["s/b.py"]),
        (Search(pattern="def", glob="s/*.py", path="."), ["s/a.py", "s/b.py"]),
        (Search(pattern="def", path="s/a.py"), ["s/a.py"]),
    ):
        found = await box.run(op)
        assert isinstance(found, SearchResult)
        assert [m.path for m in found.matches] == paths, op
    for bad in ("(", "(?=x)", r"(a)\1", "a{1001}", "x" * 5000):
        assert await code(box, Search(pattern=bad)) is FailureCode.BAD_PATTERN
    assert await code(box, Search(pattern="x", path="link")) is FailureCode.SYMLINK


async def test_search_limits_and_costly_expressions(box: Box) -> None:
    await box.run(Write(path="many", data=b"needle\n" * 50 + b"needle" + "ä".encode() * 5000 + b"\n"))
    cut = await box.run(Search(pattern="needle", limit=20))
    assert isinstance(cut, SearchResult)
    assert (len(cut.matches), cut.truncated) == (20, True)
    long = await box.run(Search(pattern="needleä", line_limit_bytes=99))
    assert isinstance(long, SearchResult)
    assert long.matches[0].text == "needle" + "ä" * 46
    await box.run(Write(path="aaa", data=b"a" * 50_000))
    assert isinstance(await box.run(Search(pattern="(a*)*(a|aa)+b$", path="aaa"), timeout_s=15), SearchResult)


ESCAPES = {
    "parent": ("../etc/passwd", FailureCode.BAD_PATH),
    "inner parent": ("a/../../etc/passwd", FailureCode.BAD_PATH),
    "absolute parent": ("/tmp/../etc/passwd", FailureCode.BAD_PATH),
    "nul": ("a\0b", FailureCode.BAD_PATH),
    "empty": ("", FailureCode.BAD_PATH),
    "long": ("a/" * 3000, FailureCode.BAD_PATH),
    "long name": ("a" * 256, FailureCode.BAD_PATH),
    "folder": (".", FailureCode.IS_DIRECTORY),
    "final symlink": ("link", FailureCode.SYMLINK),
    "dangling symlink": ("dangling", FailureCode.SYMLINK),
    "symlink on the way": ("dirlink/passwd", FailureCode.SYMLINK),
    "symlink to a magic link": ("magic/etc/passwd", FailureCode.SYMLINK),
    "loop": ("loop/x", FailureCode.SYMLINK),
    "fifo": ("fifo", FailureCode.NOT_REGULAR),
    "socket": ("socket", FailureCode.NOT_REGULAR),
    "file on the way": ("plain/x", FailureCode.NOT_A_DIRECTORY),
}
ABSOLUTE = {
    "environment of the agent": "/proc/1/environ",
    "root by magic link": "/proc/self/root/etc/passwd",
    "descriptor": "/proc/self/fd/0",
    "device": "/dev/zero",
    "terminal": "/dev/tty",
    "kernel": "/sys/kernel/notes",
}


async def plant(box: Box) -> None:
    await box.text(
        "ln -s /etc/passwd link; ln -s /nowhere dangling; ln -s /etc dirlink; ln -s /proc/self/root magic; ln -s loop loop; "
        "mkfifo fifo; echo x > plain"
    )
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(box.workspace / "socket"))


@pytest.mark.parametrize(("path", "expected"), ESCAPES.values(), ids=ESCAPES.keys())
async def test_no_path_leads_astray(box: Box, path: str, expected: FailureCode) -> None:
    await plant(box)
    before = {name: os.lstat(box.workspace / name).st_mode for name in os.listdir(box.workspace)}
    for op in (Read(path=path), Write(path=path, data=b"owned"), Edit(path=path, old="x", new="owned")):
        assert await code(box, op) is expected, op
    assert {name: os.lstat(box.workspace / name).st_mode for name in os.listdir(box.workspace)} == before


@pytest.mark.parametrize("path", ABSOLUTE.values(), ids=ABSOLUTE.keys())
async def test_closed_places_are_not_even_read(box: Box, path: str) -> None:
    assert await code(box, Read(path=path)) is FailureCode.OUTSIDE
    assert isinstance(await box.run(Read(path="/etc/passwd")), ReadResult), "the control"


async def test_the_agents_own_places_are_closed(box: Box) -> None:
    for path in (box.config.socket, box.config.state_dir, f"{box.root}/run/config.json", box.config.trusted_dir):
        assert await code(box, Read(path=path)) is FailureCode.OUTSIDE
        assert await code(box, Write(path=path, data=b"")) is FailureCode.OUTSIDE
        assert await code(box, List(path=path)) is FailureCode.OUTSIDE


async def test_writing_stays_in_three_places(box: Box) -> None:
    for place in (box.config.workspace, box.config.home, box.config.tmp):
        assert isinstance(await box.run(Write(path=f"{place}//x/./y", data=b"x")), WriteResult)
    for path in ("/etc/hosts", "/usr/x", str(box.root / "x"), f"{box.workspace}x/y"):
        assert await code(box, Write(path=path, data=b"x")) is FailureCode.OUTSIDE


async def test_hard_links_and_twins(box: Box) -> None:
    """A hard link shares content until a write replaces the name; names that look alike are not."""
    await box.text("echo one > a; ln a b")
    await box.run(Write(path="a", data=b"two\n"))
    assert (await read(box, "a"), await read(box, "b")) == (b"two\n", b"one\n")
    for name, data in (("Ä", b"composed"), ("A\u0308", b"decomposed"), ("ä", b"small")):
        await box.run(Write(path=name, data=data))
    assert [await read(box, name) for name in ("Ä", "A\u0308", "ä")] == [b"composed", b"decomposed", b"small"]
    await box.run(Write(path="new\nline", data=b"x"))
    assert await read(box, "new\nline") == b"x"


async def test_sparse_and_growing_files(box: Box) -> None:
    await box.text("truncate -s 1T sparse; (while :; do echo more >> growing; done) & sleep 0.1")
    part = await box.run(Read(path="sparse", offset_bytes=1 << 39, limit_bytes=10))
    assert isinstance(part, ReadResult)
    assert (part.data, part.size_bytes, part.eof) == (b"\0" * 10, 1 << 40, False)
    for _ in range(20):
        grown = await box.run(Read(path="growing", limit_bytes=1000))
        assert isinstance(grown, ReadResult)
        assert len(grown.data) <= 1000


RACER = """
import os, sys
os.mkdir("real"); open("real/f", "w").write("inside\\n"); os.symlink(sys.argv[1], "evil")
os.rename("real", "dir")
while True:
    os.rename("dir", "real"); os.rename("evil", "dir")
    os.rename("dir", "evil"); os.rename("real", "dir")
"""


async def test_a_rename_race_never_leads_outside(box: Box) -> None:
    """A folder and a symlink to a foreign folder take turns under one name; both hold a file f."""
    outside = box.root / "outside"
    outside.mkdir()
    os.chown(outside, box.uid, box.uid)
    (outside / "f").write_text("SECRET\n")
    (outside / "f").chmod(0o666)
    await box.run(Write(path="race.py", data=RACER.encode()))
    await box.text(f"python3 race.py {outside} >/dev/null 2>&1 & true")
    seen: set[str] = set()
    for turn in range(400):
        if turn % 2:
            result = await box.run(Write(path="dir/f", data=b"written\n", parents=False))
        else:
            result = await box.run(Read(path="dir/f"))
        seen.add(result.code if isinstance(result, Failure) else type(result).__name__)
        assert not (isinstance(result, ReadResult) and b"SECRET" in result.data)
    assert (outside / "f").read_text() == "SECRET\n"
    assert os.listdir(outside) == ["f"]
    assert {"ReadResult", FailureCode.SYMLINK} <= seen, f"the race was run: {seen}"


async def test_a_full_disk_is_told_and_the_box_goes_on(open_box: OpenBox) -> None:
    mount = 'mount -t tmpfs -o size=256k,nr_inodes=64,uid={uid},gid={uid} tmpfs {workspace} && exec "$0" "$@"'
    async with open_box(prefix=("sh", "-c", mount)) as box:
        assert isinstance(await box.run(Write(path="small", data=b"kept")), WriteResult)
        assert await code(box, Write(path="big", data=b"x" * 500_000)) is FailureCode.NO_SPACE
        assert await code(box, Edit(path="small", old="kept", new="x" * 500_000)) is FailureCode.NO_SPACE
        listed = await box.run(List())
        assert isinstance(listed, ListResult)
        assert [entry.path for entry in listed.entries] == ["small"], "no half-written file stays"
        assert await read(box, "small") == b"kept"
        filled = await box.sh("head -c 1m /dev/zero > fill; echo $?")
        assert filled.stdout.head.endswith(b"1\n")
        assert (await box.sh("rm fill; for i in $(seq 100); do : > f$i; done")).exit_code != 0
        assert await code(box, Write(path="one/more", data=b"")) is FailureCode.NO_SPACE
        await box.text("rm -f f*")
        assert isinstance(await box.run(Write(path="again", data=b"x")), WriteResult)
