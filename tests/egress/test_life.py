"""A network's life: cut, told, adopted, broken, shared, taken away; on a real engine."""

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.backends.docker.backend import DockerBackend
from orchestrator.backends.docker.egress.control import SETUP
from orchestrator.backends.docker.engine import Engine
from orchestrator.backends.docker.images import DockerImages
from orchestrator.backends.docker.settings import DockerSettings
from orchestrator.egress.names import network
from orchestrator.errors import Misconfigured, RepositoryError, SandboxLost, StartFailed
from orchestrator.interfaces import EgressControl, SandboxSpec
from orchestrator.models import Limits, Network, NetworkAttempt, SandboxId
from orchestrator.repos.workspace import make_workspaces
from tests.egress.conftest import LISTED, Open, Prober
from tests.egress.internet import PYTHON, Internet, docker
from tests.hosts.world import until_true
from tests.needs import needs

pytestmark = [pytest.mark.anyio, needs("docker", "root")]


async def proxies(engine: Engine, settings: DockerSettings) -> list[str]:
    mine = {"tiltyard.deployment": settings.deployment, "tiltyard.role": "egress"}
    return sorted(entry.id for entry in await engine.containers(mine))


async def works(prober: Prober) -> bool:
    return (await prober.tries("http", "http://good.example/")).startswith("got 200 web saw")


async def test_H2_every_attempt_is_told_and_after_the_cut_nothing_works(backend: DockerBackend, opened: Open) -> None:
    """As an agent would that looks for the answer upstream; strange names are told in letters that no terminal minds."""
    box = await opened()
    assert isinstance(backend, EgressControl)
    assert await works(box)
    await box.tries("connect", "good.example:443")
    await box.box.sh(
        "git -c http.proxySslVerify=false clone https://github.example/upstream/repo.git /tmp/r", timeout_s=20
    )
    await box.box.sh("pip download --no-input --retries 0 --timeout 3 upstream-package", timeout_s=20)
    await box.tries("http", "http://meta.bad.example/latest/meta-data")
    await box.tries("http", "http://169.254.169.254/latest/meta-data")
    await box.tries("connect", "good.example:22")
    await box.tries("name", "x-gold-answer.tunnel.example")
    await box.tries("raw", r"GET http://a\x1b]0;t\x07b.example/ HTTP/1.0\r\n\r\n")
    await box.tries("raw", r"CONNECT e%0d%0avil.example:443 HTTP/1.0\r\n\r\n")
    tried = await backend.cut(box.id)
    told = {(each.host, each.port, each.allowed) for each in tried}
    assert told >= {
        ("good.example", 80, True),
        ("good.example", 443, True),
        ("github.example", 443, False),
        ("pypi.org", 443, False),
        ("meta.bad.example", 80, False),
        ("169.254.169.254", 80, False),
        ("good.example", 22, False),
        ("x-gold-answer.tunnel.example", 53, False),
    }
    assert all(character.isprintable() for each in tried for character in each.host)
    assert [each.allowed for each in tried] == sorted(each.allowed for each in tried)
    reasons = {each.host: each.reason for each in tried}
    assert reasons["meta.bad.example"] == "resolves to a private, local or metadata address"
    for kind, *arguments in (
        ("http", "http://good.example/"),
        ("connect", "good.example:443"),
        ("tcp", "100.127.0.1", "3128"),
        ("udp", "100.127.0.1", "53"),
        ("name", "good.example"),
    ):
        assert (await box.tries(kind, *arguments)).startswith("failed")
    assert list(await backend.cut(box.id)) == list(tried)


async def test_an_open_tunnel_carries_nothing_after_the_cut(backend: DockerBackend, opened: Open) -> None:
    box = await opened()
    script = (
        "import socket, time, pathlib; s = socket.create_connection(('100.127.0.1', 3128), 5); s.settimeout(4);"
        "s.sendall(b'CONNECT good.example:443 HTTP/1.1\\r\\n\\r\\n'); s.recv(999); s.sendall(b'one\\n'); print(s.recv(99), flush=True);"
        "go = pathlib.Path('/tmp/go')\n"
        "while not go.exists(): time.sleep(0.05)\n"
        "try:\n s.sendall(b'two\\n'); print(s.recv(99))\n"
        "except OSError as error: print('nothing', error)"
    )
    await box.box.text(f"cat >/tmp/t.py <<'EOF'\n{script}\nEOF")
    running = asyncio.create_task(box.box.text("python3 /tmp/t.py >/tmp/out 2>&1", timeout_s=30))

    async def answered() -> bool:
        return b"one" in (await box.box.sh("cat /tmp/out")).stdout.head

    await until_true(answered)
    await backend.cut(box.id)
    await box.box.text("touch /tmp/go")
    await running
    lines = (await box.box.text("cat /tmp/out")).splitlines()
    assert "web saw: one" in lines[0]
    assert lines[1].startswith("nothing"), lines


async def test_a_flood_of_attempts_is_bounded_and_displaces_no_neighbours(backend: DockerBackend, opened: Open) -> None:
    loud, quiet = await opened(), await opened()
    await quiet.tries("http", "http://quiet.example/")
    flood = (
        "import socket\n"
        "for lap in range(3):\n"
        " s = socket.create_connection(('100.127.0.1', 3128), 5)\n"
        " for n in range(400):\n"
        "  s.sendall(b'GET http://h%d.flood.example/ HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n' % n); s.recv(99999)\n"
        "u = socket.socket(type=socket.SOCK_DGRAM); u.connect(('100.127.0.1', 53))\n"
        "for n in range(2000): u.send(b'\\0\\1\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0\\4%04d\\4test\\0\\0\\1\\0\\1' % n)\n"
    )
    await loud.box.text(f"python3 - <<'EOF'\n{flood}\nEOF", timeout_s=60)
    assert ("quiet.example", 80, False) in {
        (each.host, each.port, each.allowed) for each in await backend.cut(quiet.id)
    }
    told = await backend.cut(loud.id)
    assert 200 < len(told) <= 402
    assert any(each.host == "" and each.count > 100 for each in told)


async def test_boxes_of_one_list_share_a_proxy_which_ends_with_the_last(
    backend: DockerBackend, engine: Engine, settings: DockerSettings
) -> None:
    specs = [network(["good.example"]), network(["good.example"]), network(["also.example"])]
    names = [SandboxId(f"n-{number}") for number in range(3)]
    made = []
    for name, listed in zip(names, specs, strict=True):
        spec = SandboxSpec(image=PYTHON, template=None, limits=Limits(), network=listed)
        made.append(await backend.create(name, spec, deadline=time.monotonic() + 90))
        await made[-1].aclose()
    before = await proxies(engine, settings)
    assert len(before) == 2
    await backend.destroy(names[0])
    assert await proxies(engine, settings) == before
    await backend.destroy(names[1])
    (left,) = await proxies(engine, settings)
    assert left in before
    await backend.destroy(names[2])
    assert await proxies(engine, settings) == []


async def test_the_next_process_cuts_and_removes_what_the_last_one_connected(
    settings: DockerSettings, state_dir: Path, backend: DockerBackend, opened: Open
) -> None:
    box = await opened()
    assert await works(box)
    async with DockerBackend(settings, make_workspaces(state_dir, settings.deployment)) as successor:
        adopted = await successor.attach(box.id)
        assert await works(box)
        tried = await successor.cut(box.id)
        assert NetworkAttempt(host="good.example", port=80, allowed=True, reason="", count=2) in tried
        await adopted.aclose()
        await successor.destroy(box.id)
        assert box.id not in [owned.id for owned in await successor.owned()]


async def test_a_proxy_that_ended_breaks_its_boxes_for_good_and_the_next_box_gets_another(
    backend: DockerBackend, engine: Engine, settings: DockerSettings, opened: Open
) -> None:
    broken = await opened()
    (proxy,) = await proxies(engine, settings)
    await asyncio.to_thread(docker, "kill", proxy)
    next_one = await opened()
    assert await works(next_one)
    assert not await works(broken)
    with pytest.raises(SandboxLost, match="network broke"):
        await backend.cut(broken.id)
    assert await backend.cut(next_one.id)


async def test_a_box_whose_wire_somebody_removed_is_lost_not_without_a_network(
    backend: DockerBackend, opened: Open, engine: Engine
) -> None:
    """Its namespace lives on with the box, and so does the wire: nobody can say what went over it."""
    box = await opened()
    holder = await engine.inspect(f"tiltyard-{box.id}-net")
    assert holder is not None
    await engine.remove(holder.id)
    with pytest.raises(SandboxLost, match="network broke"):
        await backend.cut(box.id)
    await backend.destroy(box.id)
    await backend.tidy()


async def test_a_wire_without_a_box_is_found_and_removed(backend: DockerBackend, opened: Open, engine: Engine) -> None:
    """As a process leaves it that was killed between the two."""
    box = await opened()
    found = await engine.inspect(f"tiltyard-{box.id}")
    assert found is not None
    await engine.remove(found.id)
    assert box.id in [owned.id for owned in await backend.owned()]
    await backend.destroy(box.id)
    assert box.id not in [owned.id for owned in await backend.owned()]
    assert await engine.inspect(f"tiltyard-{box.id}-net") is None


async def test_a_proxy_that_a_killed_process_left_alone_is_ended_by_tidying(
    backend: DockerBackend, opened: Open, engine: Engine, settings: DockerSettings
) -> None:
    box = await opened()
    await backend.tidy()
    assert await works(box)
    for name in (f"tiltyard-{box.id}", f"tiltyard-{box.id}-net"):
        found = await engine.inspect(name)
        assert found is not None
        await engine.remove(found.id)
    assert await proxies(engine, settings)
    await backend.tidy()
    assert await proxies(engine, settings) == []


async def test_a_wire_that_cannot_be_made_leaves_no_proxy_and_takes_no_address(
    backend: DockerBackend, opened: Open, engine: Engine, settings: DockerSettings
) -> None:
    """Somebody else's container has the name that the box's wire would have."""
    taken = SandboxId("taken")
    await asyncio.to_thread(docker, "create", "--name", f"tiltyard-{taken}-net", PYTHON, "true")
    spec = SandboxSpec(image=PYTHON, template=None, limits=Limits(), network=LISTED)
    notes = settings.state_dir / "egress"
    try:
        with pytest.raises(StartFailed, match="already in use"):
            await backend.create(taken, spec, deadline=time.monotonic() + 90)
        assert await proxies(engine, settings) == []
        assert list(notes.glob("*")) == []
        box = await opened()
        before = sorted(notes.glob("*/notes/*"))
        with pytest.raises(StartFailed, match="already in use"):
            await backend.create(taken, spec, deadline=time.monotonic() + 90)
        assert sorted(notes.glob("*/notes/*")) == before
        assert await works(box)
    finally:
        await asyncio.to_thread(docker, "rm", "--force", f"tiltyard-{taken}-net")


async def test_boxes_that_come_at_once_share_a_proxy_and_have_addresses_of_their_own(
    backend: DockerBackend, opened: Open, engine: Engine, settings: DockerSettings
) -> None:
    boxes = await asyncio.gather(*(opened() for _ in range(3)))
    assert len(await proxies(engine, settings)) == 1
    assert await asyncio.gather(*map(works, boxes)) == [True] * 3
    wires = await engine.containers({"tiltyard.deployment": settings.deployment, "tiltyard.role": "egress-wire"})
    assert len({wire.labels["tiltyard.egress.number"] for wire in wires}) == len(wires) == 3


async def test_a_box_without_a_network_tried_nothing(backend: DockerBackend, opened: Open) -> None:
    box = await opened(Network())
    assert await backend.cut(box.id) == ()
    assert await backend.cut(SandboxId("never-made")) == ()


async def test_a_grading_box_is_refused_a_network(backend: DockerBackend) -> None:
    spec = SandboxSpec(image=PYTHON, template=None, limits=Limits(), network=LISTED, grader=True)
    with pytest.raises(Misconfigured, match="grading boxes have no network"):
        await backend.create(SandboxId("grader"), spec, deadline=time.monotonic() + 30)


async def test_a_network_that_the_engine_lacks_is_named(settings: DockerSettings, state_dir: Path) -> None:
    lacking = replace(settings, egress_network="no-such-net")
    async with DockerBackend(lacking, make_workspaces(state_dir, settings.deployment)) as backend:
        with pytest.raises(Misconfigured, match=r"no-such-net.*docker network create"):
            await backend.check_network()


async def test_proxies_make_their_own_way_out_and_take_it_away(
    settings: DockerSettings, state_dir: Path, engine: Engine
) -> None:
    own = replace(settings, egress_network="", egress_dns=(), deployment=f"{settings.deployment}-o")
    name = f"tiltyard-egress-{own.deployment}-test-boxes"
    async with DockerBackend(own, make_workspaces(state_dir, own.deployment)) as backend:
        spec = SandboxSpec(image=PYTHON, template=None, limits=Limits(), network=LISTED)
        box = await backend.create(SandboxId("own-way"), spec, deadline=time.monotonic() + 90)
        await box.aclose()
        assert await engine.has_network(name)
        await backend.destroy(SandboxId("own-way"))
        assert not await engine.has_network(name)


@pytest.mark.parametrize(
    ("name", "told"), [("host", "no network of the proxies"), ("none", "no network"), ("nosuch", "not have")]
)
async def test_a_way_out_that_is_none_or_the_machines_own_is_refused_before_anything_is_made(
    settings: DockerSettings, state_dir: Path, name: str, told: str
) -> None:
    """On `host` a proxy's firewall and wires would be the machine's. The other tests are served by a bridge."""
    wrong = replace(settings, egress_network=name)
    async with DockerBackend(wrong, make_workspaces(state_dir, wrong.deployment)) as backend:
        with pytest.raises(Misconfigured, match=told):
            await backend.check_network()


class Setup:
    def __init__(self, images: DockerImages, folder: Path) -> None:
        self.images, self.folder, self.tag = images, folder, f"tiltyard/{folder.name}:1"
        for place in ("tree", "upper", "work"):
            (folder / place).mkdir()

    async def run(self, command: str, listed: Network) -> str:
        return await self.images.run_setup(
            image=PYTHON,
            commands=(command,),
            tree=self.folder / "tree",
            upper=self.folder / "upper",
            tag=self.tag,
            network=listed,
            timeout_s=60,
        )


FETCH = "python3 -c \"import urllib.request as r; open('got','wb').write(r.urlopen('http://{}/', timeout=8).read())\""


async def test_set_up_commands_have_a_list_of_their_own(
    settings: DockerSettings, state_dir: Path, engine: Engine, internet: Internet
) -> None:
    async with DockerImages(settings) as images:
        folder = state_dir / "set-up"
        folder.mkdir()
        setup = Setup(images, folder)
        with pytest.raises(RepositoryError, match="failed with status"):
            await setup.run(FETCH.format("good.example"), Network())
        with pytest.raises(RepositoryError, match=r"setup_network refused them also\.example:80"):
            await setup.run(FETCH.format("also.example"), network(["good.example"]))
        image = await setup.run(FETCH.format("good.example"), network(["good.example"]))
        try:
            assert b"web saw" in (folder / "upper" / "got").read_bytes()
            made = await engine.image(image)
            assert made is not None
            assert not [name for name in made.environment if "proxy" in name.lower()]
            assert await images.sweep() == 0
            assert (
                await engine.containers({"tiltyard.deployment": settings.deployment, "tiltyard.egress.use": SETUP})
                == []
            )
        finally:
            await engine.remove_image(setup.tag)
