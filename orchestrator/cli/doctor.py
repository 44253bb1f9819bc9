"""`tiltyard doctor`: what this machine lacks and the fix; or the conformance suite over one backend."""

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape

from orchestrator.agent.binary import agent_binary
from orchestrator.backends.checks import Check, Verdict, fail, ok, warn
from orchestrator.backends.registry import BACKENDS
from orchestrator.cli.identity import host_lock
from orchestrator.cli.terminal import table, wide
from orchestrator.cli.wiring import (
    docker_settings,
    engine,
    free_disk_mib,
    kubernetes_settings,
    local_settings,
    show,
)
from orchestrator.errors import Misconfigured, TiltyardError
from orchestrator.settings import Settings

LOW_DISK_GIB = 10.0
"""Below this a few templates and the boxes' sparse disks may fill the machine."""
STYLES = {Verdict.OK: "green", Verdict.WARN: "yellow", Verdict.FAIL: "red"}


def run(settings: Settings, conformance: str | None, image: str | None, as_json: bool) -> int:
    """Exit status: 0 when boxes can run (or every check of the suite passed), else 1. Raises Misconfigured."""
    if conformance is not None:
        return asyncio.run(_prove(settings, conformance, image))
    checks = [*machine(settings), *asyncio.run(_engine_checks(settings))]
    show_checks(checks, as_json)
    return 1 if any(check.verdict is Verdict.FAIL for check in checks) else 0


def show_checks(checks: Sequence[Check], as_json: bool) -> None:
    """A table, or JSON for a program."""
    if as_json:
        print(json.dumps([_row(check) for check in checks], indent=1))
    else:
        _print(checks)


def machine(settings: Settings) -> list[Check]:
    """Facts that need no engine; of rights and cgroups the docker backend's own rows say more."""
    disk = check_disk(free_disk_mib(settings.state_dir), settings.disk_reserve_mib)
    own = [] if settings.backend == "docker" else [_rights(), _cgroups()]
    return [_python(), _agent(), disk, *own]


def _python() -> Check:
    return ok("python", ".".join(map(str, sys.version_info[:3])))


def _rights() -> Check:
    if os.geteuid() == 0:
        return ok("rights", "root: workspaces are capped in bytes and inodes, each box has uids of its own")
    return warn(
        "rights",
        "not root: boxes share one uid, and their disk space is watched, not capped",
        "run as root for hard caps and a uid block per box",
    )


def _agent() -> Check:
    try:
        path = agent_binary()
    except TiltyardError as error:
        return fail("agent", error.message, "run `make setup`, or install the wheel again")
    return ok("agent", f"{path.name}, {path.stat().st_size // 1024} KiB")


def check_disk(free_mib: int, reserve_mib: int) -> Check:
    """Pure."""
    free_gib = free_mib / 1024
    if free_mib < reserve_mib:
        return fail(
            "disk",
            f"{free_mib} MiB free at the state folder, {reserve_mib} MiB are kept free: no box would start",
            "free some space, set TILTYARD_STATE_DIR to a larger disk, or lower TILTYARD_DISK_RESERVE_MIB",
        )
    if free_gib >= LOW_DISK_GIB:
        return ok("disk", f"{free_gib:.0f} GiB free at the state folder, {reserve_mib} MiB of them kept free")
    return warn("disk", f"{free_gib:.1f} GiB free", "free some space, or set TILTYARD_STATE_DIR to a larger disk")


def _cgroups() -> Check:
    unified = Path("/sys/fs/cgroup/cgroup.controllers").exists()
    return ok("cgroups", "version 2" if unified else "version 1 (limits hold; no private cgroup namespace)")


async def _engine_checks(settings: Settings) -> Sequence[Check]:
    """Of what makes the boxes, which is the backend that is set."""
    if settings.backend == "kubernetes":
        return await inspect_cluster(settings)
    if settings.backend == "local":
        from orchestrator.backends.local.doctor import inspect_machine

        return await asyncio.to_thread(inspect_machine, local_settings(settings))
    try:
        from orchestrator.backends.docker.doctor import inspect_engine
    except ImportError:
        return [fail("docker", "the Docker SDK is not installed", "pip install 'tiltyard[docker]'")]
    return await inspect_engine(docker_settings(settings))


async def inspect_cluster(settings: Settings, image: str = "") -> Sequence[Check]:
    """What the cluster lacks; of the client, too, that it is asked with. `image`: a task's, tried beside the agent's."""
    try:
        from orchestrator.backends.kubernetes.check import check as look
    except ImportError:
        return [fail("kubernetes", "the Kubernetes client is not installed", "pip install 'tiltyard[kubernetes]'")]
    return await look(kubernetes_settings(settings), image)


async def _prove(settings: Settings, backend: str, image: str | None) -> int:
    from orchestrator.conformance import line, render, run_named
    from orchestrator.conformance.gaps import DEFAULT_IMAGE, HOST_IMAGE

    if backend not in BACKENDS:
        raise Misconfigured(f"no backend {backend!r} to prove; there are {', '.join(sorted(BACKENDS))}")
    chosen = settings.model_copy(update={"backend": backend, "deployment": "conformance"})
    with host_lock(chosen.deployment_dir, chosen.host_id):
        async with engine(chosen) as made:
            show(made.notices)
            report = await run_named(
                made.backend,
                image=image or (HOST_IMAGE if backend == "local" else DEFAULT_IMAGE),
                runtime=_runtime(chosen),
                on_result=lambda r: print(line(r), file=sys.stderr),
            )
    print(render(report))
    return report.exit_status


def _runtime(settings: Settings) -> str:
    """As the suite's subjects are named."""
    if settings.backend == "kubernetes":
        restricted = "restricted" if settings.kube_security == "restricted" else ""
        return "-".join(filter(None, (settings.kube_runtime_class, restricted)))
    return settings.runtime if settings.backend == "docker" else ""


def _row(check: Check) -> dict[str, str]:
    return {"name": check.name, "verdict": check.verdict.value, "detail": check.detail, "fix": check.fix}


def _print(checks: Sequence[Check]) -> None:
    rows = table("", "what", "found", "fix")
    for check in checks:
        style = STYLES[check.verdict]
        rows.add_row(f"[{style}]{check.verdict.value}[/{style}]", check.name, escape(check.detail), escape(check.fix))
    wide().print(rows)
