"""What the host learns of changes: by content, whatever the box's git, clocks and ignore files say."""

from collections.abc import Mapping

from orchestrator.conformance import expect
from orchestrator.conformance.file_checks import packed, sha256
from orchestrator.conformance.model import Group
from orchestrator.conformance.rig import Box, Rig
from orchestrator.operations import Change, Delta, DeltaResult, Manifest, ManifestFile, ManifestSymlink, Put, PutResult

GROUP = Group("delta")

FILES: Mapping[str, bytes] = {
    "a.py": b"a = 1\n",
    "pkg/b.py": b"b = 2\n",
    "pkg/deep/c.py": b"c = 3\n",
    "run.sh": b"true\n",
}


async def _sealed(box: Box) -> Manifest:
    """The files, and the manifest that describes them."""
    expect.kind(await box.run(Put(path=box.dir, tar=packed(dict(FILES)))), PutResult)
    await box.text("ln -s a.py link")
    manifest: dict[str, ManifestFile | ManifestSymlink] = {
        path: ManifestFile(mode=0o644, size_bytes=len(data), sha256=sha256(data)) for path, data in FILES.items()
    }
    return {**manifest, "link": ManifestSymlink(target="a.py")}


async def _delta(box: Box, manifest: Manifest, *, max_entries: int = 1000) -> DeltaResult:
    return expect.kind(await box.run(Delta(root=box.dir, manifest=manifest, max_entries=max_entries)), DeltaResult)


async def _changes(box: Box, script: str) -> dict[str, Change]:
    """What a script changes, by path."""
    manifest = await _sealed(box)
    await box.text(script)
    return {change.path: change for change in (await _delta(box, manifest)).changes}


def _kinds(changes: Mapping[str, Change]) -> dict[str, tuple[str, str]]:
    return {path: (change.kind, change.type) for path, change in changes.items()}


@GROUP.positive()
async def untouched_tree_has_no_delta(rig: Rig) -> None:
    """Nothing changed, nothing told; touching, reading and rewriting the same bytes are no changes."""
    changes = await _changes(await rig.box(), "touch a.py; cat pkg/b.py; cp pkg/deep/c.py x; mv x pkg/deep/c.py")
    expect.equal(_kinds(changes), {}, "changes")


@GROUP.positive()
async def added_files_are_told(rig: Rig) -> None:
    """A new file comes with mode, size and hash."""
    changes = await _changes(await rig.box(), "mkdir -p new/er; echo hi > new/er/file; chmod 755 new/er/file")
    expect.equal(list(changes), ["new/er/file"], "paths")
    change = changes["new/er/file"]
    found = (change.kind, change.type, change.mode & 0o777, change.size_bytes, change.sha256)
    expect.equal(found, ("added", "file", 0o755, 3, sha256(b"hi\n")), "the change")


@GROUP.positive()
async def modified_files_are_told(rig: Rig) -> None:
    """A changed file comes with its new size and hash."""
    changes = await _changes(await rig.box(), "echo more >> pkg/b.py")
    expect.equal(_kinds(changes), {"pkg/b.py": ("modified", "file")}, "changes")
    expect.equal(changes["pkg/b.py"].sha256, sha256(b"b = 2\nmore\n"), "hash")


@GROUP.positive()
async def same_size_and_time_hide_nothing(rig: Rig) -> None:
    """Content decides: a change of the same length with its old time put back is seen."""
    changes = await _changes(await rig.box(), "cp a.py old; printf 'a = 2\\n' > a.py; touch -r run.sh a.py; rm old")
    expect.equal(_kinds(changes), {"a.py": ("modified", "file")}, "changes")


@GROUP.positive()
async def deleted_files_are_told(rig: Rig) -> None:
    """What is gone is told, of folders each file, links too."""
    changes = await _changes(await rig.box(), "rm -r pkg link")
    wanted = {"link": ("deleted", "symlink"), "pkg/b.py": ("deleted", "file"), "pkg/deep/c.py": ("deleted", "file")}
    expect.equal(_kinds(changes), wanted, "changes")


@GROUP.positive()
async def executable_bit_is_told(rig: Rig) -> None:
    """A file that became executable is modified."""
    changes = await _changes(await rig.box(), "chmod +x run.sh")
    expect.equal(_kinds(changes), {"run.sh": ("modified", "file")}, "changes")
    expect.that(changes["run.sh"].mode & 0o100, "the new mode")


@GROUP.positive()
async def links_are_told_as_links(rig: Rig) -> None:
    """A new link, a link turned elsewhere and a file that became a link are links, never their targets."""
    changes = await _changes(
        await rig.box(), "ln -s /etc/passwd new; rm link a.py; ln -s run.sh link; ln -s run.sh a.py"
    )
    wanted = {"a.py": ("modified", "symlink"), "link": ("modified", "symlink"), "new": ("added", "symlink")}
    expect.equal(_kinds(changes), wanted, "changes")
    expect.equal({change.sha256 for change in changes.values()}, {None}, "hashes of links")


@GROUP.positive()
async def linked_folders_are_not_entered(rig: Rig) -> None:
    """A folder swapped for a link: its files are gone, what the link leads to is not told."""
    changes = await _changes(await rig.box(), "mv pkg moved; ln -s moved pkg; ln -s / root")
    wanted = {
        "moved/b.py": ("added", "file"),
        "moved/deep/c.py": ("added", "file"),
        "pkg": ("added", "symlink"),
        "pkg/b.py": ("deleted", "file"),
        "pkg/deep/c.py": ("deleted", "file"),
        "root": ("added", "symlink"),
    }
    expect.equal(_kinds(changes), wanted, "changes")


@GROUP.positive()
async def special_files_are_told_as_other(rig: Rig) -> None:
    """A FIFO is told, not opened."""
    changes = await _changes(await rig.box(), "mkfifo pipe; rm a.py; mkfifo a.py")
    expect.equal(_kinds(changes), {"a.py": ("modified", "other"), "pipe": ("added", "other")}, "changes")


@GROUP.positive()
async def what_git_ignores_is_told(rig: Rig) -> None:
    """Ignore files and the box's own .git do not hide anything; .git itself is left out."""
    script = "mkdir -p .git/info pkg/.git; echo '*' > .git/info/exclude; echo '*' > .gitignore; echo x > hidden; echo y > pkg/.git/z"
    changes = await _changes(await rig.box(), script)
    wanted = {".gitignore": ("added", "file"), "hidden": ("added", "file"), "pkg/.git/z": ("added", "file")}
    expect.equal(_kinds(changes), wanted, "changes")


@GROUP.positive()
async def names_that_are_no_text_are_told(rig: Rig) -> None:
    """A name that is not UTF-8 is told as something else, in text."""
    box = await rig.box()
    manifest = await _sealed(box)
    await box.text(': > "$(printf "bad\\377")"')
    changes = (await _delta(box, manifest)).changes
    expect.equal([(change.kind, change.type) for change in changes], [("added", "other")], "changes")
    expect.that(changes[0].path.encode(), "a path that is text")


@GROUP.positive()
async def long_deltas_are_cut(rig: Rig) -> None:
    """More changes than asked for are not returned, and that is told."""
    box = await rig.box()
    manifest = await _sealed(box)
    await box.text("for i in $(seq 40); do echo > f$i; done")
    delta = await _delta(box, manifest, max_entries=10)
    expect.equal((len(delta.changes), delta.truncated), (10, True), "changes, and whether there are more")
