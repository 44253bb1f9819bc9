"""One cluster for all tests of this folder, and backends over it under a host's own rights."""

import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from orchestrator.backends.kubernetes.backend import KubernetesBackend
from orchestrator.backends.kubernetes.settings import KubernetesSettings
from tests.kubernetes.cluster import Cluster, started


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    with pytest.MonkeyPatch.context() as patch:
        with started() as made:
            patch.setenv("KUBECONFIG", str(made.kubeconfig))
            yield made
        if made.script is not None:
            assert left_of_a_cluster() == []


def left_of_a_cluster() -> list[str]:
    """What a throwaway cluster that was taken down has left on this machine: folders, processes, mounts, cgroups, links, rules, sets."""
    places = [os.environ.get("KUBE_DIR", "/var/lib/throwaway-kube"), os.environ.get("KUBE_RUN", "/run/throwaway-kube")]
    left = [place for place in places if Path(place).exists()]
    left += [
        f"process {line}" for line in _told("ps", "-eo", "pid,args") if any(f"{place}/" in line for place in places)
    ]
    left += [line for line in Path("/proc/mounts").read_text().splitlines() if any(place in line for place in places)]
    left += [str(path) for path in Path("/sys/fs/cgroup").glob("*/throwaway-node-*")]
    left += [line for line in _told("ip", "-br", "link") if line.startswith(("kubepods", "kubehost"))]
    left += [line for line in _told("iptables-save") if "KUBE-" in line or "10.244." in line]
    left += [line for line in _told("ipset", "list", "-n") if line.startswith(("KUBE", "kube-router"))]
    return left


def _told(*command: str) -> list[str]:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.splitlines()


@asynccontextmanager
async def backend_over(**changes: object) -> AsyncIterator[KubernetesBackend]:
    """In a deployment of its own; whatever is left of it goes with its own object."""
    deployment = f"test-{secrets.token_hex(3)}"
    folder = Path(tempfile.mkdtemp(prefix="ty-"))
    settings = KubernetesSettings(
        deployment=deployment,
        host_id="test",
        state_dir=folder,
        memory_limit_mib=8192,
        **changes,  # type: ignore[arg-type]
    )
    try:
        async with KubernetesBackend(settings) as backend:
            try:
                yield backend
            finally:
                for box in await backend.owned():
                    await backend.destroy(box.id)
    finally:
        shutil.rmtree(folder)
