"""Which cached mirrors and templates to remove: decided purely."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

GRACE_S = 600.0
"""What was used this recently stays, whatever its size: somebody may have been handed it and not yet mounted it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheEntry:
    """`used_at` is wall-clock seconds."""

    kind: Literal["mirror", "template"]
    key: str
    size_bytes: int
    used_at: float


def choose_evictions(
    entries: Sequence[CacheEntry], *, max_bytes: int, in_use: Collection[str], now: float, grace_s: float = GRACE_S
) -> tuple[CacheEntry, ...]:
    """The least recently used entries whose removal brings the rest to `max_bytes`, or as near as can be.

    Never an entry whose key is in `in_use`, nor one used within `grace_s`.
    """
    excess = sum(entry.size_bytes for entry in entries) - max_bytes
    chosen = []
    for entry in sorted(entries, key=lambda entry: (entry.used_at, entry.kind, entry.key)):
        if excess <= 0:
            break
        if entry.key in in_use or now - entry.used_at < grace_s:
            continue
        chosen.append(entry)
        excess -= entry.size_bytes
    return tuple(chosen)
