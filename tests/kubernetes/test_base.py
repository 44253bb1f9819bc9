"""k8s/base on a real cluster: what a host may and may not ask, what the boxes' namespace lets in, and who reaches a box's agent."""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from orchestrator.backends.kubernetes.check import BOXES_RIGHTS
from tests.kubernetes.cluster import NAMESPACE, ROOT, Cluster
from tests.kubernetes.conftest import left_of_a_cluster
from tests.needs import needs

pytestmark = [needs("kubernetes", "root"), pytest.mark.cluster, pytest.mark.timeout(240)]

HOST = "system:serviceaccount:tiltyard:tiltyard-host"
IMAGE = "tiltyard/python:3.11"


def test_a_cluster_that_stands_would_be_found_as_left_behind(cluster: Cluster) -> None:
    """The control of what is looked for when it was taken down."""
    if cluster.script is None:
        pytest.skip("not ours to take down")
    with running(cluster, "box", NAMESPACE, {}):
        left = "\n".join(left_of_a_cluster())
    for word in ("process ", "throwaway-node-1", "kubehost0", "KUBE-", "overlay /"):
        assert word in left


# ---- rights


def may(cluster: Cluster, *asked: str, namespace: str = NAMESPACE) -> bool:
    verb, resource = asked
    kind, _, part = resource.partition("/")
    question = ("auth", "can-i", verb, kind, f"--subresource={part}", "-n", namespace, "--as", HOST)
    return cluster.kubectl(*question, check=False).strip() == "yes"


def test_a_host_may_do_what_it_must(cluster: Cluster) -> None:
    asked = [(right.verb, right.resource) for right in BOXES_RIGHTS]
    asked += [
        ("create", "pods/portforward"),
        ("list", "resourcequotas"),
        ("list", "networkpolicies"),
        ("list", "nodes"),
    ]
    assert [each for each in asked if not may(cluster, *each)] == []


def test_a_host_may_do_nothing_else(cluster: Cluster) -> None:
    beyond = [
        ("create", "pods/exec"),
        ("create", "pods/attach"),
        ("update", "pods/ephemeralcontainers"),
        ("deletecollection", "pods"),
        ("get", "secrets"),
        ("list", "secrets"),
        ("create", "serviceaccounts/token"),
        ("create", "rolebindings"),
        ("update", "networkpolicies"),
        ("delete", "networkpolicies"),
        ("patch", "resourcequotas"),
        ("create", "services"),
        ("patch", "nodes"),
        ("patch", "namespaces"),
        ("list", "namespaces"),
        ("impersonate", "users"),
    ]
    assert [each for each in beyond if may(cluster, *each)] == []
    for namespace in ("default", "kube-system", "tiltyard"):
        assert not may(cluster, "list", "pods", namespace=namespace)
        assert not may(cluster, "create", "pods", namespace=namespace)


# ---- what the namespace lets in


def a_pod(name: str = "p", labels: dict[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    container = {"name": "c", "image": IMAGE, "imagePullPolicy": "IfNotPresent", **spec.pop("container", {})}
    whole = {"containers": [container], "restartPolicy": "Never", "terminationGracePeriodSeconds": 0, **spec}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels or {}}, "spec": whole}


def admitted(cluster: Cluster, thing: dict[str, Any]) -> dict[str, Any]:
    """As the API server would store it; empty where it refuses."""
    asked = ["create", "-n", NAMESPACE, "--dry-run=server", "-o", "json", "-f", "-"]
    return dict(json.loads(cluster.kubectl(*asked, stdin=json.dumps(thing), check=False) or "{}"))


REFUSED: dict[str, dict[str, Any]] = {
    "privileged": a_pod(container={"securityContext": {"privileged": True}}),
    "capability": a_pod(container={"securityContext": {"capabilities": {"add": ["SYS_ADMIN"]}}}),
    "host network": a_pod(hostNetwork=True),
    "host pids": a_pod(hostPID=True),
    "host path": a_pod(volumes=[{"name": "v", "hostPath": {"path": "/"}}]),
    "too large": a_pod(container={"resources": {"limits": {"memory": "65Gi"}}}),
    "service": {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}]}},
    "volume claim": {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "v"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}},
    },
}


@pytest.mark.parametrize("thing", REFUSED.values(), ids=REFUSED.keys())
def test_what_no_box_is_gets_in(cluster: Cluster, thing: dict[str, Any]) -> None:
    assert admitted(cluster, a_pod()), "the control"
    assert not admitted(cluster, thing)


def test_a_pod_that_forgets_its_limits_and_its_token_has_the_namespaces(cluster: Cluster) -> None:
    stored = admitted(cluster, a_pod())["spec"]
    resources = stored["containers"][0]["resources"]
    assert resources["limits"] == resources["requests"] == {"cpu": "1", "memory": "1Gi", "ephemeral-storage": "2Gi"}
    assert "volumes" not in stored, "no service account's token"


def test_warm_boxes_give_way_and_nobody_is_pushed_out_for_a_box(cluster: Cluster) -> None:
    classes = {item["metadata"]["name"]: item for item in _items(cluster, "priorityclasses")}
    warm, box = classes["tiltyard-warm"], classes["tiltyard-box"]
    assert warm["value"] < 0 < box["value"]
    assert {warm["preemptionPolicy"], box["preemptionPolicy"]} == {"Never"}
    assert not any(item.get("globalDefault") for item in (warm, box))


def _items(cluster: Cluster, kind: str) -> list[dict[str, Any]]:
    return list(json.loads(cluster.kubectl("get", kind, "-o", "json"))["items"])


# ---- overlays and components


def rendered(cluster: Cluster, folder: Path, **kustomization: object) -> list[dict[str, Any]]:
    """As a user's own kustomization beside ours makes it, and as the API server would take it."""
    folder.joinpath("kustomization.yaml").write_text(json.dumps(kustomization))
    out = cluster.kubectl("apply", "-k", str(folder), "--dry-run=server", "-o", "json")
    return list(json.loads(out)["items"])


def ours(folder: Path, name: str) -> str:
    return os.path.relpath(ROOT / "k8s" / name, folder)


def test_the_restricted_overlay_asks_for_restricted(cluster: Cluster, tmp_path: Path) -> None:
    items = rendered(cluster, tmp_path, resources=[ours(tmp_path, "overlays/restricted")])
    (namespace,) = [item for item in items if item["metadata"]["name"] == NAMESPACE]
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_components_go_with_the_base(cluster: Cluster, tmp_path: Path) -> None:
    components = [ours(tmp_path, f"components/{name}") for name in ("gvisor", "hosts-outside")]
    items = rendered(cluster, tmp_path, resources=[ours(tmp_path, "base")], components=components)
    assert {"gvisor", "hosts-outside-to-agents"} <= {item["metadata"]["name"] for item in items}


# ---- who reaches a box

LISTEN = """
import socket, threading, time
def serve(port):
    server = socket.create_server(("0.0.0.0", port))
    while True:
        server.accept()[0].close()
for port in (7070, 8000):
    threading.Thread(target=serve, args=(port,), daemon=True).start()
time.sleep(600)
"""
DIAL = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), 2).close()
    print("connected")
except OSError as error:
    print(error)
"""
AS_A_HOST = {"app.kubernetes.io/name": "tiltyard-host"}
PEOPLE = {
    "host": ("tiltyard", AS_A_HOST),
    "no-host": ("tiltyard", {}),
    "other": ("default", AS_A_HOST),
    "neighbour": (NAMESPACE, AS_A_HOST | {"tiltyard.dev/role": "box"}),
}


@contextmanager
def running(cluster: Cluster, name: str, namespace: str, labels: dict[str, str]) -> Iterator[str]:
    """The address of a pod of ours in which one can dial."""
    small = {"cpu": "50m", "memory": "64Mi"}
    container = {"command": ["python3", "-c", LISTEN], "resources": {"limits": small, "requests": small}}
    pod = a_pod(f"base-{name}", labels, container=container, automountServiceAccountToken=False)
    cluster.kubectl("apply", "-n", namespace, "-f", "-", stdin=json.dumps(pod))
    try:
        cluster.kubectl("wait", "-n", namespace, "--for=condition=Ready", f"pod/base-{name}", "--timeout=90s")
        yield cluster.kubectl("get", "pod", f"base-{name}", "-n", namespace, "-o", "jsonpath={.status.podIP}")
    finally:
        cluster.kubectl("delete", "pod", f"base-{name}", "-n", namespace, "--grace-period=0", "--force")


def reaches(cluster: Cluster, name: str, address: str, port: int) -> bool:
    call = ("exec", "-n", PEOPLE[name][0], f"base-{name}", "--", "python3", "-c", DIAL, address, str(port))
    return cluster.kubectl(*call).strip() == "connected"


def soon(cluster: Cluster, name: str, address: str, *, yes: bool) -> bool:
    """Whether it comes to that: rules follow pods and policies after a moment."""
    deadline = time.monotonic() + 30
    while reaches(cluster, name, address, 7070) != yes:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)
    return True


def test_hosts_alone_reach_a_box_at_its_agents_port_alone(cluster: Cluster) -> None:
    """The control for each refusal is the same pod's listener, asked by a pod of the host's name and namespace, or another pod by it."""
    with ExitStack() as stack:
        at = {name: stack.enter_context(running(cluster, name, *whose)) for name, whose in PEOPLE.items()}
        box = stack.enter_context(running(cluster, "box", NAMESPACE, {"tiltyard.dev/role": "box"}))
        assert soon(cluster, "host", box, yes=True)
        met = {name: [reaches(cluster, name, box, port) for port in (7070, 8000)] for name in PEOPLE}
        assert met == {name: [name == "host", False] for name in PEOPLE}
        assert reaches(cluster, "host", at["other"], 8000)
        assert not reaches(cluster, "neighbour", at["other"], 8000), "a box calls nobody"
        with opened_to(cluster, at["other"]):
            assert soon(cluster, "other", box, yes=True)
            assert not reaches(cluster, "other", box, 8000)
            assert not reaches(cluster, "no-host", box, 7070)
        assert soon(cluster, "other", box, yes=False)


@contextmanager
def opened_to(cluster: Cluster, address: str) -> Iterator[None]:
    """The component for hosts outside, patched as its comment says."""
    policy = (ROOT / "k8s" / "components" / "hosts-outside" / "network.yaml").read_text()
    patched = policy.replace("192.0.2.0/32", f"{address}/32")
    assert patched != policy
    cluster.kubectl("apply", "-f", "-", stdin=patched)
    try:
        yield
    finally:
        cluster.kubectl("delete", "networkpolicy", "hosts-outside-to-agents", "-n", NAMESPACE)


def test_a_process_on_the_node_reaches_its_pods_whatever_policies_say(cluster: Cluster) -> None:
    """What serving from a node rests on; somebody's own cluster need not have us on a node of it."""
    if cluster.script is None:
        pytest.skip("this machine is no node of that cluster")
    with running(cluster, "box", NAMESPACE, {"tiltyard.dev/role": "box"}) as box:
        time.sleep(3.0)  # rules have followed by then
        socket.create_connection((box, 7070), 5).close()
