"""Tars in and out, and the delta, against the real agent."""

# ruff: noqa: ASYNC240  (small local files and /proc, read at once)

import asyncio
import hashlib
import io
import os
import stat
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from orchestrator.errors import AgentProtocolError
from orchestrator.operations import (
    Change,
    Delta,
    DeltaResult,
    Failure,
    FailureCode,
    Freeze,
    Get,
    GetResult,
    ManifestFile,
    ManifestSymlink,
    Put,
    PutResult,
)
from tests.agent.conftest import Box, OpenBox
from tests.needs import needs

pytestmark = [pytest.mark.anyio, needs("root")]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def member(name: str, data: bytes = b"", **changes: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in changes.items():
        setattr(info, key, value)
    return info, data


def packed(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def unpacked(data: bytes) -> dict[str, tuple[bytes, int]]:
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
        found = {}
        for info in archive:
            stream = archive.extractfile(info)
            assert stream is not None
            found[info.name] = (stream.read(), info.mode)
        return found


async def test_files_and_folders_go_in_and_out(box: Box) -> None:
    big = os.urandom(3_000_000)
    tar = packed(
        member("d", type=tarfile.DIRTYPE, mode=0o750), member("d/big", big), member("d/run", b"x", mode=0o4755)
    )
    assert await box.own(Put(path="in", tar=tar)) == PutResult(files=2, size_bytes=len(big) + 1)
    folder = box.workspace / "in" / "d"
    assert folder.stat().st_mode & 0o7777 == 0o750
    assert (folder / "run").stat().st_mode & 0o7777 == 0o755, "no setuid bit"
    assert (folder / "big").stat().st_uid == box.uid
    got = await box.own(Get(root="in", paths=("d/big", "./d//run"), max_bytes=4_000_000))
    assert isinstance(got, GetResult)
    assert unpacked(got.tar) == {"d/big": (big, 0o644), "d/run": (b"x", 0o755)}


async def test_put_replaces_files_and_symlinks_without_following(box: Box) -> None:
    await box.text(f"echo old > f; ln -s {box.config.home}/target link; echo kept > {box.config.home}/target")
    assert isinstance(await box.own(Put(path=".", tar=packed(member("f", b"new"), member("link", b"new")))), PutResult)
    assert (box.workspace / "f").read_text() == "new"
    assert not (box.workspace / "link").is_symlink()
    assert Path(box.config.home, "target").read_text() == "kept\n"


HOSTILE = {
    "parent": member("../escaped", b"x"),
    "inner parent": member("a/../../escaped", b"x"),
    "absolute": member("/tmp/escaped", b"x"),
    "symlink": member("l", type=tarfile.SYMTYPE, linkname="/etc"),
    "hard link": member("l", type=tarfile.LNKTYPE, linkname="../secret"),
    "fifo": member("p", type=tarfile.FIFOTYPE),
    "device": member("n", type=tarfile.CHRTYPE, devmajor=1, devminor=5),
    "sparse": member(
        "s", b"x", pax_headers={"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9"}
    ),
    "long name": member("n" * 300, b"x"),
    "no name": member("./", b"x", type=tarfile.REGTYPE),
}


@pytest.mark.parametrize("entry", HOSTILE.values(), ids=HOSTILE.keys())
async def test_hostile_tars_are_refused(box: Box, entry: tuple[tarfile.TarInfo, bytes]) -> None:
    with pytest.raises(AgentProtocolError, match="bad_request"):
        await box.own(Put(path="in", tar=packed(member("before", b"x"), entry)))
    assert os.listdir(box.workspace / "in") == ["before"]
    assert sorted(os.listdir(box.root)) == ["home", "log", "run", "tmp", "workspace"]


@pytest.mark.parametrize("body", [b"x" * 2000, packed(member("f", b"y" * 5000))[:3000]], ids=["noise", "cut"])
async def test_what_is_no_whole_tar_is_refused(box: Box, body: bytes) -> None:
    with pytest.raises(AgentProtocolError, match="not a whole tar"):
        await box.own(Put(path=".", tar=body))
    assert not [name for name in os.listdir(box.workspace) if name.startswith(".tiltyard")]


async def test_put_through_a_symlink_is_refused(box: Box) -> None:
    await box.text(f"ln -s {box.config.home} away")
    for path, name in (("away", "f"), (".", "away/f")):
        refused = await box.own(Put(path=path, tar=packed(member(name, b"x"))))
        assert isinstance(refused, Failure)
        assert refused.code is FailureCode.SYMLINK
    assert os.listdir(box.config.home) == []


async def test_trusted_files_are_the_agents_own(open_box: OpenBox) -> None:
    async with open_box(allow_root_exec=True) as box:
        tar = packed(member("run.sh", b"#!/bin/sh\nid -u\n", mode=0o755), member("secret", b"s", mode=0o600))
        assert isinstance(await box.own(Put(path="tests", tar=tar, principal="trusted")), PutResult)
        program = f"{box.config.trusted_dir}/tests/run.sh"
        assert os.stat(program).st_uid == 0
        assert await box.text(program) == f"{box.uid}\n"
        assert (await box.sh(f"cat {box.config.trusted_dir}/tests/secret || echo x > {program}")).exit_code != 0
        for path in ("/etc", "../x"):
            refused = await box.own(Put(path=path, tar=tar, principal="trusted"))
            assert isinstance(refused, Failure)
            assert refused.code is FailureCode.BAD_PATH


async def test_get_keeps_to_its_cap_and_to_regular_files(box: Box) -> None:
    await box.text("mkdir d; head -c 1000 /dev/zero > a; cp a b; ln -s a l; mkfifo p; truncate -s 1T sparse")

    async def refused(*paths: str, most: int = 10_000) -> FailureCode:
        result = await box.own(Get(root=".", paths=paths, max_bytes=most))
        assert isinstance(result, Failure), result
        return result.code

    assert isinstance(await box.own(Get(root=".", paths=("a", "b"), max_bytes=2000)), GetResult)
    assert await refused("a", "b", most=1999) is FailureCode.TOO_LARGE
    assert await refused("sparse") is FailureCode.TOO_LARGE
    assert await refused("l") is FailureCode.SYMLINK
    assert await refused("p") is FailureCode.NOT_REGULAR
    assert await refused("d") is FailureCode.IS_DIRECTORY
    assert await refused("none") is FailureCode.NOT_FOUND
    assert await refused("../a") is FailureCode.BAD_PATH
    assert await refused("/etc/passwd") is FailureCode.BAD_PATH


def sealed(tree: Mapping[str, bytes | str]) -> dict[str, ManifestFile | ManifestSymlink]:
    return {
        path: ManifestSymlink(target=what)
        if isinstance(what, str)
        else ManifestFile(mode=0o644, size_bytes=len(what), sha256=sha256(what))
        for path, what in tree.items()
    }


def lay(box: Box, tree: Mapping[str, bytes | str]) -> None:
    for path, what in tree.items():
        where = box.workspace / path
        where.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(what, str):
            where.symlink_to(what)
        else:
            where.write_bytes(what)
    for folder, _, files in os.walk(box.workspace):
        for path in (folder, *(os.path.join(folder, name) for name in files)):
            os.chown(path, box.uid, box.uid, follow_symlinks=False)


TREE: dict[str, bytes | str] = {
    "keep.py": b"same\n",
    "src/mod.py": b"one\n",
    "src/gone.py": b"gone\n",
    "src/pkg/a.py": b"a\n",
    "link": "keep.py",
    "other-link": "src",
    "tool.sh": b"run\n",
    "empty": b"",
}


async def delta(box: Box, tree: Mapping[str, bytes | str] = TREE, **changes: object) -> DeltaResult:
    result = await box.own(Delta(root=str(box.workspace), manifest=sealed(tree), **changes))  # type: ignore[arg-type]
    assert isinstance(result, DeltaResult), result
    return result


def changed(path: str, data: bytes, kind: str = "modified", mode: int = 0o644) -> Change:
    return Change(path=path, kind=kind, type="file", mode=mode, size_bytes=len(data), sha256=sha256(data))  # type: ignore[arg-type]


async def test_an_untouched_tree_has_no_delta(box: Box) -> None:
    lay(box, TREE)
    await box.text(
        "mkdir -p .git/objects emptydir; echo x > .git/index; touch -d 2001-01-01 keep.py; chmod 600 keep.py"
    )
    assert await delta(box) == DeltaResult(changes=(), truncated=False, files=len(TREE))


async def test_every_kind_of_change_is_found(box: Box) -> None:
    lay(box, TREE)
    await box.text(
        "printf 'two\\n' > src/mod.py; rm src/gone.py; rm -r src/pkg; echo new > src/pkg; "
        "ln -sfn elsewhere link; rm other-link; mkdir other-link; echo x > other-link/f; chmod +x tool.sh; "
        "mkfifo pipe; printf a > empty; ln -s x made; echo > $(printf 'bad\\377')"
    )
    found = await delta(box)
    assert not found.truncated
    assert list(found.changes) == [
        Change(path="bad\\xff", kind="added", type="other"),
        changed("empty", b"a"),
        Change(path="link", kind="modified", type="symlink", size_bytes=9),
        Change(path="made", kind="added", type="symlink", size_bytes=1),
        Change(path="other-link", kind="deleted", type="symlink"),
        changed("other-link/f", b"x\n", "added"),
        Change(path="pipe", kind="added", type="other"),
        Change(path="src/gone.py", kind="deleted", type="file"),
        changed("src/mod.py", b"two\n"),
        changed("src/pkg", b"new\n", "added"),
        Change(path="src/pkg/a.py", kind="deleted", type="file"),
        changed("tool.sh", b"run\n", mode=0o755),
    ]


async def test_ways_to_hide_a_change_do_not_work(box: Box) -> None:
    """Same size and old times, stores through a mapping, closed files and folders, a repository's own ignore files."""
    lay(box, TREE)
    program = """
import mmap, os
before = os.stat("src/mod.py")
with open("src/mod.py", "r+b") as file:
    with mmap.mmap(file.fileno(), 0) as memory:
        memory[0:3] = b"TWO"
os.utime("src/mod.py", ns=(before.st_atime_ns, before.st_mtime_ns))
open(".gitignore", "w").write("*\\n")
os.makedirs("hidden/deep"); open("hidden/deep/f", "w").write("x"); os.chmod("hidden/deep", 0); os.chmod("hidden", 0)
open("keep.py", "w").write("SAME\\n"); os.chmod("keep.py", 0)
os.makedirs("sub/.git"); open("sub/.git/f", "w").write("x")
os.chmod(".", 0)
"""
    await box.text(f"cat > ../tmp/p.py <<'E'\n{program}\nE\npython3 ../tmp/p.py")
    await box.own(Freeze())
    found = {change.path: change for change in (await delta(box)).changes}
    assert found == {
        "src/mod.py": changed("src/mod.py", b"TWO\n"),
        ".gitignore": changed(".gitignore", b"*\n", "added"),
        "hidden/deep/f": changed("hidden/deep/f", b"x", "added"),
        "keep.py": changed("keep.py", b"SAME\n", mode=0),
        "sub/.git/f": changed("sub/.git/f", b"x", "added"),
    }
    got = await box.own(Get(root=str(box.workspace), paths=("keep.py", "hidden/deep/f"), max_bytes=100))
    assert isinstance(got, GetResult)
    assert unpacked(got.tar)["keep.py"][0] == b"SAME\n"
    assert stat.S_IMODE((box.workspace / "keep.py").stat().st_mode) == 0, "modes are put back"


async def test_huge_sparse_files_cost_nothing(box: Box) -> None:
    lay(box, TREE)
    await box.text("for i in 1 2 3; do truncate -s 100G sparse$i; done; truncate -s 1M small")
    found = {change.path: change for change in (await delta(box)).changes}
    assert {found[f"sparse{i}"].sha256 for i in (1, 2, 3)} == {None}
    assert found["sparse1"].size_bytes == 100 << 30
    assert found["small"].sha256 == sha256(bytes(1 << 20)), "the control"


async def test_too_many_changes_and_too_deep_folders_are_told(box: Box) -> None:
    lay(box, TREE)
    await box.text("mkdir many; for i in $(seq 50); do : > many/f$i; done")
    cut = await delta(box, max_entries=20)
    assert (len(cut.changes), cut.truncated) == (20, True)
    program = "import os\nfor _ in range(300): os.mkdir('d'); os.chdir('d')\nopen('f','w')"
    await box.text(f'rm -r many; python3 -c "{program}"')
    deep = [change for change in (await delta(box)).changes if change.path.startswith("d/")]
    assert [(change.kind, change.type) for change in deep] == [("added", "other")]


async def test_ignored_names_lie_directly_below_the_root(box: Box) -> None:
    lay(box, TREE)
    await box.text("mkdir cache src/cache; echo x > cache/f; echo x > src/cache/f; echo x > keep.py")
    found = await delta(box, ignore=("cache", "keep.py"))
    assert [change.path for change in found.changes] == ["src/cache/f"]


async def test_three_deltas_at_once_agree(box: Box) -> None:
    lay(box, {f"d{i}/f{j}": b"x" * 1000 for i in range(20) for j in range(20)})
    await box.text("for i in 1 2 3; do echo y > d$i/f1; done")
    results = await asyncio.gather(*(delta(box) for _ in range(6)))
    assert len({repr(result.changes) for result in results}) == 1
    assert len(results[0].changes) == 400 + len(TREE)


async def test_a_root_that_is_no_folder_is_refused(box: Box) -> None:
    await box.text("ln -s / away; echo x > plain")
    for root, expected in (
        ("away", FailureCode.SYMLINK),
        ("plain", FailureCode.NOT_A_DIRECTORY),
        ("/proc", FailureCode.OUTSIDE),
    ):
        result = await box.own(Delta(root=root, manifest={}))
        assert isinstance(result, Failure)
        assert result.code is expected
