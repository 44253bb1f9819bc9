"""A task's repository inside of its image: made over HTTP, pulled by a node, and the same to a rollout as one that is streamed."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.harness import MENDED
from tests.kubernetes.cluster import NAMESPACE, Cluster
from tests.kubernetes.registry_server import registry_server
from tests.kubernetes.rollouts import no_pods, pod_of, served, trainer
from tests.needs import needs

pytestmark = [
    pytest.mark.anyio,
    needs("kubernetes", "docker-registry", "root"),
    pytest.mark.cluster,
    pytest.mark.timeout(200),
]

BASE = "tiltyard/python:3.11"


@contextmanager
def registry_with_base() -> Iterator[str]:
    """Its address; a throwaway cluster's nodes share this machine's loopback."""
    with registry_server() as address:
        name = f"{address}/{BASE}"
        subprocess.run(["docker", "tag", BASE, name], check=True)
        try:
            subprocess.run(["docker", "push", "-q", name], check=True, capture_output=True)
        finally:
            subprocess.run(["docker", "rmi", name], check=True, capture_output=True)
        yield address


async def test_a_rollout_over_a_task_image(cluster: Cluster, tmp_path: Path) -> None:
    if cluster.script is None:
        pytest.skip("the registry is on this machine's loopback, where only a throwaway cluster's nodes are")
    with registry_with_base() as address:
        env = {"TILTYARD_KUBE_TASK_IMAGES": f"{address}/tasks"}
        async with served(cluster, tmp_path, image=f"{address}/{BASE}", **env) as server, trainer(server, "t-1") as one:
            assert await one.call("c1", "shell", command="git status --short; git log --oneline | wc -l") == "1\n"
            found = json.loads(cluster.kubectl("get", "pod", pod_of(cluster), "-n", NAMESPACE, "-o", "json"))
            image = found["spec"]["containers"][0]["image"]
            assert image.startswith(f"{address}/tasks@sha256:"), image
            own = '[ "$(stat -c %u calc.py)" = "$(id -u)" ] && echo own'
            assert await one.call("c2", "shell", command=own) == "own\n"
            await one.call("c3", "write_file", path="calc.py", content=MENDED)
            assert await one.grade() == 1.0
        await no_pods(cluster)
