"""The API server, as far as boxes need it: a few requests, each with a bounded, jittered backoff, over the `kubernetes` package's aio client."""

import asyncio
import json
import logging
import os
import random
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import aiohttp
import yaml
from kubernetes.aio import client as k8s
from kubernetes.aio import config
from kubernetes.aio.client.exceptions import ApiException

from orchestrator.backends.kubernetes.pods import Owner
from orchestrator.backends.kubernetes.settings import KubernetesSettings
from orchestrator.errors import EngineUnavailable, Misconfigured, StartFailed

log = logging.getLogger(__name__)

Body = Mapping[str, Any]
"""An object as the API server has it, in JSON."""

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0
AGAIN = frozenset({429, 500, 502, 503, 504})
WATCH_S = 300
"""The server ends a watch after this; a new one goes on from its last bookmark."""
NO_ANSWER = (aiohttp.ClientError, TimeoutError, ConnectionError, ssl.SSLError, OSError)


class Refused(Exception):
    """An answer of the API server that is no success. `reason` is its own word for it: NotFound, AlreadyExists, Forbidden, Expired, ..."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Of a watch: ADDED, MODIFIED, DELETED, BOOKMARK."""

    kind: str
    object: Body


NO_KUBECONFIG = (config.ConfigException, yaml.YAMLError, OSError, ValueError, TypeError, KeyError, AttributeError)
"""What the package raises for files that are missing, no YAML, or YAML of another kind."""


async def connect(settings: KubernetesSettings) -> k8s.ApiClient:
    """Of the context that is set, the kubeconfig's current one, or the pod's own service account. Raises Misconfigured."""
    configuration = k8s.Configuration()
    try:
        await _configure(configuration, settings.context)
        return k8s.ApiClient(configuration=configuration)
    except NO_KUBECONFIG as error:
        told = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise Misconfigured(
            f"no cluster to serve on ({told}): set KUBECONFIG or TILTYARD_KUBE_CONTEXT, or serve inside of a cluster"
        ) from error


async def _configure(configuration: k8s.Configuration, context: str) -> None:
    # Read now: the package reads it once, when it is imported.
    file = os.environ.get("KUBECONFIG") or None
    if context or file:
        await config.load_kube_config(
            config_file=file, context=context or None, client_configuration=configuration, persist_config=False
        )
        return
    try:
        config.load_incluster_config(client_configuration=configuration)
    except config.ConfigException:
        await config.load_kube_config(client_configuration=configuration, persist_config=False)


class Api:
    """Owner of its connections: `aclose`. May be shared by many tasks of one loop."""

    def __init__(self, client: k8s.ApiClient, settings: KubernetesSettings) -> None:
        self.client = client
        self._core = k8s.CoreV1Api(client)
        self._settings = settings
        self._namespace = settings.namespace
        self.writes = 0
        """Requests that changed something, for the benchmark of writes per rollout."""

    @classmethod
    async def open(cls, settings: KubernetesSettings) -> Self:
        """Raises Misconfigured."""
        return cls(await connect(settings), settings)

    async def aclose(self) -> None:
        """Idempotent."""
        await self.client.close()

    async def create_pod(self, pod: k8s.V1Pod, *, deadline: float) -> Body:
        """The pod as stored. A reply that was lost is made up for: the pod of that name, if it is this one. Raises Refused, EngineUnavailable."""
        body = self.client.sanitize_for_serialization(pod)
        self.writes += 1
        sent = 0

        async def create() -> Any:
            nonlocal sent
            sent += 1
            try:
                return await self._read(self._core.create_namespaced_pod_without_preload_content(self._namespace, body))
            except Refused as error:
                if error.status != 409 or sent == 1:
                    raise
            found = await self._read(
                self._core.read_namespaced_pod_without_preload_content(body["metadata"]["name"], self._namespace)
            )
            if found["metadata"].get("labels") != body["metadata"]["labels"]:
                raise Refused(409, "AlreadyExists", "a pod of that name that is not this box")
            return found

        stored: Body = await self._again(create, deadline)
        return stored

    async def read_pod(self, name: str) -> Body | None:
        """None when there is none. Raises Refused, EngineUnavailable."""
        try:
            found: Body = await self._again(
                lambda: self._read(self._core.read_namespaced_pod_without_preload_content(name, self._namespace))
            )
        except Refused as error:
            if error.status == 404:
                return None
            raise
        return found

    async def delete_pod(self, name: str, *, grace_s: int | None = None) -> None:
        """Idempotent. `grace_s` 0: do not wait for the node, which may be gone. Raises Refused, EngineUnavailable."""
        self.writes += 1
        try:
            await self._again(
                lambda: self._read(
                    self._core.delete_namespaced_pod_without_preload_content(
                        name, self._namespace, grace_period_seconds=grace_s, propagation_policy="Background"
                    )
                )
            )
        except Refused as error:
            if error.status != 404:
                raise

    async def patch_pod(self, name: str, patch: Body) -> None:
        """Raises Refused, EngineUnavailable."""
        self.writes += 1
        await self._again(
            lambda: self._read(
                self._core.patch_namespaced_pod_without_preload_content(
                    name, self._namespace, dict(patch), _content_type="application/merge-patch+json"
                )
            )
        )

    async def list_pods(self, selector: str) -> tuple[Sequence[Body], str]:
        """The pods, and the version that a watch goes on from. Raises Refused, EngineUnavailable."""
        found = await self._again(
            lambda: self._read(
                self._core.list_namespaced_pod_without_preload_content(self._namespace, label_selector=selector)
            )
        )
        return found["items"], found["metadata"]["resourceVersion"]

    async def watch_pods(self, selector: str, version: str) -> AsyncIterator[Event]:
        """Until the server or the wire ends it. Raises Refused (410: list anew), and what aiohttp raises."""
        response = await self._core.list_namespaced_pod_without_preload_content(
            self._namespace,
            label_selector=selector,
            resource_version=version,
            watch=True,
            allow_watch_bookmarks=True,
            timeout_seconds=WATCH_S,
            _request_timeout=float(WATCH_S + 30),
        )
        stream = response
        try:
            if stream.status != 200:
                raise _refusal(stream.status, await stream.read())
            async for line in stream.content:
                event = json.loads(line)
                if event["type"] == "ERROR":
                    status = event["object"]
                    raise Refused(status.get("code", 500), status.get("reason", ""), status.get("message", ""))
                yield Event(kind=event["type"], object=event["object"])
        finally:
            stream.close()

    async def owner(self) -> Owner:
        """The deployment's own object, made at its first use: what it owns goes with it. Raises Refused, EngineUnavailable."""
        name = f"tiltyard-{self._settings.deployment}"
        labels = {"app.kubernetes.io/managed-by": "tiltyard"}
        body = k8s.V1ConfigMap(metadata=k8s.V1ObjectMeta(name=name, labels=labels))
        try:
            found = await self._again(
                lambda: self._read(self._core.read_namespaced_config_map_without_preload_content(name, self._namespace))
            )
        except Refused as error:
            if error.status != 404:
                raise
            found = await self._again(
                lambda: self._read(
                    self._core.create_namespaced_config_map_without_preload_content(self._namespace, body)
                )
            )
        return Owner(name=name, uid=found["metadata"]["uid"])

    async def quota_memory_mib(self) -> int | None:
        """What the namespace's quota leaves to boxes in all; None without a quota on memory. Raises Refused, EngineUnavailable."""
        found = await self._again(
            lambda: self._read(self._core.list_namespaced_resource_quota_without_preload_content(self._namespace))
        )
        hard = [item["spec"].get("hard") or {} for item in found["items"]]
        memory = [entry[key] for entry in hard for key in ("limits.memory", "requests.memory") if key in entry]
        return min((mib(amount) for amount in memory), default=None)

    async def nodes_memory_mib(self) -> int:
        """What all nodes together give to pods. Raises Refused, EngineUnavailable."""
        found = await self._again(lambda: self._read(self._core.list_node_without_preload_content()))
        return sum(mib(item["status"]["allocatable"]["memory"]) for item in found["items"])

    async def _again(self, ask: Callable[[], Awaitable[Any]], deadline: float | None = None) -> Any:
        """`ask` until it is answered, at most until `deadline` (a request's time without one)."""
        give_up = deadline if deadline is not None else time.monotonic() + self._settings.request_timeout_s
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                return await asyncio.wait_for(ask(), max(0.1, give_up - time.monotonic()))
            except Refused as error:
                if error.status not in AGAIN:
                    raise
                failure: Exception = error
            except NO_ANSWER as error:
                failure = error
            wait_s = pause_s * random.uniform(0.5, 1.5)  # noqa: S311  (so that many hosts do not come back at once)
            if time.monotonic() + wait_s > give_up:
                raise EngineUnavailable(f"the API server does not answer as it must: {_words(failure)}") from failure
            await asyncio.sleep(wait_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _read(self, request: Awaitable[Any]) -> Any:
        try:
            response = await request
        except ApiException as error:
            raise Refused(error.status or 500, error.reason or "", str(error.body or "")[:300]) from error
        async with response:
            body = await response.read()
        if not 200 <= response.status <= 299:
            raise _refusal(response.status, body)
        return json.loads(body)


def _refusal(status: int, body: bytes) -> Refused:
    try:
        said = json.loads(body)
        return Refused(status, str(said.get("reason") or ""), str(said.get("message") or "")[:500])
    except (ValueError, AttributeError):
        return Refused(status, "", body[:200].decode("utf-8", "replace"))


def _words(error: Exception) -> str:
    return f"{error.status} {error.reason}" if isinstance(error, Refused) else type(error).__name__


def opening_refusal(error: Refused, namespace: str) -> Misconfigured:
    """Of a backend that opens its connections. Pure."""
    advice = "`tiltyard deploy check` names what lacks"
    if error.status == 401:
        advice = "the credentials of the kubeconfig are expired or unknown to this cluster: log in again"
    elif error.status == 404:
        advice = f"namespace {namespace!r} is missing: kubectl apply -k k8s/base"
    return Misconfigured(f"the cluster refuses: {error.message or error.reason} ({error.status}): {advice}")


def start_refusal(error: Refused) -> StartFailed | Misconfigured:
    """Of a pod that the API server would not store. Pure."""
    if error.status == 403 and "quota" in error.message:
        return QuotaFull(f"the namespace's quota is full: {error.message}")
    if error.status == 403:
        return Misconfigured(f"the cluster forbids this pod: {error.message}: `tiltyard deploy check` names what lacks")
    if error.status == 422:
        return Misconfigured(f"the cluster finds this pod invalid: {error.message}")
    if error.status == 404:
        return Misconfigured(f"the cluster has no such namespace: {error.message}: kubectl apply -k k8s/base")
    return StartFailed(f"the cluster took no pod: {error}")


class QuotaFull(StartFailed):
    """Room comes when other boxes end."""


UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "m": 1e-3}


def mib(amount: str) -> int:
    """A quantity of memory in Kubernetes' notation (a number, perhaps an exponent or unit)."""
    for unit, factor in UNITS.items():
        if amount.endswith(unit):
            return int(float(amount.removesuffix(unit)) * factor / 2**20)
    return int(float(amount) / 2**20)
