"""`tiltyard deploy check`: what the cluster of the current context lacks for boxes, and the fix; known before the first rollout."""

import asyncio
import secrets
import tempfile
import time
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from kubernetes.aio import client as k8s
from kubernetes.utils.quantity import parse_quantity

from orchestrator.agent.binary import probe_binary
from orchestrator.backends.checks import Check, Verdict, fail, ok, warn
from orchestrator.backends.kubernetes.agent_image import agent_image_reference
from orchestrator.backends.kubernetes.api import NO_ANSWER, Api, Refused
from orchestrator.backends.kubernetes.backend import KubernetesBackend
from orchestrator.backends.kubernetes.pods import BOX, JOURNAL_MIB, ROLE
from orchestrator.backends.kubernetes.settings import AGENT_PORT, KubernetesSettings
from orchestrator.backends.kubernetes.trial import dial
from orchestrator.errors import EngineUnavailable, Misconfigured, SandboxError, TiltyardError
from orchestrator.interfaces import Sandbox, SandboxSpec
from orchestrator.models import Epoch, JobId, Limits, RolloutKey, SandboxId, TraceId

APPLY = "kubectl apply -k k8s/base"
AS_HOST = f"{APPLY}, and serve as its service account"
ANSWER_S = 5.0
"""For the first answer: a cluster that takes longer is not there."""
TRIAL_S = 120.0
SMALL = Limits(memory_mib=64, cpus=0.1, pids=32, disk_mib=32)
SMALL_KERNEL = Limits(memory_mib=256, cpus=0.5, pids=256, disk_mib=32)
"""Of a box with a kernel of its own, which counts the agent's threads among the commands'."""
BOXES = 2
OWN_AGENT = f"127.0.0.1 {AGENT_PORT}"
"""What a box's probe must reach, else it proves nothing by what it does not reach."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Right:
    """One request to the API server, as its authorisation names it. `resource` may have a part: pods/portforward."""

    verb: str
    resource: str
    group: str = ""
    everywhere: bool = False
    """Of the cluster, not of the boxes' namespace."""

    def __str__(self) -> str:
        return f"{self.verb} {self.resource}"


BOXES_RIGHTS = tuple(
    [Right(verb=verb, resource="pods") for verb in ("create", "get", "list", "watch", "patch", "delete")]
    + [Right(verb=verb, resource="configmaps") for verb in ("create", "get", "delete")]
)


async def check(settings: KubernetesSettings, image: str = "") -> Sequence[Check]:
    """`image`: a task's, tried beside the agent's. Raises nothing: whatever fails is a row."""
    try:
        api = await Api.open(settings)
    except Misconfigured as error:
        return [fail("cluster", error.message, "name a context that exists: kubectl config get-contexts")]
    rows: list[Check] = []
    try:
        await _look(api, settings, rows)
        if not any(row.verdict is Verdict.FAIL for row in rows):
            rows += await _trial(settings, image)
    except (k8s.ApiException, Refused, EngineUnavailable, *NO_ANSWER) as error:
        rows.append(unreachable(_host(api), settings.namespace, getattr(error, "status", None), type(error).__name__))
    finally:
        await api.aclose()
    return rows


async def _look(api: Api, settings: KubernetesSettings, rows: list[Check]) -> None:
    """Add what can be told without making anything. Raises what the client does, where the cluster goes away meanwhile."""
    labels = await _reached(api, settings, rows)
    if any(row.verdict is Verdict.FAIL for row in rows):
        return
    rows.append(pod_security(labels, settings.security))
    quotas = await _quotas(api, settings.namespace)
    rows.append(await _permissions(api, settings, quotas))
    rows.append(await _policies(api, settings.namespace))
    rows.append(room(quotas, SMALL_KERNEL if settings.runtime_class else SMALL))
    if name := settings.runtime_class:
        fix = "install it on the nodes and apply k8s/components/gvisor, or leave TILTYARD_KUBE_RUNTIME_CLASS out"
        asked: Awaitable[object] = k8s.NodeV1Api(api.client).read_runtime_class(name)
        rows.append(await _exists("runtime class", "RuntimeClass", name, asked, fix))
    for name in filter(None, (settings.priority_class, settings.warm_priority_class)):
        asked = k8s.SchedulingV1Api(api.client).read_priority_class(name)
        rows.append(await _exists("priority", "PriorityClass", name, asked, APPLY))
    rows.append(_filter(settings))


# ---- the cluster


def _host(api: Api) -> str:
    return str(api.client.configuration.host)


async def _reached(api: Api, settings: KubernetesSettings, rows: list[Check]) -> Mapping[str, str] | None:
    """The namespace's labels; None where it may not be read, which a host need not."""
    host, namespace, core = _host(api), settings.namespace, k8s.CoreV1Api(api.client)
    labels: Mapping[str, str] | None = None
    try:
        try:
            found = await core.read_namespace(namespace, _request_timeout=ANSWER_S)
            labels = (found.metadata and found.metadata.labels) or {}
        except k8s.ApiException as error:
            if error.status != 403:
                raise
            await core.list_namespaced_pod(namespace, limit=1, _request_timeout=ANSWER_S)
    except Exception as error:  # noqa: BLE001  whatever the client raises is what this row is about
        what = "system:anonymous" if "system:anonymous" in str(getattr(error, "body", "")) else type(error).__name__
        rows.append(unreachable(host, namespace, getattr(error, "status", None), what))
    else:
        rows.append(ok("cluster", f"{host} answers, namespace {namespace}"))
    return labels


def unreachable(host: str, namespace: str, status: int | None, what: str) -> Check:
    """`what`: the client's word where there was no answer, or system:anonymous. Pure."""
    if status == 401:
        detail = f"{host} does not know these credentials: they are expired or another cluster's"
        return fail("cluster", detail, "log in again")
    if status == 403 and what == "system:anonymous":
        detail = f"{host} was asked without credentials: the kubeconfig has none, or its login command failed"
        return fail("cluster", detail, "log in again")
    if status == 403:
        return fail("cluster", f"{host} lets nobody with these credentials list pods in {namespace}", AS_HOST)
    if status == 404:
        fix = f"{APPLY}, or name yours: TILTYARD_KUBE_NAMESPACE"
        return fail("namespace", f"{host} has no namespace {namespace}", fix)
    if status is not None:
        return fail("cluster", f"{host} answers {status}", "look at the API server's log")
    if "Certificate" in what or "SSL" in what:
        fix = "fetch its kubeconfig anew, or take another context"
        return fail("cluster", f"{host} is not the cluster that the kubeconfig knows ({what})", fix)
    return fail("cluster", f"{host} does not answer ({what})", "start the cluster, or take another context")


def pod_security(labels: Mapping[str, str] | None, wanted: str) -> Check:
    """`wanted`: the level that boxes keep to, baseline or restricted. Pure."""
    if labels is None:
        return warn("pod security", "the namespace's labels cannot be read", "let hosts get the namespace")
    level = labels.get("pod-security.kubernetes.io/enforce", "privileged")
    if level == "privileged":
        return warn("pod security", "the namespace lets in pods of any kind, not boxes alone", APPLY)
    if level == "restricted" and wanted != "restricted":
        fix = "set TILTYARD_KUBE_SECURITY=restricted, or apply k8s/base, which asks for baseline"
        return fail("pod security", "the namespace refuses boxes that are not of level restricted", fix)
    return ok("pod security", f"the namespace enforces {level}")


def needed(settings: KubernetesSettings, quotas: Sequence[k8s.V1ResourceQuota] | None) -> Sequence[Right]:
    """What a host of these settings asks for. Pure."""
    rights = list(BOXES_RIGHTS)
    if settings.port_forward:
        rights += [Right(verb=verb, resource="pods/portforward") for verb in ("get", "create")]
    if not settings.memory_limit_mib:
        rights.append(Right(verb="list", resource="resourcequotas"))
        if quotas is not None and not any(key.endswith(".memory") for quota in quotas for key in _left(quota)):
            rights.append(Right(verb="list", resource="nodes", everywhere=True))
    return rights


async def _permissions(api: Api, settings: KubernetesSettings, quotas: Sequence[k8s.V1ResourceQuota] | None) -> Check:
    rights = needed(settings, quotas)
    lacking = [str(right) for right in rights if not await _allowed(api, settings.namespace, right)]
    if lacking:
        return fail("permissions", f"not allowed: {', '.join(lacking)}", AS_HOST)
    return ok("permissions", f"all {len(rights)} that a host needs")


async def _allowed(api: Api, namespace: str, right: Right) -> bool:
    resource, _, part = right.resource.partition("/")
    attributes = k8s.V1ResourceAttributes(
        namespace=None if right.everywhere else namespace,
        group=right.group,
        resource=resource,
        subresource=part or None,
        verb=right.verb,
    )
    review = k8s.V1SelfSubjectAccessReview(spec=k8s.V1SelfSubjectAccessReviewSpec(resource_attributes=attributes))
    answer = await k8s.AuthorizationV1Api(api.client).create_self_subject_access_review(review)
    return bool(answer.status and answer.status.allowed)


async def _policies(api: Api, namespace: str) -> Check:
    try:
        found = await k8s.NetworkingV1Api(api.client).list_namespaced_network_policy(namespace)
    except k8s.ApiException as error:
        return warn("policies", f"cannot be read ({error.status})", "let hosts list networkpolicies")
    return shut_off(found.items)


def shut_off(policies: Sequence[k8s.V1NetworkPolicy]) -> Check:
    """Whether boxes are shut off in both directions, by one policy or by several. What others open again only a trial tells. Pure."""
    shut: dict[str, str] = {}
    for policy in policies:
        spec = policy.spec
        if spec is None or not _selects_boxes(spec.pod_selector):
            continue
        rules = {"Ingress": spec.ingress, "Egress": spec.egress}
        shut |= {way: _name(policy) for way in spec.policy_types or () if not rules.get(way)}
    if missing := sorted({"Ingress", "Egress"} - shut.keys()):
        return fail("policies", f"no policy of the namespace shuts boxes off: {', '.join(missing).lower()}", APPLY)
    return ok("policies", f"{', '.join(sorted(set(shut.values())))} shuts boxes off")


def _name(item: k8s.V1NetworkPolicy | k8s.V1ResourceQuota) -> str:
    return str(item.metadata.name) if item.metadata is not None else ""


def _selects_boxes(selector: k8s.V1LabelSelector | None) -> bool:
    if selector is None or selector.match_expressions:
        return selector is None
    return (selector.match_labels or {}).items() <= {ROLE: BOX}.items()


async def _quotas(api: Api, namespace: str) -> Sequence[k8s.V1ResourceQuota] | None:
    """None where they may not be read."""
    try:
        found = await k8s.CoreV1Api(api.client).list_namespaced_resource_quota(namespace)
    except k8s.ApiException as error:
        if error.status != 403:
            raise
        return None
    return list(found.items)


def room(quotas: Sequence[k8s.V1ResourceQuota] | None, limits: Limits) -> Check:
    """Whether two boxes of `limits` fit into what the quotas leave. Pure."""
    if quotas is None:
        return warn("quota", "cannot be read", "let hosts list resourcequotas")
    if not quotas:
        return warn("quota", "none: boxes may take all that the nodes have", APPLY)
    a_box = {
        "pods": 1.0,
        "count/pods": 1.0,
        "cpu": limits.cpus,
        "memory": limits.memory_mib * 2.0**20,
        "ephemeral-storage": (limits.disk_mib + JOURNAL_MIB) * 2.0**20,
    }
    left = {(_name(quota), key): amount for quota in quotas for key, amount in _left(quota).items()}
    short = [
        f"{key} of {name}"
        for (name, key), amount in left.items()
        if amount < BOXES * a_box.get(key.removeprefix("requests.").removeprefix("limits."), 0.0)
    ]
    if short:
        return fail(
            "quota", f"too little is left of: {', '.join(short)}", "end what lives there, or raise it: k8s/base"
        )
    pods = min((round(amount) for (_, key), amount in left.items() if key == "pods"), default=None)
    return ok("quota", "leaves room" if pods is None else f"leaves room for {pods} pods")


def _left(quota: k8s.V1ResourceQuota) -> Mapping[str, float]:
    """Resource -> what may still be asked of it. A quota with a scope may not be about boxes."""
    if quota.spec is not None and (quota.spec.scopes or quota.spec.scope_selector):
        return {}
    hard = (quota.spec and quota.spec.hard) or {}
    used = (quota.status and quota.status.used) or {}
    return {key: float(parse_quantity(amount) - parse_quantity(used.get(key, "0"))) for key, amount in hard.items()}


async def _exists(row: str, kind: str, name: str, asked: Awaitable[object], fix: str) -> Check:
    try:
        await asked
    except k8s.ApiException as error:
        if error.status == 403:
            return warn(row, f"{name} may be there: it cannot be read", AS_HOST)
        return fail(row, f"the cluster has no {kind} {name!r} ({error.status})", fix)
    return ok(row, name)


def _filter(settings: KubernetesSettings) -> Check:
    if settings.seccomp_profile:
        return ok("seccomp", f"ours, as {settings.seccomp_profile} on each node")
    fix = "copy orchestrator/backends/seccomp/tiltyard.json below the kubelets' seccomp folder and set TILTYARD_KUBE_SECCOMP_PROFILE"
    return warn("seccomp", "the runtime's default filter, which lets through more than ours", fix)


# ---- the trial


async def _trial(settings: KubernetesSettings, image: str) -> Sequence[Check]:
    """Two boxes: that they start, that this process reaches them, and that they do not reach each other."""
    with tempfile.TemporaryDirectory(prefix="tiltyard-check-") as folder:
        # A deployment of its own, key included: one that is served from here is left alone.
        short = replace(
            settings,
            deployment=f"check-{secrets.token_hex(3)}",
            state_dir=Path(folder),
            warm_boxes=0,
            start_s=min(settings.start_s, TRIAL_S),
        )
        rows: list[Check] = []
        try:
            async with KubernetesBackend(short) as backend:
                rows += await _two_boxes(backend, short, image or short.agent_image or agent_image_reference())
        except TiltyardError as error:
            rows.append(fail("box", error.message, start_fix(error.message)))
        finally:
            left = await _forget(short)
        return [*rows, *left]


def start_fix(message: str) -> str:
    """Pure."""
    if "ull" in message and "image" in message:
        return "push the image where the nodes pull it: `tiltyard deploy agent-image` makes the agent's"
    if "room" in message or "quota" in message:
        return "free some, add a node, or raise the quota of k8s/base"
    if any(words in message for words in ("agent does not answer", "not reached", "come up")):
        return f"let this process reach pods at port {AGENT_PORT}: run it in the cluster, on a node, or with TILTYARD_KUBE_PORT_FORWARD=true"
    return "kubectl get events -n tiltyard-sandboxes says more"


async def _two_boxes(backend: KubernetesBackend, settings: KubernetesSettings, image: str) -> Sequence[Check]:
    names = [SandboxId(f"check-{secrets.token_hex(4)}") for _ in range(BOXES)]
    spec = SandboxSpec(image=image, template=None, limits=SMALL_KERNEL if settings.runtime_class else SMALL)
    began = time.monotonic()
    boxes: dict[SandboxId, Sandbox] = {}
    try:
        for name in names:
            boxes[name] = await backend.create(name, spec, deadline=time.monotonic() + settings.start_s)
            await boxes[name].lease(RolloutKey(job=JobId("check"), trace_id=TraceId(name)), Epoch(1))
        took_s = time.monotonic() - began
        other = next(pod.ip for pod in backend.informer.pods.values() if pod.sandbox == names[1])
        targets = {f"{other} {AGENT_PORT}": "another box", **await _places(_host(backend.api))}
        facts = await dial(boxes[names[0]], probe_binary(), [OWN_AGENT, *targets])
        return [ok("box", f"two started in {took_s:.1f} s and were reached"), network(facts, targets)]
    finally:
        for name in names:
            try:
                await backend.destroy(name)
            except (SandboxError, EngineUnavailable):
                continue  # they go with their owner


async def _places(url: str) -> Mapping[str, str]:
    """What no box may reach, by address and port: a box has no names, so that one would prove nothing."""
    split = urlsplit(url)
    name, port = split.hostname or "", split.port or (80 if split.scheme == "http" else 443)
    try:
        found = await asyncio.get_running_loop().getaddrinfo(name, port)
        name = str(found[0][4][0])
    except OSError:
        pass  # a proxy of this machine's knows it
    return {f"{name} {port}": "the API server", "169.254.169.254 80": "the metadata service"}


def network(facts: Mapping[str, str], targets: Mapping[str, str]) -> Check:
    """`facts`: target -> what the box's probe met there. Closed only if the probe was seen to reach what it may reach. Pure."""
    if facts.get(OWN_AGENT) != "connected" or not targets.keys() <= facts.keys():
        return fail("network", "a box's probe does not even reach its own agent: nothing is proved", "report this")
    return enforced(facts, targets)


def enforced(facts: Mapping[str, str], targets: Mapping[str, str]) -> Check:
    """Only what was connected got through: some enforcers drop, others refuse. Pure."""
    open_to = [name for target, name in targets.items() if facts.get(target) == "connected"]
    if open_to:
        fix = "take a network plugin that enforces NetworkPolicy (Calico, Cilium, kube-router): boxes are open without"
        return fail("network", f"a box reaches {', '.join(open_to)}: policies are not enforced", fix)
    return ok("network", f"a box reaches none of: {', '.join(targets.values())}")


async def _forget(settings: KubernetesSettings) -> Sequence[Check]:
    """Remove the trial's own object, with which its pods would go; a row where it stays."""
    name = f"tiltyard-{settings.deployment}"
    try:
        api = await Api.open(settings)
    except Misconfigured:
        return [_left_behind(name, settings.namespace)]
    try:
        await k8s.CoreV1Api(api.client).delete_namespaced_config_map(name, settings.namespace)
    except k8s.ApiException as error:
        return [] if error.status == 404 else [_left_behind(name, settings.namespace)]
    except NO_ANSWER:
        return [_left_behind(name, settings.namespace)]
    finally:
        await api.aclose()
    return []


def _left_behind(name: str, namespace: str) -> Check:
    return warn("clean-up", f"the trial's object {name} stays", f"kubectl delete configmap {name} -n {namespace}")
