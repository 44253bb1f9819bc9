"""Which job and which task a request is about (D10). Pure: values in, a decision or an error by blame out."""

from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.errors import CallerError, Misconfigured, TaskConflict, UnknownJob, UnknownTask
from orchestrator.models import Finding, Job, JobId, JsonValue, Task, TaskId
from tool_gateway.auth import Principal
from tool_gateway.handles import ARGUMENT


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelMistake:
    """The model did not say, or not truthfully, which task it works on: text for it, and perhaps something for the record."""

    text: str
    finding: Finding | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """What says which task a rollout works on. `claimed` is what the presented `handle` was made for, None when it does not verify."""

    bound: TaskId | None
    named: str | None
    handle: JsonValue = None
    claimed: TaskId | None = None


ASK_FOR_HANDLE = ModelMistake(
    text=f"Error: this call does not say which task it belongs to. Pass `{ARGUMENT}` with exactly the value that the tool's schema gives."
)
FORGED_HANDLE = ModelMistake(
    text=f"Error: `{ARGUMENT}` is not valid. Pass exactly the value that the tool's schema gives; nothing was run.",
    finding=Finding(
        code="forged_task_handle", detail="a task handle that this gateway did not make for this rollout's task"
    ),
)


def choose_job(principal: Principal, jobs: Mapping[JobId, Job], path_job: str | None) -> Job:
    """The URL's job, else the only one that the token may use. Raises UnknownJob (foreign and missing alike), CallerError."""
    if path_job is not None:
        job = jobs.get(JobId(path_job))
        if job is None or not principal.may_use(job.id):
            raise UnknownJob("no such job for this token; the URL is /jobs/JOB/...")
        return job
    own = [job for job in jobs.values() if principal.may_use(job.id)]
    if not own:
        raise UnknownJob("this token is for no job that is served here")
    if len(own) > 1:
        raise CallerError(
            "several jobs are possible: put the job into the URL, /jobs/JOB/..., or use a token for one job"
        )
    return own[0]


def named_task(job: Job, name: str) -> Task:
    """Raises UnknownTask."""
    task = job.tasks.get(TaskId(name))
    if task is None:
        raise UnknownTask(
            "this job has no task of that task_id; check that the dataset and the task set belong together"
        )
    return task


def choose_task(job: Job, sources: Sources) -> Task | ModelMistake:
    """Raises what is the caller's: UnknownTask, TaskConflict, Misconfigured."""
    task = _by_caller(job, sources)
    if sources.handle is not None and (sources.claimed is None or task not in (None, job.tasks.get(sources.claimed))):
        return FORGED_HANDLE
    if task is None and sources.claimed is not None:
        task = job.tasks[sources.claimed]
    return task or ASK_FOR_HANDLE


def _by_caller(job: Job, sources: Sources) -> Task | None:
    """What the trainer and the binding say; None when nothing says."""
    named = None if sources.named is None else named_task(job, sources.named)
    if sources.bound is None:
        return named or _only_task(job)
    if named is not None and named.id != sources.bound:
        raise TaskConflict(
            "this rollout is bound to another task than item.task_id names: one trace_id per rollout and row"
        )
    bound = job.tasks.get(sources.bound)
    if bound is None:
        raise Misconfigured("this rollout's task is no longer part of the job; serve the task set that it began with")
    return bound


def _only_task(job: Job) -> Task | None:
    return next(iter(job.tasks.values())) if len(job.tasks) == 1 else None
