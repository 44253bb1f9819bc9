"""What a deployment keeps on disk to be itself: the lock of a host's identity and the secret of its task handles."""

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.errors import Misconfigured

SECRET_BYTES = 32


@contextmanager
def host_lock(folder: Path, host_id: str) -> Iterator[None]:
    """Hold the identity (machine, host name) while serving. Raises Misconfigured when another process holds it.

    The lock goes with the process, however it ends.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(folder / f"host-{host_id}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Misconfigured(
                f"host {host_id!r} of this deployment is served by another process; "
                "stop it, or set TILTYARD_HOST_ID or TILTYARD_DEPLOYMENT to another name"
            ) from error
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)


def noted_backend(folder: Path) -> str:
    """Which backend made the deployment's boxes last; empty where nothing was served yet."""
    note = folder / "backend"
    return note.read_text(encoding="utf-8").strip() if note.exists() else ""


def claim_backend(folder: Path, backend: str) -> None:
    """Note which backend makes the deployment's boxes; call it under the host's lock. Blocks.

    Raises Misconfigured while boxes of another one are left: only that one can end them. The fake backend has none on this machine.
    """
    if backend == "fake":
        return
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    note, boxes = folder / "backend", folder / "boxes"
    last = noted_backend(folder) or backend
    if last != backend and boxes.is_dir() and any(boxes.iterdir()):
        raise Misconfigured(
            f"deployment {folder.name!r} holds boxes of the {last} backend: serve with --backend {last}, end them with `tiltyard sweep`, "
            "or name another deployment"
        )
    note.write_text(f"{backend}\n", encoding="utf-8")


def handle_secret(folder: Path) -> bytes:
    """The deployment's secret for signed task handles, made on first use, readable by its owner only."""
    path = folder / "handle.key"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return _read_secret(path)
    with os.fdopen(descriptor, "wb") as file:
        secret = secrets.token_bytes(SECRET_BYTES)
        file.write(secret)
    return secret


def _read_secret(path: Path) -> bytes:
    secret = path.read_bytes()
    if len(secret) != SECRET_BYTES:
        raise Misconfigured(f"{path} is damaged: remove it; task handles handed out before will no longer be accepted")
    return secret
