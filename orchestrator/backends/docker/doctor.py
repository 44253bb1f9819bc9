"""What `tiltyard doctor` says of the engine: facts gathered in one place, verdicts by pure functions."""

import asyncio
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.backends.checks import Check, fail, ok, warn
from orchestrator.backends.docker import base_images
from orchestrator.backends.docker.egress.namespaces import missing_commands
from orchestrator.backends.docker.engine import Engine
from orchestrator.backends.docker.facts import EngineFacts
from orchestrator.backends.docker.runtimes import (
    Kind,
    Program,
    check_runtime,
    expected_kind,
    look_up,
    named_kind,
    numbers,
)
from orchestrator.backends.docker.settings import DockerSettings, engine_socket
from orchestrator.backends.seccomp import profile
from orchestrator.errors import EngineUnavailable, Misconfigured

MIN_API = (1, 41)
"""Docker 20.10: the first whose engine knows private cgroup namespaces and error numbers in seccomp profiles."""
LEAST_FREE_BYTES = 5 * 1024**3
"""Images, templates and a few boxes; below it starts begin to fail with words that mislead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    folder: str
    free_bytes: int


def check_engine(facts: EngineFacts) -> Check:
    detail = f"Docker {facts.version}, API {facts.api_version}"
    if numbers(facts.api_version) < MIN_API:
        return fail("engine", f"{detail}: too old", "install Docker 20.10 or newer")
    return ok("engine", detail)


def check_limits_work(facts: EngineFacts) -> Check:
    wanted = {
        "memory": facts.memory_limit,
        "swap": facts.swap_limit,
        "pids": facts.pids_limit,
        "cpu": facts.cpu_quota,
    }
    missing = [name for name, present in wanted.items() if not present]
    detail = f"cgroup v{facts.cgroup_version}"
    if missing:
        return fail(
            "cgroups",
            f"{detail} without limits for: {', '.join(missing)}",
            "boot with cgroup_enable=memory swapaccount=1, or with the unified hierarchy",
        )
    return ok("cgroups", f"{detail}; memory, swap, pids and cpu limits hold")


def check_live_restore(facts: EngineFacts) -> Check:
    if facts.live_restore:
        return ok("live-restore", "boxes outlive a restart of the engine")
    return warn(
        "live-restore",
        "a restart of the engine ends every box",
        'put {"live-restore": true} into /etc/docker/daemon.json and reload the engine',
    )


def check_storage(facts: EngineFacts) -> Check:
    detail = f"{facts.storage_driver} on {facts.backing_filesystem or 'an unnamed file system'}"
    if "overlay" not in facts.storage_driver:
        return warn("storage driver", f"{detail}: starts copy the image", "use overlay2 over ext4 or xfs")
    return ok("storage driver", detail)


def check_user_namespaces(facts: EngineFacts) -> Check:
    if any("name=userns" in option for option in facts.security_options):
        return fail(
            "user namespaces",
            "the engine remaps users, so that shared folders would belong to nobody in a box",
            "remove userns-remap from /etc/docker/daemon.json",
        )
    if any("name=rootless" in option for option in facts.security_options):
        return fail("user namespaces", "a rootless engine cannot mount workspaces", "use the system's engine")
    return ok("user namespaces", "uids are the machine's; each box has a block of its own")


def check_seccomp(facts: EngineFacts, kind: Kind, broken: str) -> Check:
    """`broken`: why the filter cannot be used, empty when it can."""
    if broken:
        return fail("seccomp", broken, "install tiltyard again, or unset what names another filter")
    if any("name=seccomp" in option for option in facts.security_options):
        own = "the filter is gVisor's own, before the machine's kernel; ours is not applied in the box"
        return ok("seccomp", own if kind is Kind.GVISOR else "the engine applies our filter")
    return fail(
        "seccomp",
        "the engine was built without seccomp",
        "install an engine with seccomp, for example Debian's docker.io",
    )


def check_disk(disk: Disk) -> Check:
    free = f"{disk.free_bytes / 1024**3:.1f} GiB free at {disk.folder}"
    if disk.free_bytes < LEAST_FREE_BYTES:
        return warn("disk", free, "free some space: docker system prune, or a larger disk")
    return ok("disk", free)


def check_rights(euid: int) -> Check:
    if euid == 0:
        return ok("rights", "root: a uid block and a hard disk cap for each box")
    return warn(
        "rights",
        "not root: agent and commands of a box share one uid with all boxes, and disk space is watched, not capped",
        "run the server as root where the rollouts are hostile",
    )


def check_networks(euid: int, missing: Sequence[str]) -> Check:
    """What tasks' allow-lists need besides the image."""
    if euid == 0 and not missing:
        return ok("allow-lists", "tasks may name hosts that their boxes reach")
    lacking = "not root" if euid else f"no {', '.join(missing)}"
    fix = "run the server as root" if euid else "apt-get install iproute2 util-linux iptables"
    return warn("allow-lists", f"{lacking}: tasks that name hosts to reach are refused", fix)


def check_image(name: str, present: bool, current: bool) -> Check:
    if present and current:
        return ok("image", name)
    if present:
        return warn("image", f"{name} was made from an older recipe", "sandbox_images/build")
    return fail("image", f"{name} is missing", "sandbox_images/build")


def check_runtimes_present(facts: EngineFacts) -> Check:
    """Which of those that we know are there, whichever is set."""
    named = ((name, named_kind(name)) for name in sorted(facts.runtimes))
    known = [f"{name} ({kind})" for name, kind in named if kind is not Kind.OTHER]
    others = sum(named_kind(name) is Kind.OTHER for name in facts.runtimes)
    return ok("runtimes", ", ".join([*known, f"{others} more"] if others else known) or "none")


def check_what_it_stops(kind: Kind) -> Check:
    """What the chosen runtime leaves open, as one line to remember."""
    if kind is Kind.GVISOR:
        return ok(
            "isolation", "gVisor: what is left open is its own kernel, its filter, and the processor's side channels"
        )
    return ok("isolation", "one kernel for machine and boxes: a hole in it that the filter leaves open is a way out")


def verdicts(
    facts: EngineFacts, settings: DockerSettings, program: Program, euid: int, broken_filter: str = ""
) -> list[Check]:
    """All that follows from what the engine and the runtime say of themselves."""
    kind = expected_kind(settings.runtime, program)
    return [
        check_engine(facts),
        check_runtime(settings.runtime, facts, program, accept_old_runc=settings.accept_old_runc),
        check_runtimes_present(facts),
        check_what_it_stops(kind),
        check_limits_work(facts),
        check_seccomp(facts, kind, broken_filter),
        check_user_namespaces(facts),
        check_live_restore(facts),
        check_storage(facts),
        check_rights(euid),
    ]


async def inspect_engine(settings: DockerSettings) -> Sequence[Check]:
    """Facts and verdicts. Raises nothing of ours: an engine that is down is a verdict, too."""
    try:
        engine = Engine(engine_socket(settings), timeout_s=settings.request_timeout_s)
    except Misconfigured as error:
        return [fail("engine", error.message, "unset DOCKER_HOST")]
    try:
        facts = await engine.facts()
        program = await look_up(settings.runtime, facts)
        broken = await asyncio.to_thread(_broken_filter, settings)
        checks = verdicts(facts, settings, program, os.geteuid(), broken)
        checks.append(check_networks(os.geteuid(), missing_commands()))
        checks += [check_disk(disk) for disk in _disks(settings.state_dir, facts.root_dir)]
        return checks + [await _image(engine, name) for name in base_images.NAMES]
    except EngineUnavailable as error:
        return [fail("engine", error.message, "systemctl start docker, or apt-get install docker.io")]
    finally:
        await engine.aclose()


def _broken_filter(settings: DockerSettings) -> str:
    try:
        profile(settings.seccomp_profile)
    except Misconfigured as error:
        return error.message
    return ""


async def _image(engine: Engine, name: str) -> Check:
    found = await engine.image(name)
    recipe = base_images.recipe(name)
    parent = await engine.image(recipe.parent) if recipe.parent else None
    wanted = base_images.recipe_digest(recipe, parent.id if parent else "")
    built = found.labels.get(base_images.RECIPE_LABEL) if found else None
    return check_image(name, present=found is not None, current=built == wanted)


def _disks(state_dir: Path, root_dir: Path) -> list[Disk]:
    """Free space where images and where boxes lie; once where both share a disk. A folder that is not there yet counts as its parent."""
    by_device: dict[int, Disk] = {}
    for folder in (root_dir, state_dir):
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        by_device.setdefault(
            existing.stat().st_dev, Disk(folder=str(folder), free_bytes=shutil.disk_usage(existing).free)
        )
    return list(by_device.values())
