"""Another process: what tests of several processes, and of processes that are killed, run. `python -m tests.repos.worker VERB ...`."""

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

from orchestrator.models import Limits, SandboxId
from orchestrator.repos.fakes import FakeImages, FakeSetup
from orchestrator.repos.plain import PlainWorkspaces
from orchestrator.repos.rooted import RootWorkspaces
from orchestrator.repos.templates import TemplateCache
from orchestrator.repos.uids import UidRegistry
from tests.repos.conftest import make_task


def say(text: str) -> None:
    """Marked, since the log goes to stdout, too."""
    print(f"> {text}", flush=True)


async def build(root: str, repo: str, sha: str, log: str, times: str) -> None:
    """`times` simultaneous first rollouts; each real build adds one line to `log`."""

    def effect(tree: Path, upper: Path) -> None:
        with open(log, "a") as file:
            file.write(f"{os.getpid()}\n")
        (upper / "made").write_text("by set-up\n")

    cache = TemplateCache(Path(root), setup=FakeSetup(effect=effect), images=FakeImages())
    task = make_task(repo, sha, setup=("make",))
    templates = await asyncio.gather(*(cache.template(task, deadline=time.monotonic() + 60) for _ in range(int(times))))
    say(" ".join(sorted({template.key for template in templates})))


async def hang_in_setup(root: str, repo: str, sha: str) -> None:
    def effect(tree: Path, upper: Path) -> None:
        (upper / "half").write_text("done\n")
        say("building")
        signal.pause()

    cache = TemplateCache(Path(root), setup=FakeSetup(effect=effect), images=FakeImages())
    await cache.template(make_task(repo, sha, setup=("make",)), deadline=time.monotonic() + 60)


async def fetch(root: str, repo: str, sha: str) -> None:
    cache = TemplateCache(Path(root), setup=FakeSetup(), images=FakeImages())
    await cache.template(make_task(repo, sha), deadline=time.monotonic() + 60)


async def claim(registry: str, boxes: str, prefix: str, count: str) -> None:
    uids = UidRegistry(Path(registry))
    for number in range(int(count)):
        box = Path(boxes) / f"{prefix}{number}"
        box.mkdir()
        say(str(uids.claim(box).base))


async def prepare(state: str, registry: str, root: str, repo: str, sha: str, *names: str) -> None:
    """Make boxes, say so, and wait to be killed."""
    cache = TemplateCache(Path(root), setup=FakeSetup(), images=FakeImages())
    template = await cache.template(make_task(repo, sha), deadline=time.monotonic() + 60)
    workspaces = RootWorkspaces(Path(state), "dep", registry=Path(registry))
    for name in names:
        await workspaces.prepare(SandboxId(name), template, Limits(disk_mib=16, inodes=1000))
    say("ready")
    signal.pause()


async def churn(state: str, registry: str, root: str, repo: str, sha: str) -> None:
    """Make and remove boxes until killed, so that the kill falls anywhere."""
    cache = TemplateCache(Path(root), setup=FakeSetup(), images=FakeImages())
    template = await cache.template(make_task(repo, sha), deadline=time.monotonic() + 60)
    workspaces = RootWorkspaces(Path(state), "dep", registry=Path(registry))

    async def one(name: SandboxId) -> None:
        while True:
            await workspaces.prepare(name, template, Limits(disk_mib=16, inodes=1000))
            await workspaces.remove(name)

    say("ready")
    await asyncio.gather(*(one(SandboxId(name)) for name in ("a", "b", "c")))


async def plain(state: str, root: str, repo: str, sha: str) -> None:
    """The whole path without root."""

    def effect(tree: Path, upper: Path) -> None:
        (upper / "src" / "a.py").unlink()
        (upper / "made").write_text("by set-up\n")

    cache = TemplateCache(Path(root), setup=FakeSetup(effect=effect), images=FakeImages())
    for task in (make_task(repo, sha), make_task(repo, sha, setup=("make",))):
        template = await cache.template(task, deadline=time.monotonic() + 60)
        say(" ".join(sorted(template.manifest)))
    workspaces = PlainWorkspaces(Path(state), "dep")
    made = await workspaces.prepare(SandboxId("one"), template, Limits())
    say(f"{made.uid_base} {made.uid_count} {made.capped}")
    await workspaces.remove(SandboxId("one"))
    say(str(await workspaces.owned()))


VERBS = {verb.__name__: verb for verb in (build, hang_in_setup, fetch, claim, prepare, churn, plain)}

if __name__ == "__main__":
    asyncio.run(VERBS[sys.argv[1]](*sys.argv[2:]))
