"""Settings and tasks that ask of a backend what it has not: refused before anything is served, not at a rollout's first call."""

from collections.abc import Mapping

from orchestrator.backends.local.settings import HOST_IMAGE
from orchestrator.errors import Misconfigured
from orchestrator.models import Job, JobId
from orchestrator.settings import Settings


def check_settings(settings: Settings) -> None:
    """Raises Misconfigured where a setting of one backend stands beside another backend, which would not heed it."""
    if settings.backend != "docker" and settings.runtime != "runc":
        raise Misconfigured(
            f"runtime {settings.runtime!r} is the docker backend's, and the backend is {settings.backend}, which has none: "
            "leave --runtime out, or serve with --backend docker"
        )
    changed = sorted(name for name in settings.model_fields_set if name.startswith("kube_"))
    if settings.backend != "kubernetes" and changed:
        raise Misconfigured(
            f"TILTYARD_{changed[0].upper()} is the kubernetes backend's, and the backend is {settings.backend}: "
            "leave it out, or serve with --backend kubernetes"
        )
    if settings.backend != "local" and (settings.local_any_image or settings.local_paths):
        name = "--host-root" if settings.local_any_image else "TILTYARD_LOCAL_PATHS"
        raise Misconfigured(
            f"{name} is the local backend's, and the backend is {settings.backend}: leave it out, or serve with --backend local"
        )


def check_cluster(jobs: Mapping[JobId, Job], settings: Settings) -> None:
    """Raises Misconfigured where a task asks for what pods do not have."""
    tasks = [(f"{job.id}/{task.id}", task) for job in jobs.values() for task in job.tasks.values()]
    if settings.backend != "kubernetes":
        return
    if named := [name for name, task in tasks if task.setup]:
        raise Misconfigured(
            f"task {_told(named)} has set-up commands, which the kubernetes backend does not run: build them into the task's image"
        )
    if settings.kube_security == "restricted" and (named := [name for name, task in tasks if task.tests is not None]):
        raise Misconfigured(
            f"task {_told(named)} is graded by tests in a box with a second uid, which pods of security level restricted do not have: "
            "serve with TILTYARD_KUBE_SECURITY=baseline"
        )


def check_images(jobs: Mapping[JobId, Job], settings: Settings) -> None:
    """Raises Misconfigured where a task names an image, or a repository in one, on a backend without images."""
    tasks = [(f"{job.id}/{task.id}", task) for job in jobs.values() for task in job.tasks.values()]
    if settings.backend != "docker" and (inside := [name for name, task in tasks if task.workspace]):
        raise Misconfigured(
            f"task {_told(inside)} works on a repository inside its image, but the {settings.backend} backend has no images: "
            "name a repo, or serve with --backend docker"
        )
    named = [name for name, task in tasks if task.image != HOST_IMAGE]
    if settings.backend == "local" and not settings.local_any_image and named:
        raise Misconfigured(
            f"task {_told(named)} names an image, but the local backend has none, only this machine's own programs: "
            f'write "image": "{HOST_IMAGE}", or serve with --host-root to run every task over them'
        )


def _told(names: list[str]) -> str:
    return f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else names[0]
