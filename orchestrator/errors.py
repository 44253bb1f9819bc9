"""One error tree, by blame (D7). The model's own mistakes are replies, never exceptions.

    TiltyardError
    |- CallerError                  the trainer or an operator: 4xx
    |  |- Unauthorized                401 | 403
    |  |- BadEnvelope                 408 | 413 | 415 | 422
    |  |- UnknownJob, UnknownRollout  404
    |  |- TaskConflict                409
    |  `- Misconfigured               refused at start, or 422
    |- CapacityError                503, the place in the queue is kept
    |  |- HostFull, Draining, StillRunning
    |- SandboxError                 5xx, ours
    |  |- StartFailed                 not remembered: the retry may succeed
    |  |- SandboxLost                 remembered: poisons the rollout
    |  |- AgentProtocolError          the box is hostile or broken: treated as lost
    |  `- ReplayDiverged              a tool was not deterministic
    |- SandboxDead                  the box died by the model's doing: 200 text, its grade is the floor
    |  |- SandboxOutOfMemory          it ran out of memory
    |  `- SandboxOverDisk             it took more disk than its limit, where a watch holds it to that
    |- RolloutClosed                5xx: expired, lost, released or never to be scored
    |- GraderError                  500, not remembered
    |- RepositoryError              5xx on a trainer's route, with the fix in words
    |- StoreError                   500
    |  `- StaleLease                  another host owns the rollout now: drop it, touch no box

Each takes one string (so that it pickles), and carries a `reason` from a closed set, used as metric label, and an HTTP `status`.
"""

from typing import ClassVar


class TiltyardError(Exception):
    """Root of the tree. `message` is safe to show to the trainer: no paths of the machine, no secrets, no traceback."""

    reason: ClassVar[str] = "internal"
    status: ClassVar[int] = 500

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class CallerError(TiltyardError):
    reason = "bad_request"
    status = 400


class Unauthorized(CallerError):
    """No or wrong token."""

    reason = "unauthorized"
    status = 401


class Forbidden(Unauthorized):
    """A valid token that may not do this."""

    reason = "forbidden"
    status = 403


class BadEnvelope(CallerError):
    """The request is not of a shape we know."""

    reason = "bad_envelope"
    status = 422


class TooLarge(BadEnvelope):
    reason = "too_large"
    status = 413


class TooSlow(BadEnvelope):
    """The request's body did not arrive within the time a body may take."""

    reason = "too_slow"
    status = 408


class UnsupportedEncoding(BadEnvelope):
    """A compressed body: its true size cannot be bounded before it is unpacked."""

    reason = "unsupported_encoding"
    status = 415


class UnknownJob(CallerError):
    """No such job for this token; the same answer for foreign and for missing ones."""

    reason = "unknown_job"
    status = 404


class UnknownRollout(CallerError):
    """No such rollout for this token; the same answer for foreign and for missing ones."""

    reason = "unknown_rollout"
    status = 404


class UnknownTask(CallerError):
    """The job has no task of that id."""

    reason = "unknown_task"
    status = 422


class TaskConflict(CallerError):
    """The rollout is bound to another task than this request names."""

    reason = "task_conflict"
    status = 409


class Misconfigured(CallerError):
    """A setting, task or deployment that cannot be honoured."""

    reason = "misconfigured"
    status = 422


class CapacityError(TiltyardError):
    status = 503
    reason = "no_capacity"


class HostFull(CapacityError):
    """No slot within the request's wait; the place in the queue is kept for the retry."""

    reason = "host_full"


class Draining(CapacityError):
    reason = "draining"


class StillRunning(CapacityError):
    """The work goes on; a retry joins it."""

    reason = "still_running"


class SandboxError(TiltyardError):
    reason = "sandbox"


class StartFailed(SandboxError):
    """No box could be made. Not remembered."""

    reason = "start_failed"


class EngineUnavailable(StartFailed):
    """The container engine does not answer."""

    reason = "engine_unavailable"
    status = 503


class SandboxLost(SandboxError):
    """The box is gone or restarted, not by the model's doing. Remembered."""

    reason = "sandbox_lost"


class AgentProtocolError(SandboxLost):
    """The in-box agent's reply does not fit the closed schema."""

    reason = "agent_protocol"


class ReplayDiverged(SandboxError):
    """The same operation id came with another body."""

    reason = "replay_diverged"


class SandboxDead(TiltyardError):
    """The box died by the model's doing: out of memory, or the agent killed."""

    reason = "sandbox_dead"
    status = 200


class SandboxOutOfMemory(SandboxDead):
    """The box died of memory."""


class SandboxOverDisk(SandboxDead):
    """The box took more disk than its limit and was ended for it: where no kernel limit stops it, a watch does."""


class RolloutClosed(TiltyardError):
    """The rollout is over (expired, lost, released, tainted): it never runs or scores again."""

    reason = "rollout_closed"
    status = 500


class GraderError(TiltyardError):
    """A grader failed, by our fault or its model's. Not remembered; never a reward."""

    reason = "grader_failed"


class RepositoryError(TiltyardError):
    """A mirror, commit or template could not be had; the message says what to do."""

    reason = "repository"


class LeakFound(RepositoryError):
    """The sealed template holds objects or refs it must not hold."""

    reason = "seal_leak"


class StoreError(TiltyardError):
    reason = "store_failed"


class StaleLease(StoreError):
    """Another host owns this rollout now."""

    reason = "stale_lease"
