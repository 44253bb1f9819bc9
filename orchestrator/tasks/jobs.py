"""Jobs: what a URL `/jobs/{job}` or a token selects. One task file is job `default`; a TOML file names several.

[jobs.boltons]
tasks = "boltons.jsonl"      # relative to this file
share = 2.0                  # weight in the queue for boxes
samples_per_task = 8
run_name = "boltons-1"
"""

import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from orchestrator.errors import Misconfigured
from orchestrator.models import Job, JobId, Task, TaskId

TaskLoader = Callable[[Path], Mapping[TaskId, Task]]
JOB_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


class _JobRow(BaseModel):
    model_config = ConfigDict(extra="forbid")
    tasks: str
    share: float = Field(default=1.0, gt=0, le=1000)
    samples_per_task: int = Field(default=1, ge=1, le=10_000)
    run_name: Annotated[str, StringConstraints(max_length=200)] = ""


class _JobFile(BaseModel):
    model_config = ConfigDict(extra="forbid")
    jobs: dict[str, _JobRow] = Field(min_length=1)


def load_jobs(tasks: Path | None, jobs: Path | None, load_tasks: TaskLoader) -> Mapping[JobId, Job]:
    """Exactly one of the two files is given. Raises Misconfigured naming file, field and fix."""
    if (tasks is None) == (jobs is None):
        raise Misconfigured("give either a task file (--tasks FILE.jsonl) or a job file (--jobs FILE.toml)")
    if tasks is not None:
        job = JobId("default")
        return {job: Job(id=job, tasks=load_tasks(tasks))}
    assert jobs is not None
    return {JobId(name): _job(name, row, jobs, load_tasks) for name, row in _read(jobs).jobs.items()}


def _read(path: Path) -> _JobFile:
    try:
        return _JobFile.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise Misconfigured(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Misconfigured(f"{path}: not TOML: {error}") from error
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise Misconfigured(f"{path}: " + "; ".join(lines)) from error


def _job(name: str, row: _JobRow, file: Path, load_tasks: TaskLoader) -> Job:
    if not JOB_NAME.fullmatch(name):
        raise Misconfigured(f"{file}: job {name!r}: use letters, digits, _ and -, at most 64")
    return Job(
        id=JobId(name),
        tasks=load_tasks(file.parent / row.tasks),
        share=row.share,
        samples_per_task=row.samples_per_task,
        run_name=row.run_name,
    )
