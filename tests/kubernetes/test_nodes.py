"""Nodes that are drained, lost, wanted by others, or full: with live rollouts mid-call."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.harness import MENDED
from tests.kubernetes.cluster import Cluster, load_images
from tests.kubernetes.rollouts import a_call, is_lost_and_never_scored, no_pods, pod_of, served, status_of, trainer
from tests.needs import needs

pytestmark = [pytest.mark.anyio, needs("kubernetes", "root"), pytest.mark.cluster, pytest.mark.timeout(300)]

URGENT = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "urgent", "namespace": "kube-system"},
    "spec": {
        "priorityClassName": "system-cluster-critical",
        "nodeSelector": {"kubernetes.io/hostname": "node-2"},
        "terminationGracePeriodSeconds": 0,
        "containers": [
            {
                "name": "c",
                "image": "tiltyard/busybox:bookworm",
                "imagePullPolicy": "Never",
                "command": ["sleep", "600"],
                "resources": {"requests": {"cpu": "1900m"}},
            }
        ],
    },
}


@pytest.fixture(scope="module")
def second(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The cluster with a second node."""
    if cluster.script is None:
        pytest.skip("only a throwaway cluster gets another node")
    cluster.run("up", nodes=2)
    load_images(cluster, tmp_path_factory.mktemp("images"), nodes=2)
    yield cluster
    cluster.run("lose", "2", nodes=2)
    cluster.kubectl("delete", "node", "node-2")


@pytest.fixture
def only_second(second: Cluster) -> Iterator[Cluster]:
    """Where new pods go to the second node."""
    second.run("up", nodes=2)
    second.kubectl("uncordon", "node-2")
    second.kubectl("cordon", "node-1")
    yield second
    second.kubectl("uncordon", "node-1")


@pytest.mark.parametrize("how", ["drained", "preempted", "lost"])
async def test_a_box_whose_node_goes_is_lost_and_never_scored(only_second: Cluster, tmp_path: Path, how: str) -> None:
    cluster = only_second
    async with served(cluster, tmp_path) as server, trainer(server, "t-1") as one:
        await one.call("c1", "shell", command="true")
        assert "node-2" in cluster.kubectl("get", "pod", pod_of(cluster), "-n", "tiltyard-sandboxes", "-o", "wide")
        calling = asyncio.create_task(status_of(server, "/tools", a_call("t-1", "sleep 200")))
        await asyncio.sleep(1.0)
        cluster.kubectl("uncordon", "node-1")
        if how == "drained":
            options = ("--force", "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=60s")
            await asyncio.to_thread(cluster.kubectl, "drain", "node-2", *options)
        elif how == "preempted":
            cluster.kubectl("create", "-f", "-", stdin=json.dumps(URGENT))
        else:
            cluster.run("lose", "2", nodes=2)
        try:
            await is_lost_and_never_scored(server, "t-1", calling, within_s=150)
            async with trainer(server, "t-2") as two:
                await two.call("c1", "write_file", path="calc.py", content=MENDED)
                assert await two.grade() == 1.0, "on the other node"
        finally:
            cluster.kubectl("delete", "pod", "urgent", "-n", "kube-system", "--ignore-not-found", "--wait=false")
        await no_pods(cluster)


async def test_a_burst_beyond_the_cluster_is_served_or_told_and_then_served(second: Cluster, tmp_path: Path) -> None:
    """Eight at once, each with a processor of its own, where there are four: nobody is half made, and whoever was refused is served on his retry."""
    second.run("up", nodes=2)
    second.kubectl("uncordon", "node-2")
    limits = {"memory_mib": 128, "disk_mib": 64, "pids": 64, "cpus": 0.9}
    traces = [f"t-{number}" for number in range(8)]
    async with served(second, tmp_path, limits=limits, TILTYARD_KUBE_START_S="6") as server:
        asked = [status_of(server, "/tools", a_call(trace, "echo here", task="calc-files")) for trace in traces]
        answers = dict(zip(traces, await asyncio.gather(*asked), strict=True))
        served_first = {trace for trace, (status, _) in answers.items() if status == 200}
        assert 2 <= len(served_first) < 8, answers
        for trace in traces:
            status, text = answers[trace]
            assert status == 200 or (status in (500, 503) and "room" in text), text
        waiting = [trace for trace in traces if trace not in served_first]
        for trace in [*served_first, *waiting]:
            async with trainer(server, trace, "calc-files") as one:
                await one.call("c-2", "shell", command="echo again")
                assert 0.0 <= await one.grade() <= 1.0
        await no_pods(second)
