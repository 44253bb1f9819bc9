"""A server that is itself a pod, under its service account: no kubeconfig, and in the way of every policy."""

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.harness import MENDED, make_repository, task_rows
from tests.kubernetes.cluster import ROOT, Cluster
from tests.kubernetes.rollouts import SMALL, a_call, a_grade, no_pods
from tests.needs import needs

pytestmark = [pytest.mark.anyio, needs("kubernetes", "root"), pytest.mark.cluster, pytest.mark.timeout(240)]

POST = """
import sys, urllib.request
request = urllib.request.Request("http://localhost:8080" + sys.argv[1], sys.argv[2].encode(), {"content-type": "application/json"})
print(urllib.request.urlopen(request, timeout=120).read().decode())
"""


def host(data: Path) -> dict[str, Any]:
    """Of the checkout as it is: a throwaway cluster's nodes share this machine's disk."""
    command = [str(ROOT / ".venv/bin/python"), "-m", "orchestrator.cli.main", "serve", "--backend", "kubernetes"]
    command += ["--tasks", str(data / "tasks.jsonl"), "--insecure-loopback"]
    shared = {"checkout": ROOT, "data": data}
    env = {
        "TILTYARD_STATE_DIR": "/state",
        "TILTYARD_DEPLOYMENT": "inside",
        "TILTYARD_KUBE_WARM_BOXES": "1",
        "HOME": "/state",
    }
    container = {
        "name": "host",
        "image": "tiltyard/python:3.11",
        "imagePullPolicy": "Never",
        "command": command,
        "workingDir": "/state",
        "env": [{"name": name, "value": value} for name, value in env.items()],
        "volumeMounts": [
            {"name": "state", "mountPath": "/state"},
            *({"name": name, "mountPath": str(path), "readOnly": True} for name, path in shared.items()),
        ],
    }
    volumes = [{"name": name, "hostPath": {"path": str(path)}} for name, path in shared.items()]
    spec = {"serviceAccountName": "tiltyard-host", "restartPolicy": "Never", "containers": [container]}
    metadata = {"name": "host", "namespace": "tiltyard", "labels": {"app.kubernetes.io/name": "tiltyard-host"}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {**spec, "volumes": [{"name": "state", "emptyDir": {}}, *volumes]},
    }


@pytest.fixture
def inside(cluster: Cluster, tmp_path: Path) -> Iterator[Cluster]:
    if cluster.script is None:
        pytest.skip("the checkout is on a throwaway cluster's nodes alone")
    commit = make_repository(tmp_path / "repo")
    rows = task_rows(tmp_path / "repo", commit, limits=SMALL)
    (tmp_path / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    cluster.kubectl("apply", "-f", "-", stdin=json.dumps(host(tmp_path)))
    try:
        deadline = time.monotonic() + 90
        while "serving on" not in cluster.kubectl("logs", "host", "-n", "tiltyard", check=False):
            assert time.monotonic() < deadline, cluster.kubectl("logs", "host", "-n", "tiltyard", check=False)
            time.sleep(0.5)
        yield cluster
    finally:
        cluster.kubectl("delete", "pod", "host", "-n", "tiltyard", "--timeout=60s", "--ignore-not-found")


async def test_a_rollout_of_a_server_in_the_cluster(inside: Cluster) -> None:
    async def post(path: str, body: dict[str, object]) -> dict[str, Any]:
        command = ("exec", "-n", "tiltyard", "host", "--", "python3", "-c", POST, path, json.dumps(body))
        answer: dict[str, Any] = json.loads(await asyncio.to_thread(inside.kubectl, *command))
        return answer

    command = f"cat > calc.py <<'END'\n{MENDED}\nEND\necho mended"
    assert (await post("/tools", a_call("t-1", command)))["output"] == "mended\n"
    assert await post("/grade", a_grade("t-1")) == {"score": 1.0}
    inside.kubectl("delete", "pod", "host", "-n", "tiltyard", "--timeout=60s", "--ignore-not-found")
    await no_pods(inside)
