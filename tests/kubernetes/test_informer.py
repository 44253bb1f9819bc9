"""The shared look at pods: what is cut goes on, what is too old is listed anew, what went meanwhile is told."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from orchestrator.backends.kubernetes.api import Event, Refused
from orchestrator.backends.kubernetes.facts import PodFacts
from orchestrator.backends.kubernetes.informer import PodInformer

pytestmark = pytest.mark.anyio


def a_pod(name: str, version: int, phase: str = "Running") -> dict[str, Any]:
    stamp = "2026-11-28T00:00:00Z"
    meta = {"name": name, "uid": name, "resourceVersion": str(version), "creationTimestamp": stamp}
    return {"metadata": meta, "status": {"phase": phase}}


class Source:
    """An API server by script: each watch takes the next list of events, or raises."""

    def __init__(self, lists: Sequence[list[dict[str, Any]]], watches: Sequence[Any]) -> None:
        self.lists, self.watches = list(lists), list(watches)
        self.versions: list[str] = []

    async def list_pods(self, selector: str) -> tuple[list[dict[str, Any]], str]:
        return self.lists.pop(0), f"l{len(self.lists)}"

    async def watch_pods(self, selector: str, version: str) -> AsyncIterator[Event]:
        self.versions.append(version)
        script = self.watches.pop(0) if self.watches else []
        if not script:
            await asyncio.sleep(3600)
        for step in script:
            if isinstance(step, Exception):
                raise step
            kind, pod = step
            yield Event(kind=kind, object=pod)


async def informed(source: Source, changes: list[tuple[str, str]]) -> PodInformer:
    def changed(before: PodFacts | None, pod: PodFacts | None) -> None:
        changes.append((before.phase if before else "-", pod.phase if pod else "-"))

    informer = PodInformer(source, "x=y", changed)
    await informer.start()
    return informer


async def test_a_cut_watch_goes_on_where_it_was() -> None:
    source = Source([[a_pod("a", 1)]], [[("ADDED", a_pod("b", 5)), ConnectionError()], [("DELETED", a_pod("a", 6))]])
    changes: list[tuple[str, str]] = []
    informer = await informed(source, changes)
    await informer.until("a", lambda pod: pod is None, deadline=time.monotonic() + 10)
    assert list(informer.pods) == ["b"]
    assert source.versions == ["l0", "5"]
    await informer.aclose()


async def test_a_bookmark_moves_on_and_says_nothing() -> None:
    mark = {"metadata": {"resourceVersion": "9"}}
    source = Source([[]], [[("BOOKMARK", mark)], [("ADDED", a_pod("a", 10))]])
    changes: list[tuple[str, str]] = []
    informer = await informed(source, changes)
    await informer.until("a", lambda pod: pod is not None, deadline=time.monotonic() + 10)
    assert source.versions[:2] == ["l0", "9"]
    assert changes == [("-", "Running")]
    await informer.aclose()


async def test_too_old_a_version_is_listed_anew_and_what_went_is_told() -> None:
    source = Source([[a_pod("a", 1), a_pod("b", 2)], [a_pod("b", 8, "Failed")]], [[Refused(410, "Expired", "too old")]])
    changes: list[tuple[str, str]] = []
    informer = await informed(source, changes)
    await informer.until("a", lambda pod: pod is None, deadline=time.monotonic() + 10)
    await informer.until("b", lambda pod: bool(pod and pod.over), deadline=time.monotonic() + 10)
    assert informer.relists == 2
    assert changes[2:] == [("Running", "-"), ("Running", "Failed")]
    await informer.aclose()


async def test_waiting_ends_at_its_deadline() -> None:
    informer = await informed(Source([[]], []), [])
    with pytest.raises(TimeoutError):
        await informer.until("a", lambda pod: pod is not None, deadline=time.monotonic() + 0.05)
    await informer.aclose()
