"""Signed task handles (D10): how a model says which task it works on, without being able to choose another or to learn which one it is.

A handle is `th1_<lookup>_<mac>`: both parts are HMAC-SHA256 over a domain string, the job and the task. The lookup part finds the task, the mac
is compared in constant time. Neither tells the task's id, which often names the very commit that fixes it.
"""

import hashlib
import hmac
import re
from collections.abc import Mapping
from typing import Final

from orchestrator.errors import Misconfigured
from orchestrator.models import Job, JobId, TaskId

ARGUMENT: Final = "task_handle"
"""Name of the argument that carries the handle. Reserved: no tool may have one of this name."""
MIN_SECRET_BYTES: Final = 32
MIN_DISTINCT_BYTES: Final = 8
"""32 random bytes have fewer distinct ones about never; blanks and repetitions have."""
_HANDLE = re.compile(r"th1_([0-9a-f]{16})_([0-9a-f]{32})")


class Handles:
    """Makes and checks the handles of a deployment's jobs. The secret must outlive every dataset exported under it."""

    def __init__(self, secret: bytes, jobs: Mapping[JobId, Job]) -> None:
        """Raises Misconfigured for a secret that is short or plainly not random."""
        if len(secret) < MIN_SECRET_BYTES or len(set(secret)) < MIN_DISTINCT_BYTES:
            raise Misconfigured(f"the secret of task handles needs at least {MIN_SECRET_BYTES} bytes, random ones")
        self._secret = bytes(secret)
        self._jobs = jobs
        self._tables: dict[JobId, dict[str, tuple[str, TaskId]]] = {}

    def make(self, job: JobId, task: TaskId) -> str:
        return f"th1_{self._digest('lookup', job, task)[:16]}_{self._digest('mac', job, task)[:32]}"

    def verify(self, job: JobId, handle: object) -> TaskId | None:
        """The task that `handle` was made for, or None when it was not made for this job."""
        match = _HANDLE.fullmatch(handle) if isinstance(handle, str) else None
        if match is None:
            return None
        mac, task = self._table(job).get(match[1], ("0" * 32, None))
        return task if hmac.compare_digest(mac, match[2]) else None

    def _table(self, job: JobId) -> dict[str, tuple[str, TaskId]]:
        """Lookup part -> (mac, task), made on the job's first use."""
        if job not in self._tables:
            made = ((self.make(job, task).split("_"), task) for task in self._jobs[job].tasks)
            self._tables[job] = {lookup: (mac, task) for (_, lookup, mac), task in made}
        return self._tables[job]

    def _digest(self, use: str, job: JobId, task: TaskId) -> str:
        message = "\x00".join(("tiltyard task handle v1", use, str(len(job)), job, task))
        return hmac.new(self._secret, message.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()
