"""One shared look at the cluster: the pods of a deployment, listed once and watched from then on. Nothing polls."""

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Protocol

from orchestrator.backends.kubernetes.api import AGAIN, NO_ANSWER, Event, Refused
from orchestrator.backends.kubernetes.facts import PodFacts, facts_of
from orchestrator.errors import EngineUnavailable

log = logging.getLogger(__name__)

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 10.0
GONE = 410


class PodSource(Protocol):
    """What the informer asks: `orchestrator.backends.kubernetes.api.Api`."""

    async def list_pods(self, selector: str) -> tuple[Sequence[Mapping[str, Any]], str]: ...

    def watch_pods(self, selector: str, version: str) -> AsyncIterator[Event]: ...


class PodInformer:
    """`pods` by name, as last heard. `changed` is called with what was and what is (None: it is gone), on the loop."""

    def __init__(
        self, api: PodSource, selector: str, changed: Callable[[PodFacts | None, PodFacts | None], None]
    ) -> None:
        self._api = api
        self._selector = selector
        self._changed = changed
        self._pods: dict[str, PodFacts] = {}
        self._news = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None
        self.relists = 0

    @property
    def pods(self) -> Mapping[str, PodFacts]:
        return self._pods

    async def start(self) -> None:
        """Returns when the first list is there. Raises Refused, EngineUnavailable."""
        version = await self._list()
        self._task = asyncio.create_task(self._run(version), name="watch pods")

    async def aclose(self) -> None:
        """Idempotent."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def until(self, name: str, true: Callable[[PodFacts | None], bool], *, deadline: float) -> PodFacts | None:
        """The pod, once `true` holds of it. Raises TimeoutError at `deadline`."""
        async with asyncio.timeout(max(0.0, deadline - time.monotonic())), self._news:
            await self._news.wait_for(lambda: true(self._pods.get(name)))
        return self._pods.get(name)

    async def heard(self, pod: PodFacts) -> None:
        """What a reply to a request of ours told before the watch did."""
        known = self._pods.get(pod.name)
        if known is None:
            await self._set(pod.name, pod)

    async def _run(self, version: str) -> None:
        pause_s = FIRST_PAUSE_S
        while True:
            began = time.monotonic()
            try:
                version = await self._watch(version)
            except Refused as error:
                if error.status not in AGAIN and error.status != GONE:
                    log.warning("the watch of pods was refused: %s", error)
                version = ""
            except NO_ANSWER as error:
                log.info("the watch of pods was cut (%s); it goes on", type(error).__name__)
            pause_s = FIRST_PAUSE_S if time.monotonic() - began > LONGEST_PAUSE_S else min(2 * pause_s, LONGEST_PAUSE_S)
            while not version:
                await asyncio.sleep(pause_s * random.uniform(0.5, 1.5))  # noqa: S311
                try:
                    version = await self._list()
                except (Refused, EngineUnavailable) as error:
                    log.warning("pods cannot be listed: %s", error)
                    pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            await asyncio.sleep(0.05)

    async def _list(self) -> str:
        """Everything anew: what ended while nobody watched is told as gone."""
        items, version = await self._api.list_pods(self._selector)
        self.relists += 1
        found = {pod.name: pod for pod in map(facts_of, items)}
        for name in self._pods.keys() - found.keys():
            await self._set(name, None)
        for name, pod in found.items():
            await self._set(name, pod)
        return str(version)

    async def _watch(self, version: str) -> str:
        """The version to go on from; empty where the server must be asked for a list."""
        try:
            async for event in self._api.watch_pods(self._selector, version):
                version = event.object["metadata"]["resourceVersion"]
                await self._take(event)
        except NO_ANSWER as error:
            log.info("the watch of pods was cut (%s); it goes on", type(error).__name__)
        return version

    async def _take(self, event: Event) -> None:
        if event.kind == "BOOKMARK":
            return
        pod = facts_of(event.object)
        await self._set(pod.name, None if event.kind == "DELETED" else pod)

    async def _set(self, name: str, pod: PodFacts | None) -> None:
        before = self._pods.get(name)
        if pod is None:
            self._pods.pop(name, None)
        else:
            self._pods[name] = pod
        async with self._news:
            self._news.notify_all()
        self._changed(before, pod)
