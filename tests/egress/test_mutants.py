"""The refusals of test_reach.py can fail: each layer weakened by hand, and both together let a box through to this machine."""

import asyncio
from pathlib import Path

import pytest

from orchestrator.backends.docker.backend import DockerBackend
from orchestrator.backends.docker.engine import Engine
from orchestrator.backends.docker.settings import DockerSettings
from orchestrator.backends.docker.spec import Body, BoxPlan, container_spec
from orchestrator.egress.names import network
from orchestrator.repos.workspace import make_workspaces
from tests.egress.conftest import Open, Prober, open_box
from tests.egress.internet import Internet, docker
from tests.egress.servers import host_servers
from tests.hosts.world import until_true
from tests.needs import needs

pytestmark = [pytest.mark.anyio, needs("docker", "root")]

LIST = network(["good.example", "host.bad.example"])


async def in_namespace(engine: Engine, container: str, *command: str) -> None:
    namespace = await engine.namespace(container)
    process = await asyncio.create_subprocess_exec("nsenter", f"--net={namespace}", *command)
    assert await process.wait() == 0


async def reaches_this_machine(box: Prober) -> str:
    return await box.tries("http", "http://host.bad.example/")


async def test_C20_either_layer_holds_alone_and_neither_lets_a_box_through(
    internet: Internet, settings: DockerSettings, opened: Open, engine: Engine
) -> None:
    async with host_servers(internet):
        box = await opened(LIST)
        mine = {"tiltyard.deployment": settings.deployment, "tiltyard.role": "egress"}
        (proxy,) = await engine.containers(mine)
        assert "ERR_ACCESS_DENIED" in await reaches_this_machine(box)

        conf = settings.state_dir / "egress" / proxy.labels["tiltyard.egress.proxy"] / "conf" / "squid.conf"
        await asyncio.to_thread(conf.write_text, _without_addresses(conf))
        await asyncio.to_thread(docker, "exec", proxy.id, "sh", "-c", "kill -HUP $(pidof squid)")

        async def forgot() -> bool:
            return "ERR_ACCESS_DENIED" not in await reaches_this_machine(box)

        await until_true(forgot)
        assert (await reaches_this_machine(box)).startswith("got 503")  # the firewall alone
        await in_namespace(engine, proxy.id, "iptables", "--policy", "OUTPUT", "ACCEPT")
        await in_namespace(engine, proxy.id, "iptables", "--flush", "OUTPUT")
        assert "host saw" in await reaches_this_machine(box)  # neither


def _without_addresses(conf: Path) -> str:
    lines = conf.read_text().splitlines()
    return "\n".join(line.replace(" !refused", "") for line in lines if "http_access deny refused" not in line) + "\n"


def on_the_internet(internet: Internet, plan: BoxPlan) -> Body:
    """A box on the engine's network itself, as if a name of it had been taken for a wire."""
    body = container_spec(plan)
    host_config = body["HostConfig"]
    assert isinstance(host_config, dict)
    host_config["NetworkMode"] = internet.name
    return body


async def test_C20_a_box_with_another_way_out_is_seen(
    internet: Internet, settings: DockerSettings, state_dir: Path
) -> None:
    """What test_reach.py takes for unreachable is reached here by the same probes."""
    workspaces = make_workspaces(state_dir, settings.deployment)
    async with (
        host_servers(internet) as port,
        DockerBackend(settings, workspaces, body=lambda plan: on_the_internet(internet, plan)) as backend,
    ):
        box = await open_box(backend, LIST)
        try:
            assert (await box.tries("tcp", internet.web, "80")).startswith("got connected")
            assert (await box.tries("tcp", internet.gateway, str(port))).startswith("got connected")
            assert (await box.tries("udp", internet.dns, "53")).startswith("got answered")
            routes = (await box.box.text("cat /proc/net/route")).splitlines()[1:]
            assert len(routes) > 1
        finally:
            await box.box.sandbox.aclose()
            await backend.destroy(box.id)
