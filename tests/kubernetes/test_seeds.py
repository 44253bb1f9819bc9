"""How a template comes into a pod that does not see this machine's disk."""

import io
import tarfile
import time
from pathlib import Path
from typing import Any, BinaryIO, cast

import pytest

from orchestrator.agent.client import AgentClient
from orchestrator.backends.kubernetes.seeds import Streamed
from tests.kubernetes.registry.conftest import template

pytestmark = pytest.mark.anyio


class Box:
    """Keeps what it is seeded with."""

    names: list[str]

    async def seed(self, tar: BinaryIO, *, deadline: float) -> None:
        with tarfile.open(fileobj=io.BytesIO(tar.read())) as found:
            self.names = sorted(found.getnames())


async def test_a_tar_that_went_while_its_pod_started_is_made_again(tmp_path: Path) -> None:
    """Many templates came meanwhile, and it was the longest unused one."""
    streamed, made, box = Streamed(tmp_path / "seeds"), template(tmp_path), Box()
    assert await streamed.image("base:1", made, "/workspace") == "base:1"
    (tar,) = (tmp_path / "seeds").glob("*.tar")
    tar.unlink()
    await streamed.seed(cast(AgentClient, cast(Any, box)), made, time.monotonic() + 5)
    assert {"src/a.py", "run.sh", "link"} <= set(box.names)
