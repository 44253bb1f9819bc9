"""Overlay's work folders, where we are not root.

The kernel leaves files of root's in them (`work/work`, a whiteout kept for linking), which nobody else can delete; but it clears them itself
when they are mounted again. So such a folder is kept for the next box: no more of them stay than boxes ever lived at once.
"""

import os
import secrets
from pathlib import Path

from orchestrator.repos import folders


class WorkPool:
    """Kept work folders. Renames are atomic, so several processes may share one pool. Methods block; each may raise OSError."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def take(self, target: Path) -> None:
        """Make `target` a work folder: one that was kept, or a new one."""
        for kept in self._kept():
            try:
                os.rename(kept, target)
            except FileNotFoundError:
                continue  # another box took it
            return
        target.mkdir(mode=0o700)

    def give(self, work: Path) -> None:
        """Remove `work`, or keep it where it will not go. Idempotent."""
        try:
            folders.remove_tree(work)
        except OSError:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.rename(work, self._folder / secrets.token_hex(8))

    def _kept(self) -> list[Path]:
        try:
            return [self._folder / name for name in os.listdir(self._folder)]
        except FileNotFoundError:
            return []
