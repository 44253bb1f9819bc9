"""Where a task's repository comes from: parsing, naming without secrets, and the key of its mirror."""

import base64
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from orchestrator.errors import Misconfigured

SUPPORTED = "a path of this machine, or a file, https, http, ssh or git URL"
_REMOTE = frozenset({"https", "http", "ssh", "git"})
_SCP_LIKE = re.compile(r"(?P<user>[\w.-]+)@(?P<host>[\w.-]+):(?P<path>[^:].*)")
_HELPER = re.compile(r"[a-zA-Z0-9]+::")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """`fetch_from` is what git is told and holds no secret; `name` is what people are told and holds no path of the machine.

    `secret_config` goes to git by environment, never on a command line. `local` is the folder that must exist.
    """

    fetch_from: str
    name: str
    key: str
    local: Path | None = None
    secret_config: Mapping[str, str] = field(default_factory=dict, repr=False)
    secrets: tuple[str, ...] = field(default=(), repr=False)

    def redact(self, text: str) -> str:
        """`text` without this source's secrets, and without user information of any URL."""
        for secret in self.secrets:
            text = text.replace(secret, "***")
        return re.sub(r"(?<=://)[^/@\s]+@", "***@", text)


def parse_source(repo: str) -> Source:
    """Read `Task.repo`. Raises Misconfigured with what is supported."""
    if repo.startswith("image:"):
        raise Misconfigured(
            f"a repository inside an image is the task's workspace: write workspace, not repo, {repo!r}"
        )
    if not repo or repo != repo.strip() or any(ord(character) < 32 for character in repo) or _HELPER.match(repo):
        raise Misconfigured(f"repo must be {SUPPORTED}")
    if "://" in repo:
        return _from_url(repo)
    if match := _SCP_LIKE.fullmatch(repo):
        return Source(fetch_from=repo, name=f"{match['host']}:{match['path']}", key=_key(repo))
    return _from_path(Path(repo))


def _from_url(repo: str) -> Source:
    try:
        parts = urlsplit(repo)
        port = parts.port
    except ValueError:
        raise Misconfigured(f"repo is not a URL that can be read: name {SUPPORTED}") from None
    if parts.scheme == "file":
        return _from_path(Path(unquote(parts.path)))
    if parts.scheme not in _REMOTE or not parts.hostname:
        raise Misconfigured(f"repo has a URL scheme or host that cannot be used: name {SUPPORTED}")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    place = host if port is None else f"{host}:{port}"
    name = f"{parts.scheme}://{place}{parts.path}"
    if parts.scheme == "ssh" and parts.username:
        place = f"{parts.username}@{place}"
    query = f"?{parts.query}" if parts.query else ""
    return Source(
        fetch_from=f"{parts.scheme}://{place}{parts.path}{query}",
        name=name,
        key=_key(repo),
        secret_config=_authorization(parts, f"{parts.scheme}://{place}"),
        secrets=tuple(filter(None, (parts.password, unquote(parts.password or ""), parts.query))),
    )


def _authorization(parts: SplitResult, origin: str) -> dict[str, str]:
    """User information of an http URL as a header for that origin: git would show it in its children's command lines."""
    if parts.scheme not in ("http", "https") or not (parts.username or parts.password):
        return {}
    pair = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
    return {f"http.{origin}/.extraHeader": "Authorization: Basic " + base64.b64encode(pair.encode()).decode()}


def _from_path(path: Path) -> Source:
    if not path.is_absolute():
        raise Misconfigured("repo is a relative path: relative to what is not known here; write it in full")
    resolved = path.resolve()
    name = resolved.parent.name if resolved.name == ".git" else resolved.name
    return Source(fetch_from=str(resolved), name=name, key=_key(str(resolved)), local=resolved)


def _key(text: str) -> str:
    """User information included: what one account may read is not shown to another that names the same URL."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32]
