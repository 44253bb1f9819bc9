"""`tiltyard deploy`: what a cluster lacks for boxes, and the image that brings the agent into pods."""

import asyncio
from pathlib import Path

from orchestrator.backends.checks import Verdict
from orchestrator.cli.doctor import inspect_cluster, show_checks
from orchestrator.settings import Settings


def check(settings: Settings, image: str, as_json: bool) -> int:
    """Exit status: 0 when boxes can run on the cluster, else 1."""
    rows = asyncio.run(inspect_cluster(settings, image))
    show_checks(rows, as_json)
    return 1 if any(row.verdict is Verdict.FAIL for row in rows) else 0


def agent_image(out: Path) -> None:
    """Write the image and print its name. Raises Misconfigured (the agent is not built), OSError."""
    from orchestrator.backends.kubernetes.agent_image import write_agent_image

    print(write_agent_image(out))
