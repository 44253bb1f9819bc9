"""The same wires under gVisor: it reads the interface when the box starts, and carries it in its own network stack."""

import asyncio

import pytest

from orchestrator.backends.docker.backend import DockerBackend
from tests.egress.conftest import Open, Prober
from tests.egress.internet import Internet
from tests.egress.servers import host_servers
from tests.needs import needs

pytestmark = [
    pytest.mark.anyio,
    needs("docker", "root", "runsc"),
    pytest.mark.parametrize("settings", ["runsc"], indirect=True),
]

GATE = "100.127.0.1"


async def test_C20_listed_names_are_reached_and_nothing_else_until_the_cut(
    backend: DockerBackend, opened: Open, internet: Internet
) -> None:
    box = await opened()
    assert "gVisor" in await box.box.text("dmesg")
    assert (await box.tries("http", "http://good.example/")).startswith("got 200 web saw")
    assert "web saw: hello" in await box.tries("connect", "a.wild.example:443")
    assert (await box.tries("name", "good.example")).strip() == f"got {GATE}"
    assert (await box.tries("name", "evil.example")).startswith("failed")
    for url in (
        "http://evil.example/",
        "http://meta.bad.example/",
        "http://host.bad.example/",
        "http://169.254.169.254/",
    ):
        assert (await box.tries("http", url)).startswith("got 403")
    async with host_servers(internet) as port:
        targets = [(internet.web, 80), (internet.gateway, port), (internet.gateway, 80), (GATE, port), ("8.8.8.8", 53)]
        await fail(box, [(kind, host, str(reached)) for host, reached in targets for kind in ("tcp", "udp")])
    told = {(each.host, each.port, each.allowed) for each in await backend.cut(box.id)}
    assert told >= {("good.example", 80, True), ("evil.example", 80, False), ("169.254.169.254", 80, False)}
    await fail(
        box, [("tcp", GATE, "3128"), ("udp", GATE, "53"), ("raw", "GET http://good.example/ HTTP/1.0\\r\\n\\r\\n")]
    )


async def fail(box: Prober, probes: list[tuple[str, ...]]) -> None:
    found = await asyncio.gather(*(box.tries(*probe) for probe in probes))
    assert [each for each in found if not each.startswith("failed")] == []
