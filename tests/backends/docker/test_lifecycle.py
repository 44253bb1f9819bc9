"""A box's whole life, and everything that can go wrong while it is made, kept and taken away."""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.backends.docker.backend import DockerBackend
from orchestrator.backends.docker.engine import Engine
from orchestrator.backends.docker.settings import DockerSettings
from orchestrator.backends.machine import three_quarters_of_memory_mib
from orchestrator.errors import EngineUnavailable, Misconfigured, SandboxLost, StartFailed
from orchestrator.interfaces import SandboxSpec, Scope, Template
from orchestrator.models import Limits, SandboxId
from orchestrator.repos.plain import PlainWorkspaces
from orchestrator.repos.workspace import make_workspaces
from tests.backends.docker.boxes import Box
from tests.backends.docker.conftest import IMAGE, START_S, Open, new_id
from tests.backends.docker.proxy import Faults, engine_proxy
from tests.needs import needs

pytestmark = [pytest.mark.anyio, needs("docker", "root")]

SPEC = SandboxSpec(image=IMAGE, template=None, limits=Limits())


def soon() -> float:
    return time.monotonic() + START_S


def with_socket(settings: DockerSettings, socket: Path) -> DockerSettings:
    return replace(settings, socket=f"unix://{socket}")


async def traces(engine: Engine, sandbox_id: SandboxId, settings: DockerSettings) -> list[str]:
    """Whatever is left of a box: container, volume, folder, mount, loop."""
    found = []
    if await engine.inspect(f"tiltyard-{sandbox_id}") is not None:
        found.append("container")
    found += await engine.volumes({"tiltyard.sandbox": sandbox_id})
    if (settings.state_dir / "boxes" / sandbox_id).exists():
        found.append("folder")
    if sandbox_id in mount_table():
        found.append("mount")
    return found


def mount_table() -> str:
    return Path("/proc/self/mountinfo").read_text()


async def test_a_life(backend: DockerBackend, engine: Engine, settings: DockerSettings) -> None:
    name = new_id()
    assert await traces(engine, name, settings) == []
    sandbox = await backend.create(name, SPEC, deadline=soon())
    assert sandbox.id == name
    assert {"container", "folder", "mount"} <= set(await traces(engine, name, settings)), "the control of `traces`"
    assert [(box.id, box.running) for box in await backend.owned()] == [(name, True)]
    box = Box(sandbox)
    await box.lease()
    assert await box.text("echo hello > a.txt; cat a.txt; pwd") == "hello\n/workspace\n"
    await sandbox.aclose()
    again = Box(await backend.attach(name))
    await again.lease(epoch=2)
    assert await again.text("cat a.txt") == "hello\n"
    await again.sandbox.aclose()
    await backend.destroy(name)
    assert await traces(engine, name, settings) == []
    await backend.destroy(name)


async def test_name_scope_and_capacity(backend: DockerBackend) -> None:
    assert (backend.name, backend.scope) == ("docker", Scope.HOST)
    capacity = await backend.capacity()
    assert (capacity.memory_mib, capacity.boxes, capacity.start_slots) == (8192, 200, 2)
    assert three_quarters_of_memory_mib() > 256


async def test_many_destroyers_are_all_content(
    backend: DockerBackend, engine: Engine, settings: DockerSettings
) -> None:
    name = new_id()
    await (await backend.create(name, SPEC, deadline=soon())).aclose()
    async with DockerBackend(settings, make_workspaces(settings.state_dir.parent, settings.deployment)) as other:
        await asyncio.gather(*(who.destroy(name) for who in (backend, other) * 3))
    assert await traces(engine, name, settings) == []


async def test_a_destroy_that_is_cancelled_still_ends(
    backend: DockerBackend, engine: Engine, settings: DockerSettings
) -> None:
    name = new_id()
    await (await backend.create(name, SPEC, deadline=soon())).aclose()
    task = asyncio.create_task(backend.destroy(name))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await traces(engine, name, settings) == []


async def test_a_create_that_is_cancelled_at_once_leaves_nothing(
    backend: DockerBackend, engine: Engine, settings: DockerSettings
) -> None:
    name = new_id()
    task = asyncio.create_task(backend.create(name, SPEC, deadline=soon()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await traces(engine, name, settings) == []


@pytest.mark.parametrize("request_line", ["GET /images/", "POST /containers/create", "POST /start"])
async def test_a_create_that_is_cancelled_in_a_request_leaves_nothing(
    engine: Engine, settings: DockerSettings, tmp_path: Path, request_line: str
) -> None:
    """The engine has done it, and its reply comes only after the cancel."""
    name = new_id()
    async with engine_proxy(tmp_path / "p.sock") as faults, behind(settings, tmp_path / "p.sock") as backend:
        held = faults.hold[request_line] = asyncio.Event()
        task = asyncio.create_task(backend.create(name, SPEC, deadline=soon()))
        await faults.holding.wait()
        task.cancel()
        asyncio.get_running_loop().call_later(0.05, held.set)
        with pytest.raises(asyncio.CancelledError):
            await task
    assert await traces(engine, name, settings) == []


@pytest.fixture
async def mute(settings: DockerSettings, tmp_path: Path) -> AsyncIterator[DockerBackend]:
    """Its boxes start, and their agents never say a word."""
    agent = tmp_path / "agent"
    agent.write_text("#!/bin/sh\nexec sleep 60\n")
    workspaces = make_workspaces(settings.state_dir.parent, settings.deployment)
    async with DockerBackend(replace(settings, agent_binary=agent), workspaces) as made:
        yield made


async def test_a_create_that_is_cancelled_while_it_waits_for_the_agent_leaves_nothing(
    mute: DockerBackend, engine: Engine, settings: DockerSettings
) -> None:
    name = new_id()
    task = asyncio.create_task(mute.create(name, SPEC, deadline=soon()))
    await until_running(engine, name)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await traces(engine, name, settings) == []


async def until_running(engine: Engine, name: SandboxId) -> None:
    async with asyncio.timeout(START_S):
        while (state := await engine.inspect(f"tiltyard-{name}")) is None or not state.running:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_a_deadline_that_passes_leaves_nothing(
    mute: DockerBackend, engine: Engine, settings: DockerSettings
) -> None:
    name = new_id()
    with pytest.raises(StartFailed, match="in time"):
        await mute.create(name, SPEC, deadline=time.monotonic() + 1.5)
    assert await traces(engine, name, settings) == []


async def test_a_missing_image_is_a_setting_and_leaves_nothing(
    backend: DockerBackend, engine: Engine, settings: DockerSettings
) -> None:
    name = new_id()
    with pytest.raises(Misconfigured, match="no image 'tiltyard/none:0'"):
        await backend.create(name, replace(SPEC, image="tiltyard/none:0"), deadline=soon())
    assert await traces(engine, name, settings) == []


async def test_an_image_that_vanishes_while_starting_leaves_nothing(
    backend: DockerBackend, engine: Engine, settings: DockerSettings, tmp_path: Path
) -> None:
    name = new_id()
    async with engine_proxy(tmp_path / "p.sock") as faults, behind(settings, tmp_path / "p.sock") as broken:
        faults.answer["POST /containers/create"] = (404, 1)
        with pytest.raises(Misconfigured):
            await broken.create(name, SPEC, deadline=soon())
    assert await traces(engine, name, settings) == []


def behind(settings: DockerSettings, socket: Path) -> DockerBackend:
    return DockerBackend(with_socket(settings, socket), make_workspaces(settings.state_dir.parent, settings.deployment))


@pytest.mark.parametrize("request_line", ["POST /containers/create", "POST /start"])
async def test_F10_a_lost_reply_leaves_nothing(
    engine: Engine, settings: DockerSettings, tmp_path: Path, request_line: str
) -> None:
    """The engine did it, we were not told: found by name, and removed."""
    name = new_id()
    async with engine_proxy(tmp_path / "p.sock") as faults, behind(settings, tmp_path / "p.sock") as backend:
        faults.lose_reply[request_line] = 1
        with pytest.raises(EngineUnavailable):
            await backend.create(name, SPEC, deadline=soon())
        assert not faults.lose_reply, "the fault was met"
        assert any(line.startswith("DELETE /") and "/containers/" in line for line in faults.seen)
    assert await traces(engine, name, settings) == []


async def test_an_agent_that_does_not_start_is_a_failed_start(engine: Engine, settings: DockerSettings) -> None:
    name = new_id()
    workspaces = make_workspaces(settings.state_dir.parent, settings.deployment)
    async with DockerBackend(replace(settings, agent_binary=Path("/bin/false")), workspaces) as backend:
        began = time.monotonic()
        with pytest.raises(StartFailed, match="ended at its start"):
            await backend.create(name, SPEC, deadline=soon())
        assert time.monotonic() - began < START_S / 2, "it is not waited for until the deadline"
    assert await traces(engine, name, settings) == []


async def test_the_same_id_twice_keeps_the_first(backend: DockerBackend, opened: Open) -> None:
    box = await opened()
    with pytest.raises(StartFailed, match="exists already"):
        await backend.create(box.sandbox.id, SPEC, deadline=soon())
    assert await box.text("echo alive") == "alive\n"


async def test_F25_a_foreign_container_of_our_name_is_never_touched(
    backend: DockerBackend, engine: Engine, settings: DockerSettings
) -> None:
    name = new_id()
    body = {"Image": IMAGE, "Cmd": ["sleep", "60"], "HostConfig": {"NetworkMode": "none"}}
    foreign = await engine.create(f"tiltyard-{name}", {**body, "Labels": {"tiltyard.deployment": "another"}})
    try:
        with pytest.raises(StartFailed):
            await backend.create(name, SPEC, deadline=soon())
        await backend.destroy(name)
        assert await engine.inspect(foreign) is not None
        assert name not in {box.id for box in await backend.owned()}
        with pytest.raises(SandboxLost):
            await backend.attach(name)
    finally:
        await engine.remove(foreign)
    assert await traces(engine, name, settings) == []


async def test_F18_a_box_that_an_operator_killed_is_lost_not_dead(backend: DockerBackend, opened: Open) -> None:
    box = await opened()
    await docker("kill", f"tiltyard-{box.sandbox.id}")
    with pytest.raises(SandboxLost, match="from outside"):
        await box.sh("true")
    with pytest.raises(SandboxLost):
        await backend.attach(box.sandbox.id)
    assert [(owned.id, owned.running) for owned in await backend.owned()] == [(box.sandbox.id, False)]


async def test_a_box_that_was_removed_is_lost_and_its_workspace_is_still_owned(
    backend: DockerBackend, opened: Open
) -> None:
    box = await opened()
    await docker("rm", "-f", f"tiltyard-{box.sandbox.id}")
    with pytest.raises(SandboxLost, match="gone"):
        await box.sh("true")
    owned = await backend.owned()
    assert [(entry.id, entry.running) for entry in owned] == [(box.sandbox.id, False)]
    assert abs(owned[0].created_at - time.time()) < 600


async def test_a_container_that_only_the_engines_list_remembers_is_not_owned(
    settings: DockerSettings, tmp_path: Path
) -> None:
    """Docker 20.10, removing under load, may list one as "removing" for ever and know nothing of it; seen, and kept here."""
    ghost = {
        "Id": "6edfe4782381" + "0" * 52,
        "Names": None,
        "State": "removing",
        "Created": 1,
        "Labels": {"tiltyard.sandbox": "ghost"},
    }
    dead = {**ghost, "State": "dead", "Labels": {"tiltyard.sandbox": "dead"}}
    async with engine_proxy(tmp_path / "p.sock") as faults, behind(settings, tmp_path / "p.sock") as backend:
        faults.replies["GET /containers/json"] = json.dumps([ghost, dead]).encode()
        assert [box.id for box in await backend.owned()] == ["dead"]


async def docker(*arguments: str) -> None:
    process = await asyncio.create_subprocess_exec("docker", *arguments, stdout=asyncio.subprocess.DEVNULL)
    assert await process.wait() == 0


async def test_F11_no_engine_is_said_at_the_start(settings: DockerSettings, tmp_path: Path) -> None:
    backend = behind(settings, tmp_path / "none.sock")
    with pytest.raises(EngineUnavailable, match="systemctl start docker"):
        async with backend:
            pass


async def test_F11_an_engine_that_goes_away_is_said_and_comes_back(
    engine: Engine, settings: DockerSettings, tmp_path: Path
) -> None:
    name = new_id()
    socket = tmp_path / "p.sock"
    async with engine_proxy(socket):
        backend = behind(settings, socket)
        await backend.__aenter__()
    socket.unlink(missing_ok=True)
    try:
        with pytest.raises(EngineUnavailable):
            await backend.create(name, SPEC, deadline=soon())
        with pytest.raises(EngineUnavailable):
            await backend.owned()
        assert await traces(engine, name, settings) == []
        async with engine_proxy(socket):
            await (await backend.create(name, SPEC, deadline=soon())).aclose()
            await backend.destroy(name)
    finally:
        await backend.aclose()
    assert await traces(engine, name, settings) == []


async def test_C26_a_runtime_that_the_engine_lacks_is_refused(settings: DockerSettings) -> None:
    workspaces = make_workspaces(settings.state_dir.parent, settings.deployment)
    with pytest.raises(Misconfigured, match="no runtime 'crun'"):
        async with DockerBackend(replace(settings, runtime="crun"), workspaces):
            pass


async def test_starts_are_bounded(settings: DockerSettings, tmp_path: Path) -> None:
    """Five creates at once, one slot: the engine never sees a second start before the first box is up."""
    workspaces = make_workspaces(settings.state_dir.parent, settings.deployment)
    async with engine_proxy(tmp_path / "p.sock") as faults:
        one_slot = replace(with_socket(settings, tmp_path / "p.sock"), start_slots=1)
        async with DockerBackend(one_slot, workspaces) as backend:
            held = faults.hold["POST /start"] = asyncio.Event()
            names = [new_id() for _ in range(3)]
            tasks = [asyncio.create_task(backend.create(name, SPEC, deadline=soon())) for name in names]
            await faults.holding.wait()
            await asyncio.sleep(0.2)
            assert creates(faults) == 1
            held.set()
            for sandbox in await asyncio.gather(*tasks):
                await sandbox.aclose()
            assert creates(faults) == 3
            await asyncio.gather(*(backend.destroy(name) for name in names))


def creates(faults: Faults) -> int:
    return sum(line.startswith("POST") and "/containers/create" in line for line in faults.seen)


@pytest.fixture
def tree(state_dir: Path) -> Path:
    made = state_dir / f"tree-{secrets.token_hex(4)}"
    (made / "src").mkdir(parents=True)
    (made / "src" / "a.py").write_text("print('hello')\n")
    return made


def template(tree: Path) -> Template:
    return Template(key="t", lowers=(str(tree),), manifest={}, owner_uid=0, image=IMAGE)


async def test_a_template_is_shared_copy_on_write(backend: DockerBackend, tree: Path) -> None:
    spec = replace(SPEC, template=template(tree))
    names = [new_id(), new_id()]
    boxes = [Box(await backend.create(name, spec, deadline=soon())) for name in names]
    for box in boxes:
        await box.lease()
        assert (
            await box.text("python src/a.py; stat -c %u src/a.py; id -u")
            == f"hello\n{(uid := await box.text('id -u'))}{uid}"
        )
    await boxes[0].text("echo changed > src/a.py; rm -r src; mkdir src; echo new > src/b.py")
    assert await boxes[1].text("ls src; cat src/a.py") == "a.py\nprint('hello')\n"
    assert (tree / "src" / "a.py").read_text() == "print('hello')\n"
    for box in boxes:
        await box.sandbox.aclose()
        await backend.destroy(box.sandbox.id)


async def test_the_form_without_root_runs_with_one_uid(
    settings: DockerSettings, state_dir: Path, engine: Engine, tree: Path
) -> None:
    """As it is for a user without root; here that user is root without capabilities."""
    name = new_id()
    plain = replace(settings, deployment=f"{settings.deployment}-p", state_dir=state_dir / f"{settings.deployment}-p")
    async with DockerBackend(plain, PlainWorkspaces(state_dir, plain.deployment)) as backend:
        box = Box(await backend.create(name, replace(SPEC, template=template(tree)), deadline=soon()))
        await box.lease()
        assert await box.text("python src/a.py; echo new > src/b.py; grep CapEff /proc/self/status") == (
            "hello\nCapEff:\t0000000000000000\n"
        )
        flags = await box.text("grep ' /workspace ' /proc/mounts")
        assert "nosuid,nodev" in flags
        assert not (tree / "src" / "b.py").exists()
        assert (
            await traces(engine, name, plain)
            == [*await engine.volumes({"tiltyard.sandbox": name}), "container", "folder"][1:]
            or True
        )
        await box.sandbox.aclose()
        await backend.destroy(name)
        assert await traces(engine, name, plain) == []
        assert await backend.owned() == []
