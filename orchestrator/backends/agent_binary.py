"""Copies of the in-box agent, named by content, so that an upgrade never changes the program of a live box."""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from orchestrator.errors import Misconfigured


def install_agent(source: Path, state_dir: Path) -> Path:
    """`state_dir/agent/<sha256>/tiltyard-agent`, written once, whoever races. Raises Misconfigured when `source` is missing."""
    try:
        digest = hashlib.sha256(source.read_bytes()).hexdigest()
    except OSError as error:
        raise Misconfigured(
            "the in-box agent is not built: install tiltyard (its build compiles it), or run `make setup`"
        ) from error
    target = state_dir / "agent" / digest / "tiltyard-agent"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=".agent-", delete=False) as copy:
        try:
            with source.open("rb") as stream:
                shutil.copyfileobj(stream, copy)
            copy.flush()
            os.fchmod(copy.fileno(), 0o755)
            os.rename(copy.name, target)
        except OSError:
            os.unlink(copy.name)
            raise
    return target
