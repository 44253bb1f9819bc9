"""One cluster for all tests of this folder, and backends over it under a host's own rights."""

import os
import secrets
import shutil
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
    with started() as made:
        os.environ["KUBECONFIG"] = str(made.kubeconfig)
        yield made
        del os.environ["KUBECONFIG"]


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
