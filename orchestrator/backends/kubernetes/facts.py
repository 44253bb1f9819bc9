"""What the cluster says of a pod, reduced to what is decided from. Pure; the objects are the API server's JSON."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from orchestrator.backends.kubernetes.pods import BOX, SANDBOX


@dataclass(frozen=True, slots=True, kw_only=True)
class PodFacts:
    """`created_at` is wall-clock seconds. `waiting` and `message` are the first container's that waits; `exit_code` and `exit_reason` the box's."""

    name: str
    uid: str
    version: str
    labels: Mapping[str, str]
    phase: str
    ip: str
    node: str
    created_at: float
    deleting: bool
    finalizers: tuple[str, ...]
    running: bool
    exit_code: int | None
    exit_reason: str
    waiting: str
    message: str
    reason: str
    """Of the pod's end: Evicted, DeadlineExceeded, NodeLost, ..."""
    unschedulable: str
    disrupted: str
    """Who asked for its end, where that was told: an eviction, a preemption, a drain, the taint manager."""

    @property
    def sandbox(self) -> str:
        return self.labels.get(SANDBOX, "")

    @property
    def disrupted_by_others(self) -> bool:
        """The kubelet names itself when it ends a pod for the pod's own limits."""
        return bool(self.disrupted) and self.disrupted != "TerminationByKubelet"

    @property
    def reachable(self) -> bool:
        """Its agent may answer. The cluster tells up to a second late that it runs, and where it is in time."""
        return bool(self.ip) and not self.over and not self.deleting

    @property
    def over(self) -> bool:
        return self.phase in ("Failed", "Succeeded") or self.exit_code is not None


def facts_of(pod: Mapping[str, Any]) -> PodFacts:
    meta, spec, status = pod["metadata"], pod.get("spec") or {}, pod.get("status") or {}
    states = [entry for kind in ("initContainerStatuses", "containerStatuses") for entry in status.get(kind) or ()]
    box = next((entry.get("state") or {} for entry in states if entry["name"] == BOX), {})
    ended = box.get("terminated")
    waiting: Mapping[str, Any] = next(
        (w for w in ((entry.get("state") or {}).get("waiting") for entry in states) if w), {}
    )
    conditions = {entry["type"]: entry for entry in status.get("conditions") or ()}
    scheduled, target = conditions.get("PodScheduled", {}), conditions.get("DisruptionTarget", {})
    return PodFacts(
        name=meta["name"],
        uid=meta["uid"],
        version=meta["resourceVersion"],
        labels=meta.get("labels") or {},
        phase=status.get("phase", ""),
        ip=status.get("podIP", ""),
        node=spec.get("nodeName", ""),
        created_at=_seconds(meta["creationTimestamp"]),
        deleting=meta.get("deletionTimestamp") is not None,
        finalizers=tuple(meta.get("finalizers") or ()),
        running="running" in box,
        exit_code=ended["exitCode"] if ended else None,
        exit_reason=(ended or {}).get("reason", ""),
        waiting=waiting.get("reason", ""),
        message=waiting.get("message", "") or status.get("message", ""),
        reason=status.get("reason", ""),
        unschedulable=scheduled.get("message", "") if scheduled.get("reason") == "Unschedulable" else "",
        disrupted=target.get("reason", "") if target.get("status") == "True" else "",
    )


def _seconds(stamp: str) -> float:
    return datetime.fromisoformat(stamp).timestamp()
