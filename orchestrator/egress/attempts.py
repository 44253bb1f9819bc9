"""What boxes asked the proxy and its resolver for, read from their notes. The hosts in them were chosen by whoever sits in the box."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from orchestrator.egress.names import permits
from orchestrator.models import Finding, Network, NetworkAttempt

MAX_BYTES = 1024 * 1024
"""Of one file of notes; the proxy's own caps keep it below."""
MAX_FINDINGS = 50
MAX_HOST = 255
REFUSED, ALLOWED = "network_refused", "network_allowed"
LINE = re.compile(r"([0-9]{1,12})\t([a-z]{1,16})\t([0-9]{1,5}|-)\t([^\t]*)")
STRANGE = re.compile(r"[^a-z0-9_.:%*\[\]?-]")
REASONS = {
    "allowed": "",
    "name": "not in the allow-list",
    "port": "not a port of the allow-list",
    "address": "resolves to a private, local or metadata address",
    "more": "more hosts than are listed",
}
"""The proxy's verdicts (`egress/plans.py`) in words."""
ASKED = "asked"
NAME_REFUSED = "name not in the allow-list"


def read(network: Network, *notes: str) -> Sequence[NetworkAttempt]:
    """The attempts that `notes` tell, refused ones first. Lines that no proxy of ours writes are passed over. Pure."""
    found: dict[tuple[str, str, str], int] = {}
    for text in notes:
        for line in text[:MAX_BYTES].splitlines():
            if match := LINE.fullmatch(line):
                count, *key = match.groups()
                place = (key[0], key[1], STRANGE.sub("?", key[2])[:MAX_HOST])
                found[place] = max(found.get(place, 0), int(count))
    attempts = [_attempt(network, *key, count) for key, count in found.items()]
    return sorted(filter(None, attempts), key=lambda each: (each.allowed, -each.count, each.host, each.port))


def _attempt(network: Network, verdict: str, port: str, host: str, count: int) -> NetworkAttempt | None:
    made = NetworkAttempt(host=host, port=int(port) if port.isdigit() else 0, allowed=False, reason="", count=count)
    if verdict == ASKED:
        allowed = permits(network, host.rstrip("."))
        return replace(made, allowed=allowed, reason="" if allowed else NAME_REFUSED)
    if verdict not in REASONS:
        return None
    return replace(made, allowed=verdict == "allowed", reason=REASONS[verdict])


def findings(attempts: Iterable[NetworkAttempt]) -> tuple[Finding, ...]:
    """One for each attempt, refused ones first; at most MAX_FINDINGS of either kind, and one that says how many there are more."""
    told: list[Finding] = []
    attempts = tuple(attempts)
    for code, allowed in ((REFUSED, False), (ALLOWED, True)):
        kind = [attempt for attempt in attempts if attempt.allowed is allowed]
        told += [Finding(code=code, detail=_words(attempt)) for attempt in kind[:MAX_FINDINGS]]
        if len(kind) > MAX_FINDINGS:
            told.append(Finding(code=code, detail=f"and {len(kind) - MAX_FINDINGS} more"))
    return tuple(told)


def _words(attempt: NetworkAttempt) -> str:
    where = f"{attempt.host or '?'}:{attempt.port}" if attempt.port else attempt.host or "others"
    times = f" ({attempt.count} times)" if attempt.count > 1 else ""
    return f"{where}{times}{': ' if attempt.reason else ''}{attempt.reason}"
