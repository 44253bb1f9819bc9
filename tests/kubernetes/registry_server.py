"""A real registry on loopback, Debian's docker-registry as a plain process; and a proxy before it that counts, and misbehaves to order."""

import base64
import io
import re
import shutil
import ssl
import subprocess
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from aiohttp import web

PROGRAM = "docker-registry"
USER, PASSWORD = "trainer", "open sesame"
_HTPASSWD = f"{USER}:$2b$05$abcdefghijklmnopqrstuupx2xBUC4954936wVIjyyPHmUBFu0wCW\n"
"""bcrypt of PASSWORD; the registry takes nothing else."""
_STARTED = re.compile(r"listening on (127\.0\.0\.1:\d+)")
_PASSED = ("Accept", "Authorization", "Content-Type", "Content-Length")


def lacking() -> str:
    """Why there is no registry here, or an empty string: the probe of `needs("docker-registry")`."""
    return "" if shutil.which(PROGRAM) else "no docker-registry command: apt-get install docker-registry"


@contextmanager
def registry_server(*, login: bool = False) -> Iterator[str]:
    """Its host and port; its storage is gone afterwards. `login`: USER and PASSWORD alone may do anything."""
    with tempfile.TemporaryDirectory(prefix="ty-registry-") as folder:
        config = Path(folder, "config.yml")
        config.write_text(_config(Path(folder), login=login))
        with subprocess.Popen([PROGRAM, "serve", str(config)], stderr=subprocess.PIPE, text=True) as process:
            try:
                yield _address(process)
            finally:
                process.terminate()


def _config(folder: Path, *, login: bool) -> str:
    lines = [
        "version: 0.1",
        "log: {level: info, formatter: text}",
        f"storage: {{filesystem: {{rootdirectory: {folder}/storage}}, delete: {{enabled: true}}}}",
        "http: {addr: '127.0.0.1:0', secret: s}",
    ]
    if login:
        (folder / "htpasswd").write_text(_HTPASSWD)
        lines.append(f"auth: {{htpasswd: {{realm: tests, path: {folder}/htpasswd}}}}")
    return "\n".join(lines)


def _address(process: "subprocess.Popen[str]") -> str:
    assert process.stderr is not None
    told = []
    for line in process.stderr:
        told.append(line)
        if found := _STARTED.search(line):
            threading.Thread(target=process.stderr.read, daemon=True).start()  # a full pipe would stop it
            return found[1]
    raise AssertionError(f"the registry did not start: {''.join(told)[-2000:]}")


@dataclass(kw_only=True)
class Front:
    """Between client and registry. What it is told to do wrong, it does at each request that it fits."""

    upstream: str
    host: str = ""
    seen: list[tuple[str, str]] = field(default_factory=list)
    """Method, and path with its query."""
    token: str = ""
    """Wanted of every request, and given out at /token to who logs in; "": nobody is asked."""
    scopes: list[list[str]] = field(default_factory=list)
    """Of each token asked for."""
    mounts: bool = True
    failing: list[int] = field(default_factory=list)
    """Statuses of the next requests."""
    fails_at: str = ""
    """The method of those; "": any."""
    retry_after: str = ""
    spoiled: str = ""
    """In the path of answers whose last byte is another."""
    realm: str = ""
    """Instead of this proxy's own."""
    sends_on: str = ""
    """Where whoever wants a blob is sent: scheme, host and port."""
    stores_at: str = ""
    """Where whoever uploads is sent: host and port."""
    logins: list[str] = field(default_factory=list)
    """Of each request, or an empty string."""

    def count(self, method: str, part: str = "") -> int:
        return sum(method == seen and part in path for seen, path in self.seen)

    @property
    def uploads(self) -> int:
        """Blobs that came with their bytes."""
        return self.count("PUT", "/blobs/uploads/")

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/token":
            return self._token(request)
        self.seen.append((request.method, request.path_qs))
        self.logins.append(request.headers.get("Authorization", ""))
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            realm = self.realm or f"http://{self.host}/token"
            challenge = f'Bearer realm="{realm}",service="tests",scope="repository:x:pull"'
            return web.Response(status=401, headers={"WWW-Authenticate": challenge})
        if self.failing and self.fails_at in ("", request.method):
            headers = {"Retry-After": self.retry_after} if self.retry_after else {}
            return web.Response(status=self.failing.pop(0), headers=headers)
        if self.sends_on and "/blobs/sha256:" in request.path:
            return web.Response(status=307, headers={"Location": self.sends_on + request.path_qs})
        return await self._forward(request)

    def _token(self, request: web.Request) -> web.Response:
        login = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        if request.headers.get("Authorization") != f"Basic {login}":
            return web.Response(status=401)
        self.scopes.append(request.query.getall("scope"))
        return web.json_response({"token": self.token})

    async def _forward(self, request: web.Request) -> web.Response:
        headers = {name: request.headers[name] for name in _PASSED if name in request.headers}
        if self.token:
            headers.pop("Authorization")
        path = request.path_qs
        if not self.mounts and "mount=" in path:
            path = request.path
        body = io.BytesIO(await request.read())
        async with (
            aiohttp.ClientSession(auto_decompress=False) as session,
            session.request(
                request.method, f"http://{self.upstream}{path}", headers=headers, data=body, allow_redirects=False
            ) as answer,
        ):
            found = await answer.read()
            kept = dict(answer.headers)
        if self.spoiled and self.spoiled in path and found:
            found = found[:-1] + bytes([found[-1] ^ 1])
        if "Location" in kept:
            kept["Location"] = kept["Location"].replace(self.upstream, self.stores_at or self.host)
        if request.method != "HEAD":
            kept.pop("Content-Length", None)
        return web.Response(status=answer.status, headers=kept, body=None if request.method == "HEAD" else found)


@asynccontextmanager
async def front(upstream: str, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[Front]:
    made = Front(upstream=upstream)
    app = web.Application(client_max_size=1 << 30)
    app.router.add_route("*", "/{path:.*}", made.handle)
    runner = web.AppRunner(app, shutdown_timeout=1, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
        await site.start()
        made.host = f"127.0.0.1:{runner.addresses[0][1]}"
        yield made
    finally:
        await runner.cleanup()
