"""Images with a repository inside, made for a test from one of our own."""

import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def image_with(folder: Path, place: str, *, base: str = "tiltyard/python:3.11") -> Iterator[str]:
    """The name of an image that is `base` with `folder` at `place`, as `docker commit` leaves it; removed at the end."""
    name = f"tiltyard-test/{secrets.token_hex(6)}:1"
    container = _docker("create", base, "true")
    try:
        _docker("cp", "-a", f"{folder}", f"{container}:{place}")
        _docker("commit", container, name)
    finally:
        _docker("rm", container)
    try:
        yield name
    finally:
        _docker("rmi", name)


def _docker(*words: str) -> str:
    return subprocess.run(["docker", *words], check=True, capture_output=True, text=True).stdout.strip()
