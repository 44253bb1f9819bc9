"""Names of images and repositories in registries, read as engines read them."""

import re
from dataclasses import dataclass

from orchestrator.errors import Misconfigured

HUB = "docker.io"
HUB_API = "registry-1.docker.io"
HUB_NAMES = frozenset({HUB, HUB_API, "index.docker.io"})
DIGEST_FORM = r"^sha256:[0-9a-f]{64}$"
DIGEST = re.compile(DIGEST_FORM)

_HOST = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:]+\])(?::[0-9]{1,5})?")
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_PART}(?:/{_PART})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """An image in a registry. Where both are there, the digest decides."""

    host: str
    repository: str
    tag: str = ""
    digest: str = ""

    @property
    def name(self) -> str:
        return f"{self.host}/{self.repository}"

    def __str__(self) -> str:
        return self.name + (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")


def parse_reference(text: str) -> Reference:
    """As engines read it: no host is Docker Hub, neither tag nor digest is `latest`. Raises Misconfigured."""
    rest, _, digest = text.partition("@")
    head, slash, last = rest.rpartition("/")
    last, colon, tag = last.partition(":")
    host, repository = _place(head + slash + last)
    if (colon and not _TAG.fullmatch(tag)) or ("@" in text and not DIGEST.fullmatch(digest)):
        raise _no_reference(text)
    if not _HOST.fullmatch(host) or not _REPOSITORY.fullmatch(repository) or len(repository) > 255:
        raise _no_reference(text)
    return Reference(host=host, repository=repository, tag=tag or ("" if digest else "latest"), digest=digest)


def parse_repository(text: str) -> Reference:
    """`registry.example:5000/team/name`, without tag and digest. Raises Misconfigured."""
    host, repository = _place(text)
    if not _HOST.fullmatch(host) or not _REPOSITORY.fullmatch(repository) or len(repository) > 255:
        raise Misconfigured(
            f"{_shown(text)!r} names no repository: write registry.example:5000/team/name, without tag and digest"
        )
    return Reference(host=host, repository=repository)


def _place(name: str) -> tuple[str, str]:
    """Host and repository. The first part is a host if it looks like one: a plain word is a folder of Docker Hub's."""
    first, slash, rest = name.partition("/")
    if slash and (first == "localhost" or first.startswith("[") or "." in first or ":" in first):
        host = HUB if first in HUB_NAMES else first
        return host, f"library/{rest}" if host == HUB and "/" not in rest else rest
    return HUB, name if slash else f"library/{name}"


def _no_reference(text: str) -> Misconfigured:
    return Misconfigured(
        f"{_shown(text)!r} is no image reference: write registry.example:5000/team/name:tag or …/name@sha256:<64 hex digits>"
    )


def _shown(text: str) -> str:
    """What stands before an @ may be a password that somebody wrote into an address."""
    return text.rpartition("@")[2][:200]
