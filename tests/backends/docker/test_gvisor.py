"""Boxes on gVisor: what the conformance suite cannot see from inside, or gVisor does not tell there, is looked at here. Each with its control."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.backends.docker.backend import DockerBackend
from orchestrator.backends.docker.engine import Engine
from orchestrator.backends.docker.images import DockerImages
from orchestrator.backends.docker.settings import DockerSettings
from orchestrator.backends.docker.spec import container_name, pids_limit
from orchestrator.errors import SandboxOutOfMemory
from orchestrator.models import Network
from orchestrator.repos.workspace import make_workspaces
from tests.backends.docker.boxes import Box
from tests.backends.docker.conftest import IMAGE, open_box
from tests.needs import needs

pytestmark = [needs("docker", "root", "runsc"), pytest.mark.anyio]

Open = Callable[..., Awaitable[Box]]
CGROUPS = Path("/sys/fs/cgroup")


@pytest.fixture(scope="module")
async def gvisor(settings: DockerSettings, state_dir: Path) -> AsyncIterator[DockerBackend]:
    mine = replace(settings, runtime="runsc", accept_old_runc=False)
    async with DockerBackend(mine, make_workspaces(state_dir, settings.deployment)) as made:
        yield made
        left = await made.owned()
        for box in left:
            await made.destroy(box.id)
        assert not left, "a test left boxes behind"


@pytest.fixture
async def boxed(gvisor: DockerBackend) -> AsyncIterator[Open]:
    async with AsyncExitStack() as stack:

        async def open_one(**limits: float) -> Box:
            box = await open_box(gvisor, **limits)
            stack.push_async_callback(gvisor.destroy, box.sandbox.id)
            stack.push_async_callback(box.sandbox.aclose)
            return box

        yield open_one


async def container(engine: Engine, box: Box) -> str:
    state = await engine.inspect(container_name(box.sandbox.id))
    assert state is not None
    assert state.runtime == "runsc"
    return state.id


def counter(kind: str, container_id: str, name_v1: str, name_v2: str = "") -> dict[str, int]:
    """A file of a container's cgroup: "name value" lines, or one value under the name "value". `kind`: the v1 controller."""
    candidates = [CGROUPS / kind / "docker" / container_id / name_v1]
    candidates += [path / (name_v2 or name_v1) for path in CGROUPS.glob(f"system.slice/docker-{container_id}.scope")]
    candidates += [CGROUPS / "docker" / container_id / (name_v2 or name_v1)]
    text = next(path for path in candidates if path.exists()).read_text()
    lines = [line.split() for line in text.splitlines()]
    return {words[0] if len(words) > 1 else "value": int(words[-1]) for words in lines if words[-1].isdigit()}


async def test_C26_the_kernel_in_the_box_is_not_the_machines(boxed: Open) -> None:
    box = await boxed()
    assert "Starting gVisor" in await box.text("dmesg | head -n 1")
    assert (await box.text("cat /proc/version")).strip() != Path("/proc/version").read_text().strip()  # noqa: ASYNC240


async def test_C26_a_box_of_another_runtime_is_taken_back_and_told(
    gvisor: DockerBackend, backend: DockerBackend, boxed: Open, caplog: pytest.LogCaptureFixture
) -> None:
    """`backend` is the same deployment on runc, as after a restart with another setting."""
    box = await boxed()
    await (await gvisor.attach(box.sandbox.id)).aclose()
    assert "stays under" not in caplog.text
    await (await backend.attach(box.sandbox.id)).aclose()
    assert f"box {box.sandbox.id} stays under runsc" in caplog.text


PRIVILEGES = """
import ctypes, json, os
libc = ctypes.CDLL(None, use_errno=True)
header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
assert libc.capget(header, sets) == 0
header[1] = 1
agent = (ctypes.c_uint32 * 6)()
assert libc.capget(header, agent) == 0
print(json.dumps({"no_new_privs": libc.prctl(39, 0, 0, 0, 0), "mine": list(sets), "agents": list(agent)}))
"""


async def test_C1_C2_commands_have_no_capabilities_and_no_new_privileges(boxed: Open) -> None:
    box = await boxed()
    found = json.loads(await box.text(f"python3 -c '{PRIVILEGES}'"))
    assert found["no_new_privs"] == 1
    assert found["mine"] == [0] * 6
    assert found["agents"][0] == 0xE0, "the control: capabilities show where there are some"


DEVICES = """
import ctypes, fcntl, json, os, struct
libc = ctypes.CDLL(None, use_errno=True)
def attempt(do):
    try:
        do()
    except OSError as error:
        return os.strerror(error.errno)
    return "ok"
def tun():
    fcntl.ioctl(os.open("/dev/net/tun", os.O_RDWR), 0x400454CA, struct.pack("16sH22x", b"tun0", 0x1001))
def fuse():
    fd = os.open("/dev/fuse", os.O_RDWR)
    if libc.mount(b"f", b"/tmp", b"fuse", 0, f"fd={fd},rootmode=40000,user_id=0,group_id=0".encode()):
        raise OSError(ctypes.get_errno(), "")
print(json.dumps([attempt(tun), attempt(fuse), attempt(lambda: os.open("/dev/null", os.O_RDWR))]))
"""


async def test_C9_the_devices_of_gvisors_own_give_nothing(boxed: Open) -> None:
    box = await boxed()
    tun, fuse, null = json.loads(await box.text(f"python3 -c '{DEVICES}'"))
    assert null == "ok", "the control: a device that is there for all"
    assert "ok" not in (tun, fuse), (tun, fuse)


async def test_C11_memory_above_the_limit_ends_the_box_as_the_agents_doing(boxed: Open, engine: Engine) -> None:
    """gVisor keeps all memory of a box in one process, so that the whole box ends; a neighbour does not notice."""
    box, neighbour = await boxed(memory_mib=256), await boxed(memory_mib=256)
    assert await box.text("python3 -c 'len(bytearray(100 << 20))'") == ""
    limit = counter("memory", await container(engine, box), "memory.limit_in_bytes", "memory.max")
    assert limit == {"value": 256 << 20}
    with pytest.raises(SandboxOutOfMemory):
        await box.sh("python3 -c 'x = bytearray(400 << 20); x[::4096] = b\"x\" * len(x[::4096])'")
    assert await neighbour.text("echo well") == "well\n"


async def test_C12_a_fork_bomb_meets_the_boxs_limit_before_the_machines(boxed: Open, engine: Engine) -> None:
    box = await boxed(pids=64)
    assert await box.text("for i in $(seq 20); do sleep 0.2 & done; wait; echo below") == "below\n"
    identity = await container(engine, box)
    bomb = asyncio.create_task(box.sh("bomb() { bomb | bomb & }; bomb; sleep 4", timeout_s=8))
    seen = 0
    while not bomb.done():
        await asyncio.wait({bomb}, timeout=0.2)
        seen = max(seen, counter("pids", identity, "pids.current")["value"])
    await bomb
    assert 64 < seen < pids_limit(64, own_kernel=True) * 0.75, (
        "the machine's limit has room to spare, so that gVisor never meets it"
    )
    assert counter("pids", identity, "pids.max") == {"value": pids_limit(64, own_kernel=True)}
    assert await box.text("echo alive") == "alive\n"


async def test_C13_processor_time_is_limited_as_the_machine_counts_it(boxed: Open, engine: Engine) -> None:
    """gVisor counts a throttled thread's time as used, so that only the machine's own count tells."""
    box = await boxed(cpus=0.5)
    identity = await container(engine, box)

    def used_s() -> float:
        v1 = CGROUPS / "cpuacct" / "docker" / identity / "cpuacct.usage"
        if v1.exists():
            return int(v1.read_text()) / 1e9
        return counter("cpu", identity, "cpu.stat")["usage_usec"] / 1e6

    spinning = "for i in 1 2 3 4; do (while :; do :; done) & done; sleep 4; kill $(jobs -p)"
    before, began = used_s(), time.monotonic()
    await box.sh(spinning, timeout_s=15)
    took = time.monotonic() - began
    used = used_s() - before
    assert counter("cpu", identity, "cpu.stat")["nr_throttled"] > 0
    assert 0.2 * took < used < 0.5 * took * 1.2, f"{used:.2f} s of processor time in {took:.2f} s"


async def test_set_up_commands_run_on_gvisor_too_and_are_kept(
    settings: DockerSettings, engine: Engine, tmp_path: Path
) -> None:
    """A gVisor that keeps a container's writes to itself would lose them, and a set-up on runc would be a box with a weaker wall."""
    for name in ("tree", "upper", "work"):
        (tmp_path / name).mkdir()
    tag = f"tiltyard-test-gvisor:{tmp_path.name}"
    async with DockerImages(replace(settings, runtime="runsc")) as images:
        made = await images.run_setup(
            image=IMAGE,
            commands=("dmesg | head -n 1 > /opt/kernel", "echo there > kept.txt"),
            tree=tmp_path / "tree",
            upper=tmp_path / "upper",
            tag=tag,
            network=Network(),
            timeout_s=60,
        )
    try:
        assert (tmp_path / "upper" / "kept.txt").read_text() == "there\n"
        assert "Starting gVisor" in await output("docker", "run", "--rm", "--network=none", made, "cat", "/opt/kernel")
    finally:
        await engine.remove_image(tag)


async def output(*command: str) -> str:
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    said, _ = await process.communicate()
    assert process.returncode == 0
    return said.decode()
