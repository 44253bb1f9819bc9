"""The image that brings the in-box agent into pods: from scratch, made without an engine, the same bytes for the same program."""

import functools
import hashlib
import io
import json
import tarfile
from pathlib import Path

from orchestrator.agent.binary import agent_binary

NAME = "tiltyard/agent"
PROGRAM = "tiltyard-agent"


@functools.cache
def agent_image_reference(binary: Path | None = None) -> str:
    """`tiltyard/agent:` and twelve hex digits of the program's sha256: a host and its agents belong together. Raises Misconfigured (not built)."""
    return f"{NAME}:{hashlib.sha256((binary or agent_binary()).read_bytes()).hexdigest()[:12]}"


def write_agent_image(out: Path, binary: Path | None = None) -> str:
    """Write a docker-archive (`docker load`, `ctr images import`) of it; the image's reference. Blocks. Raises Misconfigured, OSError."""
    program = binary or agent_binary()
    reference = agent_image_reference(program)
    layer = _tar({PROGRAM: program.read_bytes()}, mode=0o755)
    config = {
        "architecture": program.name.rpartition("-")[2],
        "os": "linux",
        "config": {"Entrypoint": [f"/{PROGRAM}"], "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
        "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "tiltyard"}],
    }
    encoded = json.dumps(config, sort_keys=True).encode()
    config_name, layer_name = f"{hashlib.sha256(encoded).hexdigest()}.json", "layer/layer.tar"
    manifest = json.dumps([{"Config": config_name, "RepoTags": [reference], "Layers": [layer_name]}]).encode()
    out.write_bytes(_tar({config_name: encoded, layer_name: layer, "manifest.json": manifest}, mode=0o644))
    return reference


def _tar(files: dict[str, bytes], *, mode: int) -> bytes:
    """Of nobody's files without a time."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name in sorted(files):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(files[name]), mode
            tar.addfile(entry, io.BytesIO(files[name]))
    return buffer.getvalue()
