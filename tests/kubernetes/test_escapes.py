"""Ways out of a pod, each tried from inside; the control is a pod of another namespace, which no policy holds."""

import asyncio
import json
import time

import pytest

from orchestrator.agent.binary import probe_binary
from orchestrator.backends.kubernetes.trial import dial
from orchestrator.interfaces import SandboxSpec
from orchestrator.models import Epoch, JobId, Limits, RolloutKey, SandboxId, TraceId
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.conftest import backend_over
from tests.kubernetes.rollouts import run
from tests.needs import needs

pytestmark = [pytest.mark.anyio, needs("kubernetes", "root"), pytest.mark.cluster, pytest.mark.timeout(240)]

SPEC = SandboxSpec(image="tiltyard/python:3.11", template=None, limits=Limits(memory_mib=128, cpus=0.1))
CONTROL = """
import socket, sys
for target in sys.argv[1:]:
    host, port = target.split()
    try:
        socket.create_connection((host, int(port)), 3).close()
        print(target, "connected", sep="\\t")
    except OSError as error:
        print(target, type(error).__name__, sep="\\t")
"""


def reachable(cluster: Cluster, targets: list[str]) -> list[str]:
    """Of `targets`, what a pod that no policy holds connects to."""
    container = {"name": "c", "image": SPEC.image, "imagePullPolicy": "IfNotPresent"}
    container |= {"command": ["python3", "-c", CONTROL, *targets]}
    spec = {"containers": [container], "restartPolicy": "Never", "automountServiceAccountToken": False}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "control"}, "spec": spec}
    cluster.kubectl("apply", "-n", "default", "-f", "-", stdin=json.dumps(pod))
    try:
        deadline = time.monotonic() + 90
        while "Succeeded" not in cluster.kubectl(
            "get", "pod", "control", "-n", "default", "-o", "jsonpath={.status.phase}"
        ):
            assert time.monotonic() < deadline, cluster.kubectl("describe", "pod", "control", "-n", "default")
            time.sleep(0.5)
        lines = cluster.kubectl("logs", "control", "-n", "default").splitlines()
    finally:
        cluster.kubectl("delete", "pod", "control", "-n", "default", "--grace-period=0", "--force")
    return [target for target, _, met in (line.partition("\t") for line in lines) if met == "connected"]


async def test_no_address_leads_out(cluster: Cluster) -> None:
    async with backend_over() as backend:
        boxes = {}
        for name in ("e-1", "e-2"):
            box = await backend.create(SandboxId(name), SPEC, deadline=time.monotonic() + 90)
            await box.lease(RolloutKey(job=JobId("escape"), trace_id=TraceId(name)), Epoch(1))
            boxes[name] = box
        neighbour = next(pod.ip for pod in backend.informer.pods.values() if pod.sandbox == "e-2")
        config = json.loads(cluster.kubectl("config", "view", "--minify", "-o", "json"))
        host, _, port = config["clusters"][0]["cluster"]["server"].partition("//")[2].rpartition(":")
        path = "jsonpath={.items[0].status.daemonEndpoints.kubeletEndpoint.Port}"
        kubelet = cluster.kubectl("get", "nodes", "-o", path)
        known = {
            "the API server": f"{host} {port}",
            "its service": "10.96.0.1 443",
            "the kubelet": f"{host} {kubelet}",
        }
        if (
            cluster.script is None
        ):  # a throwaway cluster's DNS is an address of the node itself, which its policies let through
            known["DNS"] = "10.96.0.10 53"
        control = await asyncio.to_thread(reachable, cluster, list(known.values()))
        assert set(control) >= {known["the API server"], known["the kubelet"]}, "the control reaches them"
        targets = [*known.values(), f"{neighbour} 7070", "169.254.169.254 80", "1.1.1.1 443"]
        met = await dial(boxes["e-1"], probe_binary(), targets)
        assert set(met) == set(targets)
        assert [target for target in targets if met[target] == "connected"] == []
        for name in boxes:
            await backend.destroy(SandboxId(name))


async def test_nothing_of_the_cluster_lies_in_a_box(cluster: Cluster) -> None:
    """No token, no names of services, no node's file that can be written; the control is what is mounted on purpose."""
    async with backend_over() as backend:
        box = await backend.create(SandboxId("e-3"), SPEC, deadline=time.monotonic() + 90)
        await box.lease(RolloutKey(job=JobId("escape"), trace_id=TraceId("t")), Epoch(1))
        assert await run(box, "a", "ls /var/run/secrets /run/secrets 2>/dev/null | wc -l") == "0\n"
        assert "KUBERNETES" not in await run(box, "b", "env")
        assert await run(box, "c", "cat /etc/resolv.conf | grep -v '^#'") == "nameserver 127.0.0.1\n"
        mounts = await run(box, "d", "awk '$4 ~ /^rw/ && $2 !~ \"^/(proc|sys|dev)\" {print $2}' /proc/mounts | sort")
        ours = ["/home/agent", "/run/tiltyard", "/run/tiltyard/private/last-words", "/tmp", "/workspace"]
        assert mounts.split() == sorted(["/etc/hosts", *ours])
        assert "denied" in await run(box, "f", "(echo 1.2.3.4 x >> /etc/hosts) 2>&1 || true")
        words = "echo x > /run/tiltyard/private/last-words; python3 -c 'import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW)'"
        refused = await run(box, "e", f"({words}) 2>&1 || true")
        assert "Permission denied" in refused
        assert "Error" in refused
        await backend.destroy(SandboxId("e-3"))
