"""Allow-lists of host names: checked and brought into one form. They end in configuration files of the proxy, so that nothing else passes."""

import re
from collections.abc import Iterable, Sequence

import idna

from orchestrator.models import Network

MAX_NAMES = 100
MAX_PORTS = 16
MAX_NAME = 253
"""RFC 1035: 255 octets on the wire."""
LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
"""A name whose last label is one is read as an IPv4 address by some programs (127.1, 0x7f.1)."""
WILDCARD = "*."


def network(allow: Iterable[str], ports: Sequence[int] = Network().ports) -> Network:
    """The network that reaches `allow` on `ports`. Raises ValueError with what is wrong and what to write."""
    names = tuple(sorted({_canonical(name) for name in allow}))
    if len(names) > MAX_NAMES:
        raise ValueError(f"{len(names)} names are too many; name at most {MAX_NAMES}, or use a wildcard")
    if not ports or len(ports) > MAX_PORTS or not all(1 <= port <= 65_535 for port in ports):
        raise ValueError(f"ports: name 1 to {MAX_PORTS} TCP ports, each from 1 to 65535")
    return Network(allow=names, ports=tuple(sorted(set(ports))))


def check(value: Network) -> None:
    """Raises ValueError for a network that `network` would not have made."""
    if value != network(value.allow, value.ports):
        raise ValueError("the allow-list is not in its canonical form; make it with orchestrator.egress.names.network")


def permits(value: Network, host: str) -> bool:
    """Whether the list names `host` (lower-case ASCII, no dot at the end)."""
    parents = (host.split(".", cut)[-1] for cut in range(1, host.count(".") + 1))
    return host in value.allow or any(WILDCARD + parent in value.allow for parent in parents)


def _canonical(name: str) -> str:
    wildcard, host = name.startswith(WILDCARD), name.removeprefix(WILDCARD)
    if re.search(r"[\s/@?#\[\]]|://", host):
        raise ValueError(f"{name!r} is no host name; write the name alone, like 'pypi.org'")
    if ":" in host:
        raise ValueError(f"{name!r}: write the name without a port; ports have a field of their own")
    ascii_name = _ascii(host)
    labels = ascii_name.split(".")
    if NUMBER.fullmatch(labels[-1]):
        raise ValueError(f"{name!r} looks like an address; only names can be allowed")
    if "*" in host:
        raise ValueError(f"{name!r}: '*.' may stand at the beginning only, for every name below what follows")
    if len(labels) < 2:
        what = "a wildcard needs at least two labels, like '*.example.org'" if wildcard else "write the full name"
        raise ValueError(f"{name!r}: {what}")
    if len(ascii_name) > MAX_NAME or not all(LABEL.fullmatch(label) for label in labels):
        raise ValueError(f"{name!r} is no host name: labels of a-z, 0-9 and '-', parted by single dots")
    return WILDCARD + ascii_name if wildcard else ascii_name


def _ascii(host: str) -> str:
    if host.isascii():
        return host.lower()
    try:
        return idna.encode(host, uts46=True, std3_rules=True).decode("ascii")
    except idna.IDNAError as error:
        raise ValueError(f"{host!r} is no international host name: {error}") from error
