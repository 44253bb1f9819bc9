"""What a box is in Kubernetes' words: pure functions, from values to a V1Pod."""

import json
from dataclasses import dataclass

from kubernetes.aio import client as k8s

from orchestrator.agent.config import RUN_DIR, AgentConfig
from orchestrator.backends import boxes
from orchestrator.backends.boxes import AGENT_CAPABILITIES, HOME, MIB, MIN_FILE_BYTES, box_environment
from orchestrator.backends.kubernetes.settings import AGENT_PORT, KubernetesSettings
from orchestrator.errors import Misconfigured
from orchestrator.interfaces import SandboxSpec
from orchestrator.models import SandboxId

LABEL = "tiltyard.dev/"
"""Labels and annotations that begin so are ours; a spec's own are refused."""
ROLE, DEPLOYMENT, HOST, SANDBOX, STATE = (
    f"{LABEL}{name}" for name in ("role", "deployment", "host", "sandbox", "state")
)
WARM, IN_USE = "warm", "in-use"
BOX, INIT = "box", "agent"
"""Names of the pod's containers."""
RUN_VOLUME, DISK_VOLUME = "run", "disk"
AGENT = f"{RUN_DIR}/tiltyard-agent"
LAST_WORDS = f"{RUN_DIR}/private/last-words"
"""A file of the node's, which commands could fill at its usual place. Nobody reads it."""
DISK = "/disk"
"""Where the init container sees the box's disk: workspace, tmp and home are folders of it, so that one limit holds for all."""
GVISOR_CLASSES = ("gvisor", "runsc")
"""Names of RuntimeClasses that are believed to be gVisor, and held to it."""
JOURNAL_MIB = 320
"""The agent's journal (256 MiB), its program, and room."""
UID_FLOOR, UID_CEILING, BLOCK_UIDS = 2**20, 2**31 - 2**16, 64
"""Uids of boxes: far above those of images and users, below what tools take for negative. A block per box, drawn at random: a node's kernel counts a
uid's processes over all its pods."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PodPlan:
    """Everything that `make_pod` decides from."""

    sandbox_id: SandboxId
    spec: SandboxSpec
    agent_image: str
    public_key_b64: str
    uid_base: int
    owner: "Owner | None"
    state: str = IN_USE


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """The deployment's own object: what it owns goes with it."""

    name: str
    uid: str


def pod_name(sandbox_id: SandboxId) -> str:
    """The name by which a pod is found although the reply to its creation was lost."""
    return f"tiltyard-{sandbox_id}"


def uid_block(number: int) -> int:
    """First uid of block `number`, any natural number."""
    return UID_FLOOR + number % ((UID_CEILING - UID_FLOOR) // BLOCK_UIDS) * BLOCK_UIDS


def one_uid(settings: KubernetesSettings) -> bool:
    return settings.security == "restricted"


def check_spec(sandbox_id: SandboxId, spec: SandboxSpec, settings: KubernetesSettings) -> None:
    """Raises Misconfigured for what this backend cannot honour; nothing is ever ignored."""
    if not boxes.SANDBOX_NAME.fullmatch(sandbox_id) or "_" in sandbox_id or len(sandbox_id) > 50:
        raise Misconfigured("a sandbox id has 1 to 50 of a-z, 0-9, '.', '-', and starts with a letter or digit")
    if spec.network.allow:
        raise Misconfigured(
            "the kubernetes backend gives no box a network: take network.allow off the task, or serve with docker"
        )
    if spec.grader and one_uid(settings):
        raise Misconfigured(
            "grading boxes need a second uid, which pods of security level restricted do not have: "
            "serve with baseline, or use a grader that needs no box"
        )
    boxes.check_limits(spec.limits)
    reserved = sorted(key for key in spec.labels if key.startswith(LABEL))
    if reserved:
        raise Misconfigured(f"labels that start with {LABEL!r} are reserved: {', '.join(reserved)}")
    folder = spec.workdir.rstrip("/")
    if not folder.startswith("/") or "/../" in f"{folder}/" or folder in boxes.RESERVED_FOLDERS:
        raise Misconfigured(f"workdir {spec.workdir!r} must be an absolute path of its own in the box")


def agent_config(plan: PodPlan, settings: KubernetesSettings) -> AgentConfig:
    """What the box's agent is told. Nothing in it is secret: the pod has the public half of the key."""
    limits = plan.spec.limits
    shared = one_uid(settings)
    return AgentConfig(
        uid_base=plan.uid_base,
        uid_count=1 if shared else BLOCK_UIDS,
        workspace=plan.spec.workdir,
        home=HOME,
        mode="one_uid" if shared else "split",
        allow_root_exec=plan.spec.grader,
        env=box_environment({}),
        listen=f"0.0.0.0:{AGENT_PORT}",
        box=plan.sandbox_id,
        public_key_b64=plan.public_key_b64,
        allow_loopback=settings.port_forward,
        rlimits={
            "nofile": limits.open_files,
            "nproc": boxes.process_limit(
                limits.pids, shared=shared, own_kernel=settings.runtime_class in GVISOR_CLASSES
            ),
            "fsize_bytes": max(limits.disk_mib * MIB, MIN_FILE_BYTES),
        },
    )


def make_pod(plan: PodPlan, settings: KubernetesSettings) -> k8s.V1Pod:
    """Pure: everything that a box may and may not do stands here."""
    return k8s.V1Pod(api_version="v1", kind="Pod", metadata=_metadata(plan, settings), spec=_spec(plan, settings))


def _metadata(plan: PodPlan, settings: KubernetesSettings) -> k8s.V1ObjectMeta:
    owners = None
    if plan.owner is not None:
        owners = [k8s.V1OwnerReference(api_version="v1", kind="ConfigMap", name=plan.owner.name, uid=plan.owner.uid)]
    return k8s.V1ObjectMeta(
        name=pod_name(plan.sandbox_id),
        namespace=settings.namespace,
        labels=labels(plan, settings),
        annotations={f"{LABEL}{key}": value for key, value in sorted(plan.spec.labels.items())},
        owner_references=owners,
    )


def labels(plan: PodPlan, settings: KubernetesSettings) -> dict[str, str]:
    return {
        "app.kubernetes.io/managed-by": "tiltyard",
        ROLE: BOX,
        DEPLOYMENT: settings.deployment,
        HOST: settings.host_id,
        SANDBOX: plan.sandbox_id,
        STATE: plan.state,
        f"{LABEL}grader": "true" if plan.spec.grader else "false",
    }


def _spec(plan: PodPlan, settings: KubernetesSettings) -> k8s.V1PodSpec:
    return k8s.V1PodSpec(
        init_containers=[_init(plan, settings)],
        containers=[_box(plan, settings)],
        volumes=_volumes(plan),
        restart_policy="Never",
        active_deadline_seconds=round(settings.lifetime_s),
        termination_grace_period_seconds=1,
        automount_service_account_token=False,
        enable_service_links=False,
        host_network=False,
        host_pid=False,
        host_ipc=False,
        share_process_namespace=False,
        hostname="sandbox",
        dns_policy="None",
        dns_config=k8s.V1PodDNSConfig(nameservers=["127.0.0.1"]),
        runtime_class_name=settings.runtime_class or None,
        priority_class_name=(settings.warm_priority_class if plan.state == WARM else settings.priority_class) or None,
        security_context=_pod_security(plan, settings),
        tolerations=[_while_unreachable("unreachable"), _while_unreachable("not-ready")],
    )


def _while_unreachable(condition: str) -> k8s.V1Toleration:
    """A node that is silent for a moment (its kubelet restarts) costs no box."""
    return k8s.V1Toleration(
        key=f"node.kubernetes.io/{condition}", operator="Exists", effect="NoExecute", toleration_seconds=60
    )


def _pod_security(plan: PodPlan, settings: KubernetesSettings) -> k8s.V1PodSecurityContext:
    shared = one_uid(settings)
    return k8s.V1PodSecurityContext(
        run_as_user=plan.uid_base if shared else 0,
        run_as_group=plan.uid_base if shared else 0,
        run_as_non_root=shared,
        fs_group=plan.uid_base if shared else None,
        seccomp_profile=_seccomp(settings),
    )


def _seccomp(settings: KubernetesSettings) -> k8s.V1SeccompProfile:
    if settings.seccomp_profile:
        return k8s.V1SeccompProfile(type="Localhost", localhost_profile=settings.seccomp_profile)
    return k8s.V1SeccompProfile(type="RuntimeDefault")


def _security(settings: KubernetesSettings, capabilities: list[str]) -> k8s.V1SecurityContext:
    return k8s.V1SecurityContext(
        allow_privilege_escalation=False,
        privileged=False,
        read_only_root_filesystem=True,
        capabilities=k8s.V1Capabilities(drop=["ALL"], add=None if one_uid(settings) else capabilities),
    )


def _init(plan: PodPlan, settings: KubernetesSettings) -> k8s.V1Container:
    """Brings the agent into the pod, and makes the box's folders the commands' own."""
    folders = ",".join(f"{DISK}/{name}" for name in ("workspace", "tmp", "home"))
    config = json.loads(agent_config(plan, settings).to_json())
    arguments = ["install", "--to", RUN_DIR, "--config", json.dumps(config, sort_keys=True)]
    arguments += ["--uid", str(plan.uid_base), "--folders", folders]
    return k8s.V1Container(
        name=INIT,
        image=plan.agent_image,
        image_pull_policy=settings.image_pull_policy,
        command=["/tiltyard-agent"],
        args=arguments,
        resources=_resources(plan),
        security_context=_security(settings, ["CHOWN"]),
        volume_mounts=[
            k8s.V1VolumeMount(name=RUN_VOLUME, mount_path=RUN_DIR),
            k8s.V1VolumeMount(name=DISK_VOLUME, mount_path=DISK),
        ],
    )


def _box(plan: PodPlan, settings: KubernetesSettings) -> k8s.V1Container:
    return k8s.V1Container(
        name=BOX,
        image=plan.spec.image,
        image_pull_policy=settings.image_pull_policy,
        command=[AGENT],
        args=["serve", "--config", f"{RUN_DIR}/config.json"],
        working_dir="/",
        resources=_resources(plan),
        security_context=_security(settings, [*AGENT_CAPABILITIES]),
        ports=[k8s.V1ContainerPort(name="agent", container_port=AGENT_PORT, protocol="TCP")],
        termination_message_path=LAST_WORDS,
        termination_message_policy="File",
        volume_mounts=[
            k8s.V1VolumeMount(name=RUN_VOLUME, mount_path=RUN_DIR),
            k8s.V1VolumeMount(name=DISK_VOLUME, mount_path=plan.spec.workdir, sub_path="workspace"),
            k8s.V1VolumeMount(name=DISK_VOLUME, mount_path="/tmp", sub_path="tmp"),  # noqa: S108  (of the box)
            k8s.V1VolumeMount(name=DISK_VOLUME, mount_path=HOME, sub_path="home"),
        ],
    )


def _volumes(plan: PodPlan) -> list[k8s.V1Volume]:
    disk = k8s.V1EmptyDirVolumeSource(size_limit=f"{plan.spec.limits.disk_mib}Mi")
    run = k8s.V1EmptyDirVolumeSource(size_limit=f"{JOURNAL_MIB}Mi")
    return [k8s.V1Volume(name=RUN_VOLUME, empty_dir=run), k8s.V1Volume(name=DISK_VOLUME, empty_dir=disk)]


def _resources(plan: PodPlan) -> k8s.V1ResourceRequirements:
    """Requests are limits: a box is promised what it may use, and is the last that a node in need would evict."""
    limits = plan.spec.limits
    amounts = {
        "cpu": f"{round(limits.cpus * 1000)}m",
        "memory": f"{limits.memory_mib}Mi",
        "ephemeral-storage": f"{limits.disk_mib + JOURNAL_MIB}Mi",
    }
    return k8s.V1ResourceRequirements(requests=amounts, limits=dict(amounts))
