"""kubernetes-sigs/agent-sandbox on the same cluster: a warm pool of the same image and size, and how long a claim takes to be ready."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from kubernetes.aio import client as k8s
from kubernetes.aio import config

GROUP, VERSION = "extensions.agents.x-k8s.io", "v1alpha1"
NAMESPACE = "default"
READY_S = 300.0
LOOK_S = 0.01


class Pool:
    """A warm pool; `claim` gives the seconds until one is ready."""

    def __init__(self, api: k8s.CustomObjectsApi, name: str) -> None:
        self._api = api
        self._name = name

    async def create(self, plural: str, kind: str, name: str, spec: Mapping[str, Any]) -> None:
        body = {"apiVersion": f"{GROUP}/{VERSION}", "kind": kind, "metadata": {"name": name}, "spec": spec}
        await self._api.create_namespaced_custom_object(GROUP, VERSION, NAMESPACE, plural, body)

    async def look(self, plural: str, name: str) -> Mapping[str, Any]:
        found: Any = await self._api.get_namespaced_custom_object(GROUP, VERSION, NAMESPACE, plural, name)
        status: Mapping[str, Any] = found.get("status") or {}
        return status

    async def delete(self, plural: str, name: str) -> None:
        await self._api.delete_namespaced_custom_object(GROUP, VERSION, NAMESPACE, plural, name)

    async def full(self, count: int) -> None:
        deadline = time.monotonic() + READY_S
        while (await self.look("sandboxwarmpools", self._name)).get("readyReplicas", 0) < count:
            assert time.monotonic() < deadline, "the peer's pool is not full in time"
            await asyncio.sleep(0.5)

    async def claim(self) -> float:
        name = f"claim-{secrets.token_hex(4)}"
        began = time.perf_counter()
        await self.create("sandboxclaims", "SandboxClaim", name, {"sandboxTemplateRef": {"name": self._name}})
        while True:
            conditions = (await self.look("sandboxclaims", name)).get("conditions") or ()
            if any(entry["type"] == "Ready" and entry["status"] == "True" for entry in conditions):
                break
            await asyncio.sleep(LOOK_S)
        took_s = time.perf_counter() - began
        await self.delete("sandboxclaims", name)
        return took_s


@asynccontextmanager
async def pool(kubeconfig: Path, image: str, resources: Mapping[str, str], count: int) -> AsyncIterator[Pool]:
    configuration = k8s.Configuration()
    await config.load_kube_config(config_file=str(kubeconfig), client_configuration=configuration, persist_config=False)
    name = f"peer-{secrets.token_hex(3)}"
    container = {
        "name": "c",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["sleep", "3600"],
        "resources": {"requests": dict(resources), "limits": dict(resources)},
    }
    pod = {
        "spec": {"containers": [container], "terminationGracePeriodSeconds": 1, "automountServiceAccountToken": False}
    }
    async with k8s.ApiClient(configuration=configuration) as client:
        made = Pool(k8s.CustomObjectsApi(client), name)
        await made.create("sandboxtemplates", "SandboxTemplate", name, {"podTemplate": pod})
        await made.create(
            "sandboxwarmpools", "SandboxWarmPool", name, {"replicas": count, "sandboxTemplateRef": {"name": name}}
        )
        try:
            await made.full(count)
            yield made
        finally:
            await made.delete("sandboxwarmpools", name)
            await made.delete("sandboxtemplates", name)


async def claims(
    kubeconfig: Path, image: str, resources: Mapping[str, str], one_by_one: int, at_once: int
) -> tuple[Sequence[float], Sequence[float]]:
    """Seconds of each, its pool full before each kind."""
    async with pool(kubeconfig, image, resources, at_once) as peer:
        single = [await peer.claim() for _ in range(one_by_one)]
        await peer.full(at_once)
        return single, await asyncio.gather(*(peer.claim() for _ in range(at_once)))
