"""`python -m orchestrator.backends.docker.build_images [--base NAME]`: make the base images, saying what happens."""

import argparse
import asyncio
import sys
from pathlib import Path

from orchestrator.backends.docker import base_images
from orchestrator.backends.docker.engine import Engine
from orchestrator.backends.docker.settings import DockerSettings, engine_socket
from orchestrator.errors import TiltyardError

BUILD_TIMEOUT_S = 1800.0
"""One request of the engine: between two lines of a build's output."""


def say(line: str) -> None:
    """What we do, and a build's steps; the packages between them are only told when a step fails."""
    if line.startswith(("making", "tiltyard/")):
        print(f"== {line}", flush=True)
    elif line.startswith("Step "):
        print(f"   {line[:100]}", flush=True)


async def build(registry_base: str) -> None:
    """Raises TiltyardError."""
    settings = DockerSettings(deployment="setup", host_id="setup", state_dir=Path())
    engine = Engine(engine_socket(settings), timeout_s=BUILD_TIMEOUT_S)
    try:
        for name in base_images.NAMES:
            await base_images.ensure(engine, name, registry_base=registry_base, progress=say)
    finally:
        await engine.aclose()


def main() -> int:
    """0, or 1 with the reason on standard error."""
    parser = argparse.ArgumentParser(prog="sandbox_images/build", description=__doc__)
    parser.add_argument(
        "--base", default="", metavar="NAME", help="build over this image instead of bootstrapping Debian"
    )
    arguments = parser.parse_args()
    try:
        asyncio.run(build(arguments.base))
    except TiltyardError as error:
        print(f"sandbox_images/build: {error.message}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
