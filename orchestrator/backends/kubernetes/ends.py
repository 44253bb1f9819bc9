"""Whose doing a pod's end was: the model's (its grade is the floor) or ours (never a reward); and why a start cannot succeed. Pure."""

from orchestrator.backends.boxes import GO_CRASH
from orchestrator.backends.kubernetes.facts import PodFacts
from orchestrator.backends.kubernetes.settings import AGENT_PORT
from orchestrator.errors import SandboxDead, SandboxLost, SandboxOutOfMemory, SandboxOverDisk

OWN_DISK = ("emptydir", "ephemeral local storage", "ephemeral-storage")
"""How the kubelet's message names a box's own limits, in contrast to a node that is short of disk ("The node was low on resource")."""
NODE_SHORT = "low on resource"
HOPELESS = frozenset(
    {
        "ErrImageNeverPull",
        "InvalidImageName",
        "CreateContainerConfigError",
        "ImageInspectError",
        "CreateContainerError",
        "RunContainerError",
    }
)
"""What a container waits for in vain."""
PULLS = frozenset({"ErrImagePull", "ImagePullBackOff", "RegistryUnavailable"})


def classify_end(pod: PodFacts | None) -> SandboxDead | SandboxLost:
    """The error that tells what became of a box that does not answer any more; `pod` is None when the cluster has none.

    Commands cannot signal the agent (PID 1, of another uid), so that memory, threads and disk are the only ways in which they end a box. Whatever
    somebody asked the cluster for (deletion, eviction through the API, a drain, preemption) is ours, although memory may have run out before.
    """
    if pod is None:
        return SandboxLost("the box's pod is gone")
    if pod.reason == "Evicted" and not pod.disrupted_by_others and _own_disk(pod.message):
        return SandboxOverDisk("the sandbox took more disk than its limit and was ended")
    if pod.deleting or pod.disrupted or pod.reason:
        return SandboxLost(f"the box's pod was ended by the cluster ({pod.disrupted or pod.reason or 'deleted'})")
    if pod.exit_reason == "OOMKilled":
        return SandboxOutOfMemory("the sandbox ran out of memory and was ended")
    if pod.exit_code == GO_CRASH:
        return SandboxDead("the sandbox's supervisor was brought down by commands that used up memory or processes")
    if pod.exit_code is not None:
        return SandboxLost(
            f"the box ended with status {pod.exit_code} ({pod.exit_reason}), by no doing of its commands"
        )
    return SandboxLost("the box's pod runs but its agent does not answer")


def _own_disk(message: str) -> bool:
    said = message.lower()
    return NODE_SHORT not in said and any(word in said for word in OWN_DISK)


def start_failure(pod: PodFacts | None) -> str:
    """Why this pod will not start, in words with the fix; empty while it may."""
    if pod is None:
        return "its pod was deleted while it started"
    if pod.waiting in HOPELESS:
        return f"the cluster cannot start it ({pod.waiting}): {pod.message[:300]}"
    if pod.waiting in PULLS:
        return f"its image cannot be pulled ({pod.waiting}): push it, or give the namespace credentials: {pod.message[:300]}"
    if pod.over or pod.deleting:
        return f"its pod ended while it started ({pod.reason or pod.exit_reason or pod.phase})"
    return ""


def slow_start(pod: PodFacts | None) -> str:
    """Why a start took too long, in words with the fix."""
    if pod is not None and pod.unschedulable:
        return f"no node has room for the box: {pod.unschedulable[:300]}"
    if pod is not None and pod.waiting:
        return f"the box did not start in time: {pod.waiting} {pod.message[:300]}"
    if pod is not None and pod.running:
        return (
            f"the box's pod runs, and its agent is not reached from here at {pod.ip}:{AGENT_PORT}: give this host a route and the policies' "
            "leave (k8s/components/hosts-outside), or set TILTYARD_KUBE_PORT_FORWARD"
        )
    return "the box did not come up in time; the cluster may be busy: try again"
