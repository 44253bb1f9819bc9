"""Nothing in a repository, its configuration or this user's runs on the host (C32)."""

import subprocess
from pathlib import Path

import pytest

from orchestrator.repos import gitcmd
from orchestrator.repos.fakes import FakeImages, FakeSetup
from orchestrator.repos.gitcmd import inherited_to_drop
from orchestrator.repos.templates import TemplateCache
from tests.repos.conftest import CLEAN, Origin, Repo, make_repo, make_task, soon

ATTRIBUTES = "* filter=evil diff=evil merge=evil export-subst ident working-tree-encoding=UTF-8\n"
HOOKS = (
    "post-checkout",
    "post-merge",
    "pre-commit",
    "reference-transaction",
    "post-index-change",
    "fsmonitor-watchman",
    "pre-auto-gc",
    "update",
    "pre-receive",
    "post-update",
)


def evil_config(canary: Path) -> str:
    touch = f"touch {canary}"
    return f"""
[filter "evil"]
\tsmudge = {touch}-smudge; cat
\tclean = {touch}-clean; cat
\tprocess = {touch}-process
\trequired = true
[diff "evil"]
\ttextconv = {touch}-textconv; cat
\tcommand = {touch}-diff
[merge "evil"]
\tdriver = {touch}-merge
[core]
\tfsmonitor = {touch}-fsmonitor
\tsshCommand = {touch}-ssh
\tpager = {touch}-pager
\tgitProxy = {touch}-proxy
\talternateRefsCommand = {touch}-alternates
[uploadpack]
\tpackObjectsHook = {touch}-packhook; cat
[credential]
\thelper = !{touch}-credential
[alias]
\tls-tree = !{touch}-alias
[protocol "ext"]
\tallow = always
[remote "origin"]
\turl = ext::{touch}-ext
\tpromisor = true
\tuploadpack = {touch}-uploadpack
"""


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    (tmp_path / "canaries").mkdir()
    return tmp_path / "canaries" / "sang"


@pytest.fixture
def hostile(tmp_path: Path, canary: Path) -> Origin:
    """A repository whose content, hooks and configuration all try to run something."""
    repo = make_repo(tmp_path / "hostile")
    sha = repo.commit({".gitattributes": ATTRIBUTES, "a.txt": "$Id$ $Format:%H$\n", ".lfsconfig": "[lfs]\n\turl = x\n"})
    for name in HOOKS:
        hook = repo.path / ".git" / "hooks" / name
        hook.parent.mkdir(exist_ok=True)
        hook.write_text(f"#!/bin/sh\ntouch {canary}-{name}\n")
        hook.chmod(0o755)
    with (repo.path / ".git" / "config").open("a") as config:
        config.write(evil_config(canary))
    return Origin(repo=repo, base=sha, middle=sha, future=sha, gold_blob="")


def test_the_canaries_can_sing(hostile: Origin, canary: Path) -> None:
    """Positive control: git in that folder runs what the configuration says."""
    subprocess.run(
        ["git", "-C", hostile.path, "checkout", "-qf", "HEAD", "."], env=CLEAN, check=False, capture_output=True
    )
    subprocess.run(["git", "-C", hostile.path, "status"], env=CLEAN, check=False, capture_output=True)
    assert list(canary.parent.iterdir())


@pytest.mark.anyio
async def test_building_from_a_hostile_repository_runs_nothing_of_it(
    hostile: Origin, canary: Path, tmp_path: Path
) -> None:
    cache = TemplateCache(tmp_path / "cache", setup=FakeSetup(), images=FakeImages())
    for history in ("full", "orphan"):
        template = await cache.template(make_task(hostile.path, hostile.middle, history=history), deadline=soon())
        assert "a.txt" in template.manifest
    assert list(canary.parent.iterdir()) == []


@pytest.mark.anyio
async def test_what_set_up_does_to_git_is_dropped(origin: Origin, canary: Path, tmp_path: Path) -> None:
    def effect(tree: Path, upper: Path) -> None:
        (upper / ".git").mkdir(exist_ok=True)
        (upper / ".git" / "config").write_text(evil_config(canary))
        (upper / ".git" / "ORIG_HEAD").write_text(origin.future)
        (upper / "made").write_text("kept\n")

    cache = TemplateCache(tmp_path / "cache", setup=FakeSetup(effect=effect), images=FakeImages())
    template = await cache.template(make_task(origin.path, origin.middle, setup=("x",)), deadline=soon())
    assert "made" in template.manifest
    assert not (Path(template.lowers[0]) / ".git" / "ORIG_HEAD").exists()
    assert "evil" not in (Path(template.lowers[-1]) / ".git" / "config").read_text()
    assert list(canary.parent.iterdir()) == []


def test_the_users_own_configuration_runs_nothing(
    origin: Origin, canary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    template = home / "template" / "hooks"
    template.mkdir(parents=True)
    hook = template / "post-checkout"
    hook.write_text(f"#!/bin/sh\ntouch {canary}-template\n")
    hook.chmod(0o755)
    (home / ".gitconfig").write_text(evil_config(canary) + f"[init]\n\ttemplateDir = {template.parent}\n")
    (home / ".config" / "git").mkdir(parents=True)
    (home / ".config" / "git" / "attributes").write_text(ATTRIBUTES)
    env = {**CLEAN, "HOME": str(home)}
    clone = ["git", "clone", "-q", origin.path, str(tmp_path / "clone")]
    subprocess.run(clone, env=env, check=False, capture_output=True)
    assert list(canary.parent.iterdir())  # positive control: a plain clone under that home does
    for path in canary.parent.iterdir():
        path.unlink()
    monkeypatch.setenv("HOME", str(home))
    from orchestrator.repos.seal import seal

    seal(origin.repo.path / ".git", origin.middle, tmp_path / "tree")
    assert list(canary.parent.iterdir()) == []


def test_variables_that_would_redirect_git_are_dropped(
    origin: Origin, canary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the server is started from inside a git hook."""
    victim = make_repo(tmp_path / "victim")
    head = victim.commit({"mine": "mine\n"})
    for name, value in {
        "GIT_DIR": str(victim.path / ".git"),
        "GIT_WORK_TREE": str(victim.path),
        "GIT_INDEX_FILE": str(victim.path / ".git" / "index"),
        "GIT_OBJECT_DIRECTORY": str(victim.path / ".git" / "objects"),
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "core.fsmonitor",
        "GIT_CONFIG_VALUE_0": f"touch {canary}-count",
        "GIT_CONFIG_PARAMETERS": f"'core.fsmonitor=touch {canary}-parameters'",
        "GIT_EXTERNAL_DIFF": f"touch {canary}-external",
        "GIT_TEMPLATE_DIR": str(tmp_path),
    }.items():
        monkeypatch.setenv(name, value)
    from orchestrator.repos.seal import seal

    seal(origin.repo.path / ".git", origin.middle, tmp_path / "tree")
    assert (tmp_path / "tree" / "README").read_text() == "two\n"
    monkeypatch.undo()
    assert Repo(tmp_path / "tree").git("rev-parse", "HEAD") == origin.middle
    assert victim.git("rev-parse", "HEAD") == head
    assert victim.git("status", "--porcelain") == ""
    assert list(canary.parent.iterdir()) == []


def test_a_folder_that_is_no_repository_is_never_taken_for_the_one_around_it(origin: Origin, tmp_path: Path) -> None:
    inside = origin.repo.path / "src"
    assert Repo(inside).git("rev-parse", "--show-toplevel") == origin.path  # plain git does
    for folder in (inside, tmp_path / "absent"):
        assert gitcmd.attempt(folder, "rev-parse", "HEAD", deadline=soon()).status != 0


def test_only_foreign_git_variables_are_dropped() -> None:
    inherited = ("PATH", "GIT_DIR", "GIT_CONFIG_COUNT", "GITHUB_TOKEN", "GIT_TRACE")
    assert inherited_to_drop(inherited, {"GIT_CONFIG_COUNT": "1"}) == ("GIT_DIR", "GIT_TRACE")


@pytest.mark.anyio
async def test_a_name_that_looks_like_an_option_or_a_command_stays_a_name(tmp_path: Path, canary: Path) -> None:
    names = ("--upload-pack=touch", f"$(touch {canary})", f";touch {canary};", "`touch x`", "-x")
    repo = make_repo(tmp_path / names[2].replace("/", "_"))
    sha = repo.commit({name.replace("/", "_"): "x\n" for name in names})
    cache = TemplateCache(tmp_path / "cache", setup=FakeSetup(), images=FakeImages())
    template = await cache.template(make_task(str(repo.path), sha), deadline=soon())
    assert len(template.manifest) == len(names)
    assert list(canary.parent.iterdir()) == []
