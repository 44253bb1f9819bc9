"""Where the package's build puts the programs that run in boxes."""

import platform
from pathlib import Path

import sandbox_images
from orchestrator.errors import Misconfigured

ARCHITECTURES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}
"""The machine's name for itself -> Go's."""


def agent_binary(architecture: str | None = None) -> Path:
    """The static agent for `architecture` ("amd64", "arm64"; None: this machine's). Raises Misconfigured where it is not built."""
    return program("agent", architecture)


def probe_binary(architecture: str | None = None) -> Path:
    """The conformance suite's static probe, as `agent_binary`."""
    return program("probe", architecture)


def program(name: str, architecture: str | None) -> Path:
    asked = architecture or platform.machine()
    known = ARCHITECTURES.get(asked.lower())
    if known is None:
        raise Misconfigured(f"no in-box {name} for {asked!r}: boxes run on amd64 and arm64")
    path = Path(sandbox_images.__file__).parent / name / "bin" / f"tiltyard-{name}-linux-{known}"
    if not path.is_file():
        raise Misconfigured(
            f"the in-box {name} is not built: install tiltyard (its build compiles it), or run `make setup`"
        )
    return path
