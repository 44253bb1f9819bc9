"""`tiltyard deploy check`: what the cluster of the current context lacks for boxes, and the fix; known before the first rollout."""

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from kubernetes.aio import client as k8s

from orchestrator.agent.binary import probe_binary
from orchestrator.backends.checks import Check, Verdict, fail, ok, warn
from orchestrator.backends.kubernetes.agent_image import agent_image_reference
from orchestrator.backends.kubernetes.api import Api, Refused
from orchestrator.backends.kubernetes.backend import KubernetesBackend
from orchestrator.backends.kubernetes.settings import AGENT_PORT, KubernetesSettings
from orchestrator.backends.kubernetes.trial import dial
from orchestrator.errors import EngineUnavailable, Misconfigured, SandboxError, TiltyardError
from orchestrator.interfaces import Sandbox, SandboxSpec
from orchestrator.models import Epoch, JobId, Limits, RolloutKey, SandboxId, TraceId

NEEDED = tuple(
    [("", "pods", verb) for verb in ("create", "get", "list", "watch", "patch", "delete")]
    + [("", "configmaps", verb) for verb in ("get", "create")]
)
"""What a host asks of the API server in the boxes' namespace: group, resource, verb."""
APPLY = "kubectl apply -k k8s/base"
TRIAL_S = 120.0
SMALL = Limits(memory_mib=64, cpus=0.1, pids=32, disk_mib=32)
SMALL_KERNEL = Limits(memory_mib=256, cpus=0.5, pids=32, disk_mib=32)
"""Of a box with a kernel of its own."""


async def check(settings: KubernetesSettings, image: str = "") -> Sequence[Check]:
    """`image`: a task's, tried beside the agent's. Raises nothing: whatever fails is a row."""
    try:
        api = await Api.open(settings)
    except Misconfigured as error:
        return [fail("cluster", error.message, "name a context that exists: kubectl config get-contexts")]
    try:
        return await _with(api, settings, image)
    finally:
        await api.aclose()


async def _with(api: Api, settings: KubernetesSettings, image: str) -> Sequence[Check]:
    reached = await _reached(api, settings)
    if reached.verdict is Verdict.FAIL:
        return [reached]
    rows = [reached, await _permissions(api, settings), await _policies(api, settings)]
    if settings.runtime_class:
        rows.append(await _runtime_class(api, settings.runtime_class))
    rows += [await _priority(api, name) for name in (settings.priority_class, settings.warm_priority_class) if name]
    rows.append(_filter(settings))
    if any(row.verdict is Verdict.FAIL for row in rows):
        return rows
    return [*rows, *await _trial(settings, image)]


async def _reached(api: Api, settings: KubernetesSettings) -> Check:
    host = api.client.configuration.host
    try:
        await k8s.CoreV1Api(api.client).list_namespaced_pod(settings.namespace, limit=1, _request_timeout=5.0)
    except Exception as error:  # noqa: BLE001  whatever the client raises is what this row is about
        return unreachable(host, settings.namespace, getattr(error, "status", None), type(error).__name__)
    return ok("cluster", f"{host} answers, namespace {settings.namespace}")


def unreachable(host: str, namespace: str, status: int | None, what: str) -> Check:
    """Pure."""
    if status == 401:
        return fail(
            "cluster", f"{host} does not know these credentials: they are expired or another cluster's", "log in again"
        )
    if status == 403:
        return fail(
            "cluster",
            f"{host} lets nobody with these credentials list pods in {namespace}",
            f"{APPLY}, and serve as its service account",
        )
    if status is not None:
        return fail("cluster", f"{host} answers {status}", "look at the API server's log")
    return fail("cluster", f"{host} does not answer ({what})", "start the cluster, or take another context")


async def _permissions(api: Api, settings: KubernetesSettings) -> Check:
    lacking = []
    for group, resource, verb in NEEDED:
        attributes = k8s.V1ResourceAttributes(namespace=settings.namespace, group=group, resource=resource, verb=verb)
        review = k8s.V1SelfSubjectAccessReview(spec=k8s.V1SelfSubjectAccessReviewSpec(resource_attributes=attributes))
        answer = await k8s.AuthorizationV1Api(api.client).create_self_subject_access_review(review)
        if answer.status is None or not answer.status.allowed:
            lacking.append(f"{verb} {resource}")
    if lacking:
        return fail("permissions", f"not allowed: {', '.join(lacking)}", f"{APPLY}, and serve as its service account")
    return ok("permissions", f"all {len(NEEDED)} that a host needs")


async def _policies(api: Api, settings: KubernetesSettings) -> Check:
    try:
        found = await k8s.NetworkingV1Api(api.client).list_namespaced_network_policy(settings.namespace)
    except k8s.ApiException as error:
        return warn("policies", f"cannot be read ({error.status})", "let hosts list networkpolicies")
    closed = [_name(item) for item in found.items if _shuts_off(item)]
    if not closed:
        return fail("policies", f"namespace {settings.namespace} has none that shuts boxes off", APPLY)
    return ok("policies", f"{', '.join(closed)} shuts boxes off")


def _shuts_off(policy: k8s.V1NetworkPolicy) -> bool:
    spec = policy.spec
    return (
        spec is not None and {"Ingress", "Egress"} <= set(spec.policy_types or ()) and not (spec.egress or spec.ingress)
    )


def _name(policy: k8s.V1NetworkPolicy) -> str:
    return str(policy.metadata.name) if policy.metadata is not None else ""


async def _runtime_class(api: Api, name: str) -> Check:
    try:
        await k8s.NodeV1Api(api.client).read_runtime_class(name)
    except k8s.ApiException as error:
        fix = "install it on the nodes and apply k8s/components/gvisor, or leave TILTYARD_KUBE_RUNTIME_CLASS out"
        return fail("runtime class", f"the cluster has no RuntimeClass {name!r} ({error.status})", fix)
    return ok("runtime class", name)


async def _priority(api: Api, name: str) -> Check:
    try:
        await k8s.SchedulingV1Api(api.client).read_priority_class(name)
    except k8s.ApiException as error:
        return fail("priority", f"the cluster has no PriorityClass {name!r} ({error.status})", APPLY)
    return ok("priority", name)


def _filter(settings: KubernetesSettings) -> Check:
    if settings.seccomp_profile:
        return ok("seccomp", f"ours, as {settings.seccomp_profile} on each node")
    fix = "copy orchestrator/backends/seccomp/tiltyard.json below the kubelets' seccomp folder and set TILTYARD_KUBE_SECCOMP_PROFILE"
    return warn("seccomp", "the runtime's default filter, which lets through more than ours", fix)


async def _trial(settings: KubernetesSettings, image: str) -> Sequence[Check]:
    """Two boxes: that they start, that this process reaches them, and that they do not reach each other."""
    short = replace(
        settings, deployment=f"check-{secrets.token_hex(3)}", warm_boxes=0, start_s=min(settings.start_s, TRIAL_S)
    )
    images = [image or settings.agent_image or agent_image_reference()]
    try:
        async with KubernetesBackend(short) as backend:
            return await _two_boxes(backend, short, images[0])
    except TiltyardError as error:
        return [fail("box", error.message, start_fix(error.message))]
    finally:
        await _forget(short)


def start_fix(message: str) -> str:
    """Pure."""
    if "ull" in message and "image" in message:
        return "push the image where the nodes pull it: `tiltyard deploy agent-image` makes the agent's"
    if "room" in message or "quota" in message:
        return "free some, add a node, or raise the quota of k8s/base"
    if "silent" in message or "does not answer" in message or "come up" in message:
        return "let this process reach pods at port 7070: run it in the cluster, or set TILTYARD_KUBE_PORT_FORWARD=1"
    return "kubectl get events -n tiltyard-sandboxes says more"


async def _two_boxes(backend: KubernetesBackend, settings: KubernetesSettings, image: str) -> Sequence[Check]:
    names = [SandboxId(f"check-{secrets.token_hex(4)}") for _ in range(2)]
    spec = SandboxSpec(image=image, template=None, limits=SMALL_KERNEL if settings.runtime_class else SMALL)
    began = time.monotonic()
    boxes: dict[SandboxId, Sandbox] = {}
    try:
        for name in names:
            boxes[name] = await backend.create(name, spec, deadline=time.monotonic() + settings.start_s)
            await boxes[name].lease(RolloutKey(job=JobId("check"), trace_id=TraceId(name)), Epoch(1))
        took_s = time.monotonic() - began
        other = next(pod.ip for pod in backend.informer.pods.values() if pod.sandbox == names[1])
        targets = {f"{other} {AGENT_PORT}": "another box", **_places(backend.api)}
        facts = await dial(boxes[names[0]], probe_binary(), ["127.0.0.1 9", *targets])
        return [ok("box", f"two started in {took_s:.1f} s and were reached"), enforced(facts, targets)]
    finally:
        for name in names:
            try:
                await backend.destroy(name)
            except (SandboxError, EngineUnavailable):
                continue  # they go with their owner


def _places(api: Api) -> Mapping[str, str]:
    """What no box may reach, by address and port."""
    host = api.client.configuration.host.partition("//")[2].rstrip("/")
    name, _, port = host.rpartition(":")
    return {f"{name or host} {port or 443}": "the API server", "169.254.169.254 80": "the metadata service"}


def enforced(facts: Mapping[str, str], targets: Mapping[str, str]) -> Check:
    """`facts`: target -> what the box's probe met there. A connection that was made, or refused by who was asked, got through. Pure."""
    open_to = [name for target, name in targets.items() if facts.get(target) == "connected"]
    if open_to:
        fix = "take a network plugin that enforces NetworkPolicy (Calico, Cilium, kube-router): boxes are open without"
        return fail("network", f"a box reaches {', '.join(open_to)}: policies are not enforced", fix)
    return ok("network", f"a box reaches none of: {', '.join(targets.values())}")


async def _forget(settings: KubernetesSettings) -> None:
    """The trial's own object; its pods would go with it."""
    try:
        api = await Api.open(settings)
    except Misconfigured:
        return
    try:
        await k8s.CoreV1Api(api.client).delete_namespaced_config_map(
            f"tiltyard-{settings.deployment}", settings.namespace
        )
    except (k8s.ApiException, Refused):
        pass
    finally:
        await api.aclose()
