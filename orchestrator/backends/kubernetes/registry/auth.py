"""Who we are to a registry: logins of docker's config.json, and the tokens that they are exchanged for."""

import base64
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import aiohttp
from pydantic import BaseModel, ValidationError
from yarl import URL

from orchestrator.backends.kubernetes.registry.references import HUB, HUB_NAMES
from orchestrator.backends.kubernetes.registry.requests import (
    CONNECT_S,
    MAX_ANSWER_BYTES,
    SMALL_S,
    Request,
    forbidden,
    read_all,
    refuse_bad,
)
from orchestrator.errors import Misconfigured, RepositoryError
from orchestrator.repos.threads import finish

_CHALLENGE = re.compile(r'(\w+)="([^"]*)"')
_TOKEN = re.compile(r"[\x21-\x7e]{1,32768}")


class _Token(BaseModel):
    token: str = ""
    access_token: str = ""


class _Auth(BaseModel):
    auth: str = ""
    username: str = ""
    password: str = ""


class _DockerConfig(BaseModel):
    auths: dict[str, _Auth] = {}


async def authorize(
    session: aiohttp.ClientSession,
    request: Request,
    challenges: Sequence[str],
    *,
    docker_config: Path | None,
    secure: bool,
) -> str:
    """The header that answers a challenge of the registry that `request` is for.

    `docker_config` is the folder of docker's config.json; `secure`: tokens come over TLS alone. Raises Again, Misconfigured, RepositoryError.
    """
    host = request.place.host
    login = await finish(None, _login, docker_config, host)
    for challenge in challenges:
        if challenge.lower().startswith("bearer "):
            found = dict(_CHALLENGE.findall(challenge))
            return f"Bearer {await _token(session, request, found, login, secure=secure)}"
    if not any(challenge.lower().startswith("basic") for challenge in challenges):
        raise Misconfigured(f"the registry {host} asks for a way to log in that is neither Basic nor Bearer")
    if login is None:
        raise Misconfigured(
            f"the registry {host} wants a login: run `docker login {host}`, or point DOCKER_CONFIG to a folder whose "
            "config.json has one under auths"
        )
    return login


async def _token(
    session: aiohttp.ClientSession, request: Request, challenge: Mapping[str, str], login: str | None, *, secure: bool
) -> str:
    host = request.place.host
    try:
        realm = URL(challenge.get("realm", ""))
    except ValueError:
        realm = URL()
    if realm.scheme != "https" and (realm.scheme != "http" or secure):
        raise Misconfigured(f"the registry {host} gives tokens out at no https address: nothing secret is sent there")
    query = [("service", challenge.get("service", "")), *(("scope", scope) for scope in request.scopes)]
    async with session.get(
        realm.extend_query([pair for pair in query if pair[1]]),
        headers={"Authorization": login} if login else {},
        allow_redirects=False,
        timeout=aiohttp.ClientTimeout(total=SMALL_S, sock_connect=CONNECT_S),
    ) as response:
        if response.status in (400, 401, 403):
            raise forbidden(request)
        await refuse_bad(response, replace(request, good=frozenset({200})))
        body = await read_all(response, MAX_ANSWER_BYTES, f"the token of {host}")
    try:
        answer = _Token.model_validate_json(body)
    except ValidationError:
        answer = _Token()
    token = answer.token or answer.access_token
    if not _TOKEN.fullmatch(token):
        raise RepositoryError(f"the registry {host} gave no token that can be used: look at its token service")
    return token


def _login(folder: Path | None, host: str) -> str | None:
    """The Basic header for `host` in docker's config.json. What is wrong with it is told without what it holds."""
    where = folder or Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker")
    try:
        config = _DockerConfig.model_validate_json((where / "config.json").read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError):
        raise Misconfigured("docker's config.json cannot be read: mend it, or point DOCKER_CONFIG elsewhere") from None
    names = HUB_NAMES if host == HUB else {host}
    for key, entry in config.auths.items():
        named = key.removeprefix("https://").removeprefix("http://").partition("/")[0] in names
        if named and (header := _basic(entry)):
            return header
    return None


def _basic(entry: _Auth) -> str:
    encoded = entry.auth or base64.b64encode(f"{entry.username}:{entry.password}".encode()).decode()
    usable = (entry.auth or entry.username) and _TOKEN.fullmatch(encoded)
    return f"Basic {encoded}" if usable else ""
