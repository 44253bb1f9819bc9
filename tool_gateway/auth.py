"""Who asks, and what they may do: bearer tokens, kept only as hashes, compared in constant time."""

import hashlib
import hmac
import ipaddress
import json
import os
import re
import secrets
import stat
import time
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from starlette.requests import Request

from orchestrator.errors import Forbidden, Misconfigured, Unauthorized
from orchestrator.models import JobId

TOKEN_PREFIX: Final = "ty_"  # noqa: S105  # a prefix by which secret scanners know our tokens, no secret
_BEARER = re.compile(r"(?i:bearer) ([A-Za-z0-9._~+/=-]{16,256})")
ALL_JOBS: Final = "*"


class Scope(StrEnum):
    """What a token may do. The scopes do not include each other."""

    TOOLS = "tools"  # POST /tools*
    GRADE = "grade"  # POST /grade
    ROLLOUTS = "rollouts"  # /rollouts*, and GET /tools
    METRICS = "metrics"  # GET /metrics
    ADMIN = "admin"  # GET /openapi.json


class AuthFailure(StrEnum):
    """Label of the alarm metric."""

    MISSING = "missing"
    MALFORMED = "malformed"
    UNKNOWN = "unknown"
    EXPIRED = "expired"
    SCOPE = "scope"
    JOB = "job"
    PEER = "peer"


class Refused(Unauthorized):
    """401 with the kind of failure, for the alarm."""

    def __init__(self, message: str, kind: AuthFailure = AuthFailure.UNKNOWN) -> None:
        super().__init__(message)
        self.kind = kind


class ScopeRefused(Forbidden):
    """403 with the kind of failure, for the alarm."""

    def __init__(self, message: str, kind: AuthFailure = AuthFailure.SCOPE) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Who a request comes from. `jobs=None` means every job."""

    name: str
    scopes: frozenset[Scope]
    jobs: frozenset[JobId] | None

    def may_use(self, job: JobId) -> bool:
        return self.jobs is None or job in self.jobs

    def require(self, scope: Scope) -> None:
        """Raises ScopeRefused."""
        if scope not in self.scopes:
            raise ScopeRefused(
                f"this token lacks the scope {scope.value!r}; use one that has it, or add it to the token file"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A known token: its sha256 and who holds it. `expires_at` is wall-clock seconds since 1970; at that instant it is over."""

    digest: bytes
    principal: Principal
    expires_at: float | None = None


class Auth:
    """Decides who a request comes from. Immutable; a changed token file needs a restart."""

    def __init__(
        self, tokens: Sequence[Token], *, loopback_open: bool = False, now: Callable[[], float] = time.time
    ) -> None:
        if not tokens and not loopback_open:
            raise Misconfigured("no tokens: name a token file, or use --insecure-loopback on a machine of your own")
        self._tokens = tuple(tokens)
        self._now = now
        self.loopback_open = loopback_open

    @classmethod
    def open_loopback(cls) -> "Auth":
        """No tokens: every process on this machine may do everything. Requests from elsewhere, proxies and browsers' pages are refused."""
        return cls((), loopback_open=True)

    def admit(self, request: Request) -> None:
        """What holds for routes without a token too: in open mode only this machine is served. Raises ScopeRefused."""
        if self.loopback_open:
            check_loopback(request)

    def identify(self, request: Request) -> Principal:
        """Raises Refused, ScopeRefused."""
        self.admit(request)
        if self.loopback_open:
            return _ANYONE_HERE
        values = request.headers.getlist("authorization")
        if not values:
            raise Refused("no token: send the header 'Authorization: Bearer TOKEN'", AuthFailure.MISSING)
        match = _BEARER.fullmatch(values[0]) if len(values) == 1 else None
        if match is None:
            raise Refused("malformed Authorization header: want one, 'Bearer TOKEN'", AuthFailure.MALFORMED)
        return self._lookup(match[1])

    def _lookup(self, presented: str) -> Principal:
        digest = hashlib.sha256(presented.encode("ascii")).digest()
        found: Token | None = None
        for token in self._tokens:  # all of them, always: how long this takes says nothing
            if hmac.compare_digest(token.digest, digest):
                found = token
        if found is None:
            raise Refused("unknown token", AuthFailure.UNKNOWN)
        if found.expires_at is not None and self._now() >= found.expires_at:
            raise Refused("this token has expired; issue a new one with `tiltyard token new`", AuthFailure.EXPIRED)
        return found.principal


_ANYONE_HERE = Principal(name="loopback", scopes=frozenset(Scope), jobs=None)
_PROXY_HEADERS = ("forwarded", "x-forwarded-for", "x-real-ip")


def check_loopback(request: Request) -> None:
    """The conditions of the open mode. Raises ScopeRefused.

    The peer alone does not say enough: a reverse proxy or a web page (by cross-site requests or DNS rebinding) on this machine comes from
    loopback too, so what they carry and a process of the user's own does not is refused.
    """
    if request.client is None or not _is_loopback(request.client.host):
        raise ScopeRefused("open mode serves this machine only; start with a token file instead", AuthFailure.PEER)
    if any(name in request.headers for name in (*_PROXY_HEADERS, "origin")):
        raise ScopeRefused(
            "open mode serves no proxies and no web pages; start with a token file instead", AuthFailure.PEER
        )
    if not _is_local_name(request.headers.get("host", "")):
        raise ScopeRefused("open mode answers to localhost, 127.0.0.1 and [::1] only", AuthFailure.PEER)


def _is_loopback(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped.is_loopback
    return address.is_loopback


def _is_local_name(host: str) -> bool:
    name = re.sub(r":\d{1,5}$", "", host).strip("[]")
    return name == "localhost" or _is_loopback(name)


def new_token() -> tuple[str, str]:
    """A fresh token (256 bits) and its sha256 in hex: the first goes to the caller, once; the second into the token file."""
    token = TOKEN_PREFIX + secrets.token_urlsafe(32)
    return token, hashlib.sha256(token.encode("ascii")).hexdigest()


class _TokenEntry(BaseModel):
    """One `[[tokens]]` entry."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    scopes: Annotated[tuple[Scope, ...], Field(min_length=1)]
    jobs: Annotated[tuple[str, ...], Field(min_length=1)]
    expires: AwareDatetime | None = None


class _TokenFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    tokens: Annotated[tuple[_TokenEntry, ...], Field(min_length=1)]


def load_tokens(path: Path) -> Auth:
    """Read a token file (`.json`, else TOML). Raises Misconfigured, with the fix, when it is readable by others, malformed or empty.

    TOML form, once per token::

        [[tokens]]
        name = "trainer"                     # for logs
        sha256 = "<64 hex digits>"           # of the token; `tiltyard token new` prints both
        scopes = ["tools", "grade"]
        jobs = ["demo"]                      # or ["*"]
        expires = 2027-01-01T00:00:00Z       # optional
    """
    text = _read_private(path)
    try:
        data = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
        parsed = _TokenFile.model_validate(data)
    except (ValueError, tomllib.TOMLDecodeError) as error:
        raise Misconfigured(f"token file {path.name}: {_first_problem(error)}") from None
    digests = [entry.sha256 for entry in parsed.tokens]
    if len(set(digests)) != len(digests):
        raise Misconfigured(f"token file {path.name}: one sha256 stands twice; give each holder a token of its own")
    return Auth([_token(entry) for entry in parsed.tokens])


def _token(entry: _TokenEntry) -> Token:
    jobs = None if ALL_JOBS in entry.jobs else frozenset(JobId(job) for job in entry.jobs)
    principal = Principal(name=entry.name, scopes=frozenset(entry.scopes), jobs=jobs)
    expires_at = None if entry.expires is None else entry.expires.timestamp()
    return Token(digest=bytes.fromhex(entry.sha256), principal=principal, expires_at=expires_at)


def _read_private(path: Path) -> str:
    """The file's text, if nobody else can read or write it. The open descriptor is checked, not the name."""
    try:
        with path.open(encoding="utf-8") as file:
            status = os.fstat(file.fileno())
            if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise Misconfigured(f"token file {path.name} is open to other users; run: chmod 600 {path.name}")
            if status.st_uid not in (os.geteuid(), 0):
                raise Misconfigured(
                    f"token file {path.name} belongs to another user; chown it to the one that runs tiltyard"
                )
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise Misconfigured(f"token file {path.name} cannot be read: {why}") from None


def _first_problem(error: Exception) -> str:
    """Where and what, without the file's values."""
    if isinstance(error, ValidationError):
        first = error.errors(include_input=False, include_url=False)[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return str(error)
