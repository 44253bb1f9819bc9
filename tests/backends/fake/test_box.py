"""What the conformance suite does not ask of a fake box: its template, its cost, and that it refuses what it cannot be."""

import asyncio
import os
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.backends.fake import FakeBackend, FakeWorld
from orchestrator.backends.registry import backend_class
from orchestrator.errors import Misconfigured, StartFailed
from orchestrator.interfaces import Template
from orchestrator.models import Limits, Network, SandboxId
from orchestrator.operations import Delta, DeltaResult, List, ListResult
from tests.backends.fake.conftest import SPEC, open_box, soon

pytestmark = pytest.mark.anyio


def template(*lowers: Path) -> Template:
    return Template(key="t", lowers=tuple(map(str, lowers)), manifest={}, owner_uid=0, image="any")


@pytest.fixture
def lower(tmp_path: Path) -> Path:
    folder = tmp_path / "lower"
    (folder / "pkg").mkdir(parents=True)
    (folder / "README").write_text("readme\n")
    (folder / "pkg" / "big").write_bytes(b"b" * 2_000_000)
    (folder / "link").symlink_to("README")
    os.mkfifo(folder / "pipe")
    return folder


async def test_template_is_the_workspace(world: FakeWorld, lower: Path) -> None:
    box = await open_box(FakeBackend(world=world), spec=replace(SPEC, template=template(lower)))
    entries = await box.run(List(depth=3))
    assert isinstance(entries, ListResult)
    kinds = {entry.path: entry.kind for entry in entries.entries}
    assert kinds == {"README": "file", "link": "symlink", "pipe": "other", "pkg": "dir", "pkg/big": "file"}
    assert await box.text("cat link; wc -c pkg/big") == "readme\n2000000 pkg/big\n"


async def test_upper_layers_hide_and_replace(world: FakeWorld, lower: Path, tmp_path: Path) -> None:
    upper = tmp_path / "upper"
    (upper / "pkg").mkdir(parents=True)
    (upper / "README").write_text("newer\n")
    (upper / "pkg" / "added").write_text("added\n")
    box = await open_box(FakeBackend(world=world), spec=replace(SPEC, template=template(upper, lower)))
    assert await box.text("cat README pkg/added; ls pkg") == "newer\nadded\nadded\nbig\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="white-outs are devices, which only root makes")
async def test_white_outs_hide(world: FakeWorld, lower: Path, tmp_path: Path) -> None:
    upper = tmp_path / "upper"
    upper.mkdir()
    os.mknod(upper / "README", 0o020000, 0)
    box = await open_box(FakeBackend(world=world), spec=replace(SPEC, template=template(upper, lower)))
    assert await box.text("ls") == "link\npipe\npkg\n"


async def test_template_is_read_once_and_never_written(world: FakeWorld, lower: Path) -> None:
    backend, spec = FakeBackend(world=world), replace(SPEC, template=template(lower))
    first = await open_box(backend, "a", spec)
    await first.text("echo changed > README; rm -r pkg; mkdir pkg; echo x > pkg/new")
    (lower / "README").write_text("changed on disk\n")
    second = await open_box(backend, "b", spec)
    assert await second.text("cat README; ls pkg") == "readme\nbig\n"
    assert (lower / "pkg" / "big").exists()
    delta = await first.run(Delta(root=".", manifest={}))
    assert isinstance(delta, DeltaResult)
    assert {change.path for change in delta.changes} == {"README", "link", "pipe", "pkg/new"}


async def test_missing_template_is_a_failed_start(world: FakeWorld, tmp_path: Path) -> None:
    backend = FakeBackend(world=world)
    with pytest.raises(StartFailed, match="template t"):
        await backend.create(SandboxId("a"), replace(SPEC, template=template(tmp_path / "none")), deadline=soon())
    assert await backend.owned() == []


@pytest.mark.parametrize(
    "spec",
    [
        replace(SPEC, network=Network(allow=("example.org",))),
        replace(SPEC, workdir="relative"),
        replace(SPEC, workdir="/"),
    ],
)
async def test_what_cannot_be_honoured_is_refused(world: FakeWorld, spec: object) -> None:
    with pytest.raises(Misconfigured):
        await FakeBackend(world=world).create(SandboxId("a"), spec, deadline=soon())  # type: ignore[arg-type]


async def test_disk_is_given_back(world: FakeWorld) -> None:
    spec = replace(SPEC, limits=Limits(disk_mib=4))
    box = await open_box(FakeBackend(world=world), spec=spec)
    for _ in range(5):
        for number in range(3):
            await box.write(f"f{number}", bytes(1024 * 1024))
        await box.text("rm f0 f1 f2")


async def test_idle_boxes_cost_little_and_no_tasks(world: FakeWorld) -> None:
    backend, count = FakeBackend(world=world), 4_000
    tasks = len(asyncio.all_tasks())
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(count):
            await open_box(backend, f"b{number}")
        each = (tracemalloc.get_traced_memory()[0] - before) / count
    finally:
        tracemalloc.stop()
    assert each < 4096, "bytes per idle box"
    assert len(asyncio.all_tasks()) == tasks


async def test_ended_box_leaves_no_task(world: FakeWorld) -> None:
    backend = FakeBackend(world=world)
    box = await open_box(backend)
    tasks = len(asyncio.all_tasks())
    await box.text("sleep 60 & (sleep 60; echo x) & true")
    assert len(asyncio.all_tasks()) > tasks
    await backend.destroy(box.id)
    assert len(asyncio.all_tasks()) == tasks


def test_registry_knows_it() -> None:
    assert backend_class("fake") is FakeBackend
