"""The pinned system call filter of boxes (C3): what is not named there is refused."""

import json
from functools import cache
from importlib import resources


@cache
def profile() -> str:
    """As compact JSON, which is how the engine wants it within `SecurityOpt`."""
    text = (resources.files("orchestrator.backends") / "seccomp" / "tiltyard.json").read_text(encoding="utf-8")
    return json.dumps(json.loads(text), separators=(",", ":"))
