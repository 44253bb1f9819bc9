"""What the Kubernetes backend needs to know, fixed for its life."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

AGENT_PORT = 7070
"""Of the agent in each pod. The policies of k8s/base open this one, to hosts alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KubernetesSettings:
    """`state_dir` is the deployment's own folder."""

    deployment: str
    host_id: str
    state_dir: Path
    context: str = ""
    """Of the kubeconfig; empty: its current one, or the service account of the pod that this process runs in."""
    namespace: str = "tiltyard-sandboxes"
    agent_image: str = ""
    """Image from scratch that holds the in-box agent; empty: the name that `tiltyard deploy agent-image` gives this build's."""
    runtime_class: str = ""
    """RuntimeClass of boxes (gvisor, kata); empty: the cluster's default runtime."""
    security: Literal["baseline", "restricted"] = "baseline"
    """Pod security level that boxes keep to. restricted: agent and commands share one uid, and there are no grading boxes."""
    seccomp_profile: str = ""
    """Path of our system call filter below the kubelet's seccomp folder, where an operator installed it; empty: the runtime's default filter."""
    priority_class: str = "tiltyard-box"
    warm_priority_class: str = "tiltyard-warm"
    image_pull_policy: Literal["IfNotPresent", "Always", "Never"] = "IfNotPresent"
    port_forward: bool = False
    """Reach boxes through the API server: for hosts that have no way to pods' addresses, such as a laptop."""
    task_images: str = ""
    """Repository for task images; empty: repositories are streamed to pods."""
    insecure_registries: frozenset[str] = frozenset()
    """Registries that speak plain HTTP; those on loopback do anyway."""
    warm_boxes: int = 0
    """Pods kept ready per task image in use."""
    start_slots: int = 16
    max_boxes: int = 200
    memory_limit_mib: int = 0
    """Memory that all boxes together may be promised; 0: what the namespace's quota leaves, else what the nodes have."""
    start_s: float = 120.0
    """How long a pod may wait for a node or an image before its start counts as failed."""
    lifetime_s: float = 86_400.0
    """The cluster ends a pod after this whatever happens: the last insurance, for a box that every host forgot."""
    request_timeout_s: float = 30.0
    """One request to the API server."""

    @property
    def key_file(self) -> Path:
        """The deployment's signing key; hosts that share a deployment share it."""
        return self.state_dir / "agent.key"
