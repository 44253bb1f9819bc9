"""Sealed templates as tars, for boxes on machines that do not see this one's disk: made once per template, streamed once per pod."""

import os
import tarfile
import tempfile
from pathlib import Path

from orchestrator.errors import Misconfigured
from orchestrator.interfaces import Template
from orchestrator.repos.locks import NamedLocks
from orchestrator.repos.threads import finish

KEPT = 16
"""Tars kept per host; the longest unused go first. Each is as large as its tree."""


class Seeds:
    """`folder` is this host's alone."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._locks = NamedLocks()

    async def tar(self, template: Template) -> Path:
        """Made where it is missing; simultaneous callers wait for one. Raises Misconfigured (more than one layer), OSError."""
        path = self._folder / f"{template.key}.tar"
        async with self._locks[template.key]:
            await finish(None, _make, template, path)
        return path


def _make(template: Template, path: Path) -> None:
    if path.exists():
        os.utime(path)
        return
    if len(template.lowers) != 1:
        raise Misconfigured("the kubernetes backend runs no set-up commands: build them into the task's image")
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".making-", delete=False) as file:
        try:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
                for name in sorted(os.listdir(template.lowers[0])):
                    tar.add(Path(template.lowers[0], name), arcname=name, filter=_nobody)
            file.flush()
            os.rename(file.name, path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise
    tars = sorted(path.parent.glob("*.tar"), key=lambda tar: tar.stat().st_mtime, reverse=True)
    for old in tars[KEPT:]:
        old.unlink(missing_ok=True)


def _nobody(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """Owners are the box's: whoever unpacks it there owns it. A hard link would need the other file first; each is a file of its own."""
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry
