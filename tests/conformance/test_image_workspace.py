"""The suite over boxes whose workspace is the repository that their image has inside, at its own path."""

import shutil
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from orchestrator.backends.docker.backend import DockerBackend
from orchestrator.backends.docker.images import DockerImages
from orchestrator.backends.docker.settings import DockerSettings
from orchestrator.conformance import Outcome, run
from orchestrator.conformance.gaps import GAPS
from orchestrator.conformance.named import FILES, LIMITS
from orchestrator.interfaces import SandboxSpec
from orchestrator.models import Task, TaskId
from orchestrator.repos.templates import TemplateCache
from tests.backends.docker.imaged import image_with
from tests.conformance.backends import docker
from tests.needs import needs
from tests.repos.conftest import make_repo

pytestmark = [needs("docker", "root"), pytest.mark.anyio]

GROUPS = ("files", "paths", "delta", "exec", "life", "protocol")


@pytest.fixture
async def spec(tmp_path: Path) -> AsyncIterator[SandboxSpec]:
    repo = make_repo(tmp_path / "testbed")
    repo.commit({name: data.decode() for name, data in FILES.items()})
    state = Path(tempfile.mkdtemp(prefix="ty-"))
    settings = DockerSettings(deployment="imaged", host_id="test", state_dir=state, accept_old_runc=True)
    with image_with(repo.path, "/testbed") as image:
        async with DockerImages(settings) as images:
            cache = TemplateCache(state / "cache", setup=images, images=images)
            task = Task(
                id=TaskId("t"), repo="", commit="", image=image, prompt="", grader="", workspace="image:/testbed"
            )
            template = await cache.template(task, deadline=time.monotonic() + 120)
        assert sorted(template.manifest) == sorted(FILES)
        yield SandboxSpec(image=template.image, template=template, limits=LIMITS, workdir=task.workdir)
    shutil.rmtree(state)


async def test_the_suite_holds_at_another_workdir(spec: SandboxSpec) -> None:
    async with docker() as backend:
        assert isinstance(backend, DockerBackend)
        report = await run(backend, spec=spec, gaps=GAPS.get("docker", {}), groups=GROUPS)
        bad = [f"{result.check.id}: {result.text}" for result in report.results if result.outcome in (Outcome.FAILED,)]
        assert not bad, "\n".join(bad)
        assert sum(result.outcome is Outcome.PASSED for result in report.results) > 100
