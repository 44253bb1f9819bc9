"""Boxes that are reached through the API server, from a host whose way to pods' addresses is shut."""

import asyncio
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.harness import MENDED
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.rollouts import a_call, no_pods, served, status_of, trainer
from tests.needs import needs

pytestmark = [pytest.mark.anyio, needs("kubernetes", "root"), pytest.mark.cluster, pytest.mark.timeout(200)]

RULE = ("OUTPUT", "-d", "10.244.0.0/16", "-p", "tcp", "--dport", "7070", "-j", "DROP")
"""Of table raw, which is asked first: the cluster's own rules let a node reach its pods."""


@contextmanager
def no_route_to_boxes() -> Iterator[None]:
    """As on a laptop."""
    subprocess.run(["iptables", "-t", "raw", "-I", *RULE], check=True)
    try:
        yield
    finally:
        subprocess.run(["iptables", "-t", "raw", "-D", *RULE], check=True)


async def test_a_laptop_reaches_its_boxes_through_the_api_server(cluster: Cluster, tmp_path: Path) -> None:
    if cluster.script is None:
        pytest.skip("only a throwaway cluster's way is shut")
    forwarded = {"TILTYARD_KUBE_PORT_FORWARD": "true"}
    with no_route_to_boxes():
        async with served(cluster, tmp_path, **forwarded) as server, trainer(server, "t-1") as one:
            assert await one.call("c1", "shell", command="seq 3") == "1\n2\n3\n"
            large = "x" * 60_000
            await one.call("c2", "write_file", path="large", content=large)
            assert "60000" in await one.call("c3", "shell", command="wc -c < large")
            together = [one.call(f"d{number}", "shell", command=f"echo {number}") for number in range(8)]
            assert await asyncio.gather(*together) == [f"{number}\n" for number in range(8)]
            await server.kill()
            await server.start()
            assert "60000" in await one.call("c4", "shell", command="wc -c < large")
            await one.call("c5", "write_file", path="calc.py", content=MENDED)
            assert await one.grade() == 1.0
        await no_pods(cluster)


async def test_the_way_is_shut_indeed(cluster: Cluster, tmp_path: Path) -> None:
    if cluster.script is None:
        pytest.skip("only a throwaway cluster's way is shut")
    with no_route_to_boxes():
        async with served(cluster, tmp_path, TILTYARD_KUBE_START_S="10") as server:
            status, text = await status_of(server, "/tools", a_call("t-1", "true"))
            assert status >= 500
            assert "TILTYARD_KUBE_PORT_FORWARD" in text, text
