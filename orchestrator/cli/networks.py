"""Whether the tasks to be served may reach the hosts they name, on the backend that is set."""

from collections.abc import Mapping

from orchestrator.errors import Misconfigured
from orchestrator.interfaces import EgressControl, SandboxBackend
from orchestrator.models import Job, JobId


async def check_networks(jobs: Mapping[JobId, Job], backend: SandboxBackend) -> None:
    """Raises Misconfigured with what to do where a task's allow-list cannot be granted; EngineUnavailable. Nothing is asked where no task has one."""
    asking = [
        f"{job.id}/{task.id}"
        for job in jobs.values()
        for task in job.tasks.values()
        if task.network.allow or task.setup_network.allow
    ]
    if not asking:
        return
    if isinstance(backend, EgressControl):
        await backend.check_network()
        return
    more = f" and {len(asking) - 1} more" if len(asking) > 1 else ""
    raise Misconfigured(
        f"task {asking[0]}{more} names hosts to reach, but boxes of the {backend.name} backend have no network: "
        "leave network and setup_network out, or serve with --backend docker"
    )
