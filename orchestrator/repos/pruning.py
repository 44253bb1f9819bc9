"""Where mirrors and templates lie, and how those nobody uses are taken away."""

import secrets
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from orchestrator.repos import folders, lru, stored
from orchestrator.repos.locks import try_file_lock
from orchestrator.repos.lru import CacheEntry


@dataclass(frozen=True, slots=True)
class CacheFolders:
    """Names below a cache's root.

    mirrors/<key>.git         bare repositories, one per source
    templates/<key>/          tree/ (sealed), upper/ (what set-up changed), manifest.json, size
    building/<key>.<random>/  being made, to be renamed into place whole; or being removed
    locks/                    one lock file per mirror and per template
    works/                    without root: overlay's work folders, kept to be used again
    """

    root: Path

    def mirror(self, key: str) -> Path:
        return self.root / "mirrors" / f"{key}.git"

    def template(self, key: str) -> Path:
        return self.root / "templates" / key

    @property
    def works(self) -> Path:
        return self.root / "works"

    def fresh(self, key: str) -> Path:
        return self.root / "building" / f"{key}.{secrets.token_hex(4)}"

    def leftovers(self, key: str = "*") -> tuple[Path, ...]:
        """What is below building/ for `key`, or for all."""
        return tuple((self.root / "building").glob(f"{key}.*"))

    def mirror_lock(self, key: str) -> Path:
        return self.root / "locks" / f"mirror-{key}.lock"

    def template_lock(self, key: str) -> Path:
        return self.root / "locks" / f"template-{key}.lock"

    def make(self) -> None:
        for name in ("mirrors", "templates", "building", "locks"):
            (self.root / name).mkdir(parents=True, exist_ok=True, mode=0o700)


def prune(
    cache: CacheFolders, max_bytes: int, in_use: Collection[str], *, grace_s: float = lru.GRACE_S
) -> Sequence[CacheEntry]:
    """Sweep, then remove what `choose_evictions` says; what was removed. Blocks. Raises OSError."""
    sweep(cache)
    chosen = lru.choose_evictions(
        tuple(entries(cache)), max_bytes=max_bytes, in_use=in_use, now=time.time(), grace_s=grace_s
    )
    return [entry for entry in chosen if _evict(cache, entry, grace_s)]


def sweep(cache: CacheFolders) -> None:
    """Remove what killed builds left; what is being built, in any process, holds its lock and stays. Blocks. Raises OSError."""
    for leftover in cache.leftovers():
        key = leftover.name.partition(".")[0]
        with try_file_lock(cache.template_lock(key)) as template, try_file_lock(cache.mirror_lock(key)) as mirror:
            if template and mirror:
                folders.try_remove_tree(leftover)


def entries(cache: CacheFolders) -> Iterator[CacheEntry]:
    """Everything cached, with its size and last use; what vanishes meanwhile is passed over."""
    for folder in (cache.root / "templates").glob("*"):
        with suppress(FileNotFoundError):
            used_at, size = folder.stat().st_mtime, stored.size_bytes(folder)
            yield CacheEntry(kind="template", key=folder.name, size_bytes=size, used_at=used_at)
    for folder in (cache.root / "mirrors").glob("*.git"):
        with suppress(FileNotFoundError):
            used_at, size = folder.stat().st_mtime, folders.disk_usage_bytes(folder)
            yield CacheEntry(kind="mirror", key=folder.stem, size_bytes=size, used_at=used_at)


def _evict(cache: CacheFolders, entry: CacheEntry, grace_s: float) -> bool:
    """Rename out of sight under the entry's lock, then remove. False: it is being made, or was used since the decision."""
    template = entry.kind == "template"
    folder = cache.template(entry.key) if template else cache.mirror(entry.key)
    lock = cache.template_lock(entry.key) if template else cache.mirror_lock(entry.key)
    with try_file_lock(lock) as held:
        if not held or not folder.exists() or time.time() - folder.stat().st_mtime < grace_s:
            return False
        doomed = cache.fresh(entry.key)
        folder.rename(doomed)
        folders.try_remove_tree(doomed)
    return True
