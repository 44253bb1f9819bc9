"""A sealed tree holds what its commit reaches and nothing else (H1)."""

import hashlib
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.errors import LeakFound, Misconfigured, RepositoryError
from orchestrator.operations import ManifestFile, ManifestSymlink
from orchestrator.repos.seal import assert_sealed, seal
from tests.repos.conftest import GOLD, Origin, Repo, make_repo, soon


def objects(path: Path) -> set[str]:
    """Every object in a repository's stores, reachable or not."""
    return set(Repo(path).git("cat-file", "--batch-check=%(objectname)", "--batch-all-objects").split())


def test_a_sealed_tree_is_a_clean_work_tree_of_its_commit(mirror: Path, origin: Origin, tmp_path: Path) -> None:
    manifest = seal(mirror, origin.middle, tmp_path / "tree")
    tree = Repo(tmp_path / "tree")
    assert tree.git("rev-parse", "HEAD") == origin.middle
    assert tree.git("status", "--porcelain") == ""
    assert tree.git("log", "--format=%s") == "middle\nbase"
    assert manifest == {
        "README": ManifestFile(mode=0o644, size_bytes=4, sha256=hashlib.sha256(b"two\n").hexdigest()),
        "link": ManifestSymlink(target="src/a.py"),
        "run.sh": ManifestFile(mode=0o755, size_bytes=10, sha256=hashlib.sha256(b"#!/bin/sh\n").hexdigest()),
        "src/a.py": ManifestFile(mode=0o644, size_bytes=6, sha256=hashlib.sha256(b"a = 1\n").hexdigest()),
    }
    assert list(manifest) == sorted(manifest)


def test_modes_do_not_depend_on_the_umask(mirror: Path, origin: Origin, tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        manifest = seal(mirror, origin.middle, tmp_path / "tree")
    finally:
        os.umask(before)
    entry = manifest["README"]
    assert isinstance(entry, ManifestFile)
    assert entry.mode == 0o644
    assert (tmp_path / "tree" / "src").stat().st_mode & 0o777 == 0o755


def annotated_tags(repo: Repo, origin: Origin) -> None:
    repo.git("tag", "-a", "v1", "-m", "one", origin.middle)
    repo.git("tag", "-a", "v2", "-m", "two", origin.future)


def reflog(repo: Repo, origin: Origin) -> None:
    repo.git("config", "core.logAllRefUpdates", "always")
    repo.git("update-ref", "-m", "was here", "refs/heads/main", origin.future)


def unreachable(repo: Repo, origin: Origin) -> None:
    repo.git("hash-object", "-w", "--stdin", stdin="nobody names me\n")
    repo.git("reset", "-q", "--hard", origin.middle)


def packed(repo: Repo, origin: Origin) -> None:
    unreachable(repo, origin)
    repo.git("repack", "-adk", "-q")
    repo.git("pack-refs", "--all")


def replaced(repo: Repo, origin: Origin) -> None:
    repo.git("replace", origin.middle, origin.future)


def notes(repo: Repo, origin: Origin) -> None:
    repo.git("notes", "add", "-m", GOLD, origin.middle)


def stash(repo: Repo, origin: Origin) -> None:
    (repo.path / "README").write_text(GOLD)
    repo.git("stash")


def branches(repo: Repo, origin: Origin) -> None:
    repo.git("branch", "solution", origin.future)
    repo.git("update-ref", "refs/pull/1/head", origin.future)
    repo.git("update-ref", "refs/remotes/upstream/main", origin.future)


def hidden_refs(repo: Repo, origin: Origin) -> None:
    branches(repo, origin)
    repo.git("config", "transfer.hideRefs", "refs/pull")


def bundle(repo: Repo, origin: Origin) -> None:
    repo.git("bundle", "create", "-q", str(repo.path / ".git" / "all.bundle"), "--all")


def leftovers(repo: Repo, origin: Origin) -> None:
    for name in ("ORIG_HEAD", "FETCH_HEAD", "MERGE_HEAD"):
        (repo.path / ".git" / name).write_text(f"{origin.future}\n")


def alternates(repo: Repo, origin: Origin) -> None:
    other = make_repo(repo.path.parent / "other")
    other.git("hash-object", "-w", "--stdin", stdin=GOLD + "once more")
    (repo.path / ".git" / "objects" / "info" / "alternates").write_text(f"{other.path}/.git/objects\n")


def merged_future(repo: Repo, origin: Origin) -> None:
    repo.git("checkout", "-qb", "side", origin.base)
    repo.commit({"side": "x\n"}, "side")
    repo.git("merge", "-q", "--no-ff", "-m", "join", origin.future)


PLANTS = (
    annotated_tags,
    reflog,
    unreachable,
    packed,
    replaced,
    notes,
    stash,
    branches,
    hidden_refs,
    bundle,
    leftovers,
    alternates,
    merged_future,
)


@pytest.mark.parametrize("history", ["full", "orphan"])
@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__)
def test_nothing_planted_in_the_source_reaches_the_tree(
    plant: Callable[[Repo, Origin], None], history: str, origin: Origin, tmp_path: Path
) -> None:
    plant(origin.repo, origin)
    tree = tmp_path / "tree"
    seal(origin.repo.path / ".git", origin.middle, tree, history=history)
    held = objects(tree)
    assert origin.gold_blob in objects(origin.repo.path)  # the source did hold it
    assert origin.gold_blob not in held
    assert origin.future not in held
    reachable = Repo(tree).git("rev-list", "--objects", "--no-object-names", "HEAD").split()
    assert held == set(reachable)
    assert Repo(tree).git("fsck", "--unreachable", "--no-reflogs", "--full") == ""
    assert Repo(tree).git("for-each-ref", "--format=%(refname)") == "refs/heads/main"
    texts = [path.read_bytes() for path in tree.rglob("*") if path.is_file() and not path.is_symlink()]
    assert not any(b"origin" in text or GOLD.encode() in text for text in texts)


def test_an_orphan_is_one_commit_with_the_same_tree_and_always_the_same(
    mirror: Path, origin: Origin, tmp_path: Path
) -> None:
    seal(mirror, origin.middle, tmp_path / "one", history="orphan")
    seal(mirror, origin.middle, tmp_path / "two", history="orphan")
    one, two = Repo(tmp_path / "one"), Repo(tmp_path / "two")
    assert one.git("rev-list", "--count", "HEAD") == "1"
    assert one.git("rev-parse", "HEAD^{tree}") == origin.repo.git("rev-parse", f"{origin.middle}^{{tree}}")
    assert one.git("rev-parse", "HEAD") == two.git("rev-parse", "HEAD")
    assert origin.base not in objects(tmp_path / "one")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _foreign_pack(tree: Path) -> None:
    blob = Repo(tree).git("hash-object", "-w", "--stdin", stdin=GOLD)
    Repo(tree).git("pack-objects", "-q", str(tree / ".git/objects/pack/pack"), stdin=blob)
    Repo(tree).git("prune-packed", "-q")


def _set_config(tree: Path) -> None:
    Repo(tree).git("config", "core.fsmonitor", "/bin/false")


LEAKS: dict[str, Callable[[Path, str], object]] = {
    "loose object": lambda tree, sha: Repo(tree).git("hash-object", "-w", "--stdin", stdin=GOLD),
    "object in a pack": lambda tree, sha: _foreign_pack(tree),
    "branch": lambda tree, sha: Repo(tree).git("branch", "other", sha),
    "tag": lambda tree, sha: Repo(tree).git("tag", "v1", sha),
    "annotated tag": lambda tree, sha: Repo(tree).git("tag", "-am", "x", "v1", sha),
    "replace ref": lambda tree, sha: Repo(tree).git("update-ref", f"refs/replace/{sha}", sha),
    "hidden ref": lambda tree, sha: Repo(tree).git("update-ref", "refs/hidden/x", sha),
    "notes": lambda tree, sha: Repo(tree).git("notes", "add", "-m", GOLD, sha),
    "packed refs": lambda tree, sha: Repo(tree).git("pack-refs", "--all"),
    "reflog": lambda tree, sha: _write(tree / ".git/logs/HEAD", "url of the mirror"),
    "ORIG_HEAD": lambda tree, sha: _write(tree / ".git/ORIG_HEAD", sha),
    "FETCH_HEAD": lambda tree, sha: _write(tree / ".git/FETCH_HEAD", sha),
    "shallow": lambda tree, sha: _write(tree / ".git/shallow", ""),
    "grafts": lambda tree, sha: _write(tree / ".git/info/grafts", ""),
    "alternates": lambda tree, sha: _write(tree / ".git/objects/info/alternates", "/elsewhere"),
    "hook": lambda tree, sha: _write(tree / ".git/hooks/post-checkout", "#!/bin/sh\n"),
    "bundle": lambda tree, sha: _write(tree / ".git/all.bundle", "PACK"),
    "module": lambda tree, sha: _write(tree / ".git/modules/m/HEAD", "ref: x"),
    "folder elsewhere": lambda tree, sha: (tree / ".git" / "worktrees").symlink_to("/"),
    "config": lambda tree, sha: _set_config(tree),
}


@pytest.mark.parametrize("name", LEAKS)
def test_the_assertion_finds(name: str, mirror: Path, origin: Origin, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    seal(mirror, origin.middle, tree)
    assert_sealed(tree, origin.middle, deadline=soon())  # as sealed it passes
    LEAKS[name](tree, origin.middle)
    with pytest.raises(LeakFound):
        assert_sealed(tree, origin.middle, deadline=soon())


def test_the_assertion_finds_what_is_lacking(mirror: Path, origin: Origin, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    seal(mirror, origin.middle, tree)
    (tree / ".git/refs/heads/main").write_text(f"{origin.future}\n")
    with pytest.raises(RepositoryError):
        assert_sealed(tree, origin.future, deadline=soon())


def test_submodules_are_refused_by_name(tmp_path: Path) -> None:
    repo = make_repo(tmp_path / "repo")
    plain = repo.commit({"a": "a\n"})
    repo.git("update-index", "--add", "--cacheinfo", f"160000,{plain},vendor/lib")
    repo.git("commit", "-qm", "with a submodule")
    seal(repo.path / ".git", plain, tmp_path / "fine")
    with pytest.raises(RepositoryError, match=r"submodules \(vendor/lib\)"):
        seal(repo.path / ".git", repo.git("rev-parse", "HEAD"), tmp_path / "tree")


def test_lfs_pointers_are_refused_but_text_that_looks_like_one_is_not(tmp_path: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    repo = make_repo(tmp_path / "repo")
    fine = repo.commit({"docs/pointer.txt": pointer})
    bad = repo.commit({"big.bin": pointer, ".gitattributes": "*.bin filter=lfs diff=lfs merge=lfs -text\n"})
    seal(repo.path / ".git", fine, tmp_path / "fine")
    with pytest.raises(RepositoryError, match=r"LFS pointers \(big\.bin\)"):
        seal(repo.path / ".git", bad, tmp_path / "tree")


def test_names_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    repo = make_repo(tmp_path / "repo")
    (repo.path / os.fsdecode(b"caf\xe9")).write_text("x")
    with pytest.raises(RepositoryError, match=r"caf\\xe9"):
        seal(repo.path / ".git", repo.commit({"caf\u00e9": "fine\n"}), tmp_path / "tree")


def test_odd_names_travel_whole(tmp_path: Path) -> None:
    names = {" lead", "new\nline", 'quo"te', "tab\t", "-dash", "caf\u00e9/\U0001f600", "a\\b", ":colon", "*star"}
    repo = make_repo(tmp_path / "repo")
    sha = repo.commit(dict.fromkeys(names, "x\n"))
    assert set(seal(repo.path / ".git", sha, tmp_path / "tree")) == names


@pytest.mark.parametrize(
    ("date", "year"), [("@0 +0000", 1980), ("@4102444800 +0000", None), ("@1600000000 +0000", 2020)]
)
def test_files_carry_the_commits_time_within_reason(date: str, year: int | None, tmp_path: Path) -> None:
    import time

    repo = make_repo(tmp_path / "repo")
    seal(repo.path / ".git", repo.commit({"a/b": "x\n"}, date=date), tmp_path / "tree")
    stamp = (tmp_path / "tree" / "a" / "b").stat().st_mtime
    assert stamp < time.time()
    assert year is None or time.gmtime(stamp).tm_year == year


def test_an_unknown_history_is_refused(mirror: Path, origin: Origin, tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="full, orphan"):
        seal(mirror, origin.middle, tmp_path / "tree", history="none")


def test_a_missing_blob_is_an_error_not_a_hole(origin: Origin, tmp_path: Path) -> None:
    blob = origin.repo.git("rev-parse", f"{origin.middle}:src/a.py")
    (origin.repo.path / ".git" / "objects" / blob[:2] / blob[2:]).unlink()
    with pytest.raises(RepositoryError):
        seal(origin.repo.path / ".git", origin.middle, tmp_path / "tree")


def test_a_box_can_use_the_config(mirror: Path, origin: Origin, tmp_path: Path) -> None:
    seal(mirror, origin.middle, tmp_path / "tree")
    command = ["git", "-C", str(tmp_path / "tree"), "commit", "-q", "--allow-empty", "-m", "mine"]
    env = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
    subprocess.run(command, check=True, env=env)  # an identity is there
