"""The same grader over the docker backend's grading boxes and the image's own pytest."""

import secrets
import shutil
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.backends.docker.backend import DockerBackend
from orchestrator.backends.docker.settings import DockerSettings
from orchestrator.graders.tests import TestsGrader as Grader
from orchestrator.models import Grade
from orchestrator.repos.workspace import make_workspaces
from tests.graders.tests_grader.docker_box import DockerBench
from tests.graders.tests_grader.forgeries import IN_PROCESS, Files
from tests.graders.tests_grader.library import BASE, GOLD, SPEC, TASK, bench
from tests.needs import needs

pytestmark = [pytest.mark.anyio, needs("docker", "root")]

IN_DOCKER = replace(TASK, image="tiltyard/python:3.11", tests=replace(SPEC, command=("pytest",)))
TRIED = {
    "patch TestReport",
    "AlwaysEqual",
    "children remember by files",
    "children remember by a daemon",
    "children remember by shared memory",
    "read the plan, then exit",
    "kill everything else",
    "fork bomb",
}
"""What rests on the box's uids, /proc, pids limit and temporary folders; the others rest on the verdict alone."""


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def backend() -> AsyncIterator[DockerBackend]:
    folder = Path(tempfile.mkdtemp(prefix="ty-"))
    deployment = f"test-{secrets.token_hex(4)}"
    settings = DockerSettings(
        deployment=deployment,
        host_id="test",
        state_dir=folder / deployment,
        memory_limit_mib=8192,
        accept_old_runc=True,
    )
    async with DockerBackend(settings, make_workspaces(folder, deployment)) as made:
        yield made
    shutil.rmtree(folder)


async def graded(backend: DockerBackend, files: Files) -> Grade:
    local = bench(files, IN_DOCKER)
    return await Grader().grade(DockerBench(IN_DOCKER, local.evidence, BASE, local.blobs, backend))


async def test_the_gold_answer_passes(backend: DockerBackend) -> None:
    started = time.monotonic()
    grade = await graded(backend, GOLD)
    print(f"graded in {time.monotonic() - started:.2f} s, box included")
    assert (grade.score, grade.violation) == (1.0, False), grade


async def test_no_answer_fails(backend: DockerBackend) -> None:
    grade = await graded(backend, {})
    assert (grade.score, grade.violation) == (0.0, False), grade
    assert grade.sub_scores == {"fail_to_pass": 0.0, "pass_to_pass": 1.0}


@pytest.mark.parametrize("forgery", [pytest.param(each, id=each.name) for each in IN_PROCESS if each.name in TRIED])
async def test_a_forgery_earns_nothing(backend: DockerBackend, forgery: object) -> None:
    assert isinstance(forgery, type(IN_PROCESS[0]))
    grade = await graded(backend, forgery.files)
    assert (grade.score, grade.violation) == (0.0, forgery.violation), grade
