"""What a backend would not heed is refused at the start, with words; the same beside the backend that has it is not."""

import pytest

from orchestrator.cli.contradictions import check_images, check_settings
from orchestrator.cli.wiring import gateway
from orchestrator.errors import Misconfigured
from orchestrator.models import Job, JobId, Task, TaskId
from orchestrator.settings import load_settings
from tests.hosts.world import a_task

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("backend", "given", "home"),
    [
        ("local", {"runtime": "runsc"}, "docker"),
        ("fake", {"runtime": "runsc"}, "docker"),
        ("docker", {"local_any_image": True}, "local"),
        ("fake", {"local_paths": "/opt/go"}, "local"),
    ],
)
async def test_a_setting_of_another_backend_is_refused(backend: str, given: dict[str, object], home: str) -> None:
    with pytest.raises(Misconfigured, match=f"serve with --backend {home}"):
        check_settings(load_settings(backend=backend, **given))
    check_settings(load_settings(backend=home, **given))
    check_settings(load_settings(backend=backend))


async def test_the_server_asks_before_it_makes_anything() -> None:
    with pytest.raises(Misconfigured, match="runtime 'runsc' is the docker backend's"):
        async with gateway(load_settings(backend="fake", runtime="runsc", insecure_loopback=True)):
            raise AssertionError


def jobs(**images: str) -> dict[JobId, Job]:
    tasks: dict[TaskId, Task] = {TaskId(name): a_task(name, image=image) for name, image in images.items()}
    return {JobId("j"): Job(id=JobId("j"), tasks=tasks)}


async def test_an_image_on_the_backend_without_any_is_refused_unless_all_are_taken() -> None:
    mixed = jobs(own="host", py="tiltyard/python:3.11", other="x:1")
    with pytest.raises(Misconfigured, match=r"task j/py and 1 more names an image.*--host-root"):
        check_images(mixed, load_settings(backend="local"))
    check_images(jobs(own="host"), load_settings(backend="local"))
    check_images(mixed, load_settings(backend="local", local_any_image=True))
    check_images(mixed, load_settings(backend="docker"))


@pytest.mark.parametrize("backend", ["local", "fake"])
async def test_a_repository_inside_an_image_needs_a_backend_with_images(backend: str) -> None:
    task = a_task("in", image="host", workspace="/testbed", repo="", commit="")
    inside = {JobId("j"): Job(id=JobId("j"), tasks={TaskId("in"): task})}
    with pytest.raises(Misconfigured, match="task j/in works on a repository inside its image"):
        check_images(inside, load_settings(backend=backend))
    check_images(inside, load_settings(backend="docker"))
