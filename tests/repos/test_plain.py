"""Workspaces without root (the class does not mind who runs it)."""

import os
from pathlib import Path

import pytest

from orchestrator.errors import Misconfigured, StartFailed
from orchestrator.interfaces import Template
from orchestrator.models import Limits, SandboxId
from orchestrator.repos import mounts, syscalls
from orchestrator.repos.plain import PlainWorkspaces
from orchestrator.repos.templates import TemplateCache
from orchestrator.repos.workspace import HostPath, OverlayVolume
from tests.needs import needs
from tests.repos.conftest import Origin, make_task, soon

pytestmark = pytest.mark.anyio

BOX = SandboxId("box")


@pytest.fixture
def workspaces(tmp_path: Path) -> PlainWorkspaces:
    return PlainWorkspaces(tmp_path / "state", "dep")


@pytest.fixture
async def template(cache: TemplateCache, origin: Origin) -> Template:
    return await cache.template(make_task(origin.path, origin.middle), deadline=soon())


async def test_a_box_is_folders_and_a_volume_to_be_made(workspaces: PlainWorkspaces, template: Template) -> None:
    made = await workspaces.prepare(BOX, template, Limits())
    volume = made.workspace_mount
    assert isinstance(volume, OverlayVolume)
    assert volume.lowers == template.lowers
    assert (made.uid_base, made.uid_count, made.capped) == (os.geteuid(), 1, False)
    assert made.tmp.stat().st_mode & 0o7777 == 0o1777
    assert made.agent_dir.stat().st_mode & 0o777 == 0o755
    assert not mounts.mounted_below(made.root)


@needs("root")
async def test_the_volumes_options_mount_and_rename_folders(workspaces: PlainWorkspaces, template: Template) -> None:
    """As the engine does it."""
    made = await workspaces.prepare(BOX, template, Limits())
    assert isinstance(made.workspace_mount, OverlayVolume)
    point = made.root / "point"
    point.mkdir()
    syscalls.mount("overlay", point, "overlay", 0, made.workspace_mount.options)
    try:
        os.rename(point / "src", point / "moved")
        assert (point / "moved" / "a.py").read_text() == "a = 1\n"
    finally:
        mounts.unmount(point)
    await workspaces.remove(BOX)
    assert await workspaces.owned() == []


async def test_space_is_watched(workspaces: PlainWorkspaces) -> None:
    made = await workspaces.prepare(BOX, None, Limits())
    before = await workspaces.usage_bytes(BOX)
    assert isinstance(made.workspace_mount, HostPath)
    (made.workspace_mount.path / "big").write_bytes(b"x" * 1_000_000)
    assert 900_000 < await workspaces.usage_bytes(BOX) - before < 1_100_000
    assert await workspaces.usage_bytes(SandboxId("unknown")) == 0


async def test_removal_takes_closed_folders_and_follows_no_link(workspaces: PlainWorkspaces, tmp_path: Path) -> None:
    made = await workspaces.prepare(BOX, None, Limits())
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    (made.tmp / "link").symlink_to(tmp_path / "precious")
    (made.tmp / "shut" / "in").mkdir(parents=True)
    (made.tmp / "shut" / "in").chmod(0)
    (made.tmp / "shut").chmod(0)
    await workspaces.remove(BOX)
    await workspaces.remove(BOX)
    assert not made.root.exists()
    assert (tmp_path / "precious" / "file").exists()


async def test_removal_takes_a_tree_deeper_than_python_recurses(workspaces: PlainWorkspaces) -> None:
    made = await workspaces.prepare(BOX, None, Limits())
    folder = os.open(made.tmp, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("deep", dir_fd=folder)
        inner = os.open("deep", os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = inner
    os.close(folder)
    await workspaces.remove(BOX)
    assert not made.root.exists()


async def test_a_box_is_made_once_and_swept_by_name(workspaces: PlainWorkspaces, tmp_path: Path) -> None:
    for name in ("one", "two"):
        await workspaces.prepare(SandboxId(name), None, Limits())
    with pytest.raises(StartFailed, match="exists already"):
        await workspaces.prepare(SandboxId("one"), None, Limits())
    after = PlainWorkspaces(tmp_path / "state", "dep")
    assert await after.owned() == ["one", "two"]
    assert await after.remove_all_stale(keep={SandboxId("two")}) == ["one"]
    assert await after.owned() == ["two"]


async def test_a_template_of_another_user_is_refused(workspaces: PlainWorkspaces, template: Template) -> None:
    import dataclasses

    foreign = dataclasses.replace(template, owner_uid=os.geteuid() + 1)
    with pytest.raises(Misconfigured, match="another user"):
        await workspaces.prepare(BOX, foreign, Limits())
    assert await workspaces.owned() == []
