"""Where the package's build puts the in-box agent."""

import platform
from pathlib import Path

import sandbox_images
from orchestrator.errors import Misconfigured

ARCHITECTURES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}
"""The machine's name for itself -> Go's."""


def agent_binary(architecture: str | None = None) -> Path:
    """The static agent for `architecture` ("amd64", "arm64"; None: this machine's). Raises Misconfigured where it is not built."""
    asked = architecture or platform.machine()
    known = ARCHITECTURES.get(asked.lower())
    if known is None:
        raise Misconfigured(f"no in-box agent for {asked!r}: boxes run on amd64 and arm64")
    path = Path(sandbox_images.__file__).parent / "agent" / "bin" / f"tiltyard-agent-linux-{known}"
    if not path.is_file():
        raise Misconfigured(
            "the in-box agent is not built: install tiltyard (its build compiles it), or run `make setup`"
        )
    return path
