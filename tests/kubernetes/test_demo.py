"""The demo's rollouts as pods, on a machine without any engine."""

import asyncio
import sys
from pathlib import Path

import pytest

from tests.kubernetes.cluster import Cluster
from tests.kubernetes.rollouts import no_pods
from tests.needs import needs

pytestmark = [pytest.mark.anyio, needs("kubernetes", "root"), pytest.mark.cluster, pytest.mark.timeout(400)]


async def test_the_demo_needs_no_engine(cluster: Cluster, tmp_path: Path) -> None:
    env = {**cluster.env, "KUBECONFIG": str(cluster.kubeconfig), "DOCKER_HOST": "unix:///nowhere/docker.sock"}
    command = [sys.executable, "-m", "orchestrator.cli.main", "demo", "--backend", "kubernetes"]
    command += ["--deployment", "demo-pods", "--state-dir", str(tmp_path)]
    process = await asyncio.create_subprocess_exec(
        *command, env=env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await asyncio.wait_for(process.communicate(), 300)
    assert process.returncode == 0, said.decode()[-4000:]
    assert "12 rollouts, every reward as it must be, nothing left running" in said.decode()
    await no_pods(cluster)
