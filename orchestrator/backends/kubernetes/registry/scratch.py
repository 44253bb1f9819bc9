"""Layers on their way: files for a while, and what this machine's disk says of them."""

import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from orchestrator.errors import RepositoryError


def reopened(file: BinaryIO) -> Callable[[], BinaryIO]:
    """Opens `file` once more, at its beginning. One of these at a time: they share one place in it."""

    def opened() -> BinaryIO:
        file.flush()
        again = os.fdopen(os.dup(file.fileno()), "rb")
        again.seek(0)
        return again

    return opened


@contextmanager
def disk_errors() -> Iterator[None]:
    """Says in words what this machine's disk refuses."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RepositoryError("the disk for temporary files is full: free space, or set TMPDIR") from error
        name = errno.errorcode.get(error.errno or 0, "unknown error")
        raise RepositoryError(f"a layer could not be written: {name} ({error.strerror or error})") from error


def temporary_file(folder: Path | None) -> BinaryIO:
    """No path names it. None: the system's folder for temporary files. Raises RepositoryError; blocks."""
    with disk_errors():
        return cast(BinaryIO, tempfile.TemporaryFile(dir=folder))
