"""Whose doing a box's end was: the model's (its grade is the floor) or ours (never a reward)."""

from orchestrator.backends.boxes import GO_CRASH, MEMORY_IS_FULL, SIGKILLED
from orchestrator.errors import SandboxDead, SandboxLost, SandboxOutOfMemory


def classify_end(
    *, running: bool, ended_by_us: bool, exit_code: int | None, oom_kills: int, memory_share: float
) -> SandboxDead | SandboxLost:
    """The error that tells what became of a box that does not answer any more.

    Commands cannot signal the agent, so that memory and processes are the only ways in which they end a box. The kernel kills the agent last; a
    SIGKILL without any death of memory in the box's group was sent by somebody of this machine. Nothing tells such a kill from a death of
    memory once commands died of memory before.
    """
    if running and memory_share >= MEMORY_IS_FULL:
        return SandboxOutOfMemory("the sandbox has used up its memory and answers no more")
    if running:
        return SandboxLost("the box runs but its agent does not answer")
    if ended_by_us:
        return SandboxLost("the box was ended")
    if exit_code == SIGKILLED and oom_kills:
        return SandboxOutOfMemory("the sandbox ran out of memory and was ended")
    if exit_code == GO_CRASH:
        return SandboxDead("the sandbox's supervisor was brought down by commands that used up memory or processes")
    if exit_code is None:
        return SandboxLost("the box is gone")
    return SandboxLost(f"the box ended with status {exit_code}, by no doing of its commands")
