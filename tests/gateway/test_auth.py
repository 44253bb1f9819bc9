"""Tokens: how they are kept, presented, compared, refused; what each may do; and the open mode for one machine."""

import hashlib
import json
from pathlib import Path

import httpx
import pytest
from starlette.requests import Request
from structlog.testing import capture_logs

from orchestrator.errors import Misconfigured
from orchestrator.models import JobId, RolloutKey, TraceId
from tests.gateway.conftest import Gateway, bearer, text_of, token
from tool_gateway.app import create_app
from tool_gateway.auth import Auth, Scope, load_tokens, new_token

pytestmark = pytest.mark.anyio
CALL = {"name": "shell", "arguments": "{}", "trace_id": "t"}

DIGEST = hashlib.sha256(b"x").hexdigest()
GOOD = f"""
[[tokens]]
name = "trainer"
sha256 = "{DIGEST}"
scopes = ["tools", "grade"]
jobs = ["demo"]
expires = 2999-01-01T00:00:00Z
"""


def written(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


async def test_a_new_token_is_known_by_its_hash_alone(gateway: Gateway, tmp_path: Path) -> None:
    fresh, digest = new_token()
    assert fresh not in digest
    assert new_token()[0] != fresh
    path = written(tmp_path / "tokens.toml", GOOD.replace(DIGEST, digest))
    async with gateway.but(auth=load_tokens(path)).client(None) as client:
        good = await client.post("/tools", json=CALL, headers={"Authorization": f"Bearer {fresh}"})
        bad = await client.post("/tools", json=CALL, headers={"Authorization": f"Bearer {digest}"})
    assert (good.status_code, bad.status_code) == (200, 401)


def test_a_token_file_may_be_json(tmp_path: Path) -> None:
    entry = {"name": "t", "sha256": DIGEST, "scopes": ["admin"], "jobs": ["*"]}
    load_tokens(written(tmp_path / "tokens.json", json.dumps({"tokens": [entry]})))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o601])
def test_a_token_file_that_others_can_open_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(Misconfigured, match="chmod 600"):
        load_tokens(written(tmp_path / "tokens.toml", GOOD, mode))
    load_tokens(written(tmp_path / "tokens.toml", GOOD, 0o400))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "tokens"),
        ("tokens = []", "tokens"),
        ("not toml", "line 1"),
        (GOOD.replace(DIGEST, DIGEST.upper()), "sha256"),
        (GOOD.replace(DIGEST, "plain-token"), "sha256"),
        (GOOD.replace("tools", "everything"), "scopes"),
        (GOOD.replace('["demo"]', "[]"), "jobs"),
        (GOOD.replace("expires", "expiry"), "expiry"),
        (GOOD.replace("00Z", "00"), "expires"),
        (GOOD + GOOD, "stands twice"),
    ],
)
def test_a_malformed_token_file_is_refused_in_words_without_its_values(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(Misconfigured, match=says) as refused:
        load_tokens(written(tmp_path / "tokens.toml", text))
    assert DIGEST not in refused.value.message
    assert "plain-token" not in refused.value.message


def test_a_missing_token_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="cannot be read"):
        load_tokens(tmp_path / "none.toml")
    with pytest.raises(Misconfigured, match="cannot be read"):
        load_tokens(tmp_path)


def test_no_tokens_at_all_is_refused() -> None:
    with pytest.raises(Misconfigured, match="--insecure-loopback"):
        Auth([])


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([], "missing"),
        ([""], "malformed"),
        (["Bearer"], "malformed"),
        (["Bearer "], "malformed"),
        ([text_of("one")], "malformed"),
        ([f"Basic {text_of('one')}"], "malformed"),
        ([f"Bearer  {text_of('one')}"], "malformed"),
        ([f"Bearer {text_of('one')} x"], "malformed"),
        ([f"Bearer {text_of('one')}, Bearer {text_of('one')}"], "malformed"),
        ([f"Bearer {text_of('one')}", f"Bearer {text_of('one')}"], "malformed"),
        (["Bearer short"], "malformed"),
        (["Bearer " + "x" * 300], "malformed"),
        ([f"Bearer {text_of('one').upper()}"], "unknown"),
        ([f"Bearer {text_of('one')}x"], "unknown"),
        ([f"Bearer {text_of('one')[:-1]}"], "unknown"),
        ([f"Bearer {text_of('old')}"], "expired"),
    ],
)
async def test_a_wrong_token_is_a_401_an_alarm_and_no_taint(gateway: Gateway, values: list[str], kind: str) -> None:
    headers = [("Authorization", value) for value in values]
    with capture_logs() as logs:
        async with gateway.client(None) as client:
            reply = await client.post("/tools", json=CALL, headers=headers)
    assert (reply.status_code, reply.json()["error"]) == (401, "unauthorized")
    assert reply.headers["www-authenticate"].startswith("Bearer")
    assert f'tiltyard_auth_failures_total{{kind="{kind}"}} 1.0' in gateway.deps.metrics.text().decode()
    assert [log["kind"] for log in logs if log["event"] == "request_refused"] == [kind]
    assert "0123456789" not in repr(logs)
    assert not await gateway.tainted("t")
    assert gateway.host.calls == []


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
async def test_the_schemes_case_does_not_matter(gateway: Gateway, scheme: str) -> None:
    async with gateway.client(None) as client:
        headers = {"Authorization": f"{scheme} {text_of('one')}"}
        assert (await client.post("/tools", json=CALL, headers=headers)).status_code == 200


async def test_a_token_in_the_url_is_no_token(gateway: Gateway) -> None:
    async with gateway.client(None) as client:
        for name in ("token", "access_token", "authorization", "api_key"):
            reply = await client.post("/tools", params={name: text_of("one")}, json=CALL)
            assert reply.status_code == 401


async def test_expiry_is_exclusive() -> None:
    now = 1.0
    auth = Auth([token("brief", [Scope.TOOLS], None, expires_at=2.0)], now=lambda: now)
    request = _request(bearer("brief"))
    assert auth.identify(request).name == "brief"
    now = 2.0
    with pytest.raises(Exception, match="expired"):
        auth.identify(request)


def _request(headers: dict[str, str], peer: str | None = "127.0.0.1") -> Request:
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "headers": raw, "client": None if peer is None else (peer, 1)})


async def test_guesses_are_all_counted_but_not_all_logged(gateway: Gateway) -> None:
    with capture_logs() as logs:
        async with gateway.client(None) as client:
            for guess in range(50):
                headers = {"Authorization": f"Bearer guess-{guess:020d}"}
                assert (await client.post("/tools", json=CALL, headers=headers)).status_code == 401
    assert 'kind="unknown"} 50.0' in gateway.deps.metrics.text().decode()
    assert len([log for log in logs if log["event"] == "request_refused"]) == 1


# Every route, with the scopes that open it; None: no token needed.
ROUTES: dict[tuple[str, str], frozenset[Scope] | None] = {
    ("POST", "/tools"): frozenset({Scope.TOOLS}),
    ("POST", "/tools/{name}"): frozenset({Scope.TOOLS}),
    ("POST", "/tools/{name}/{again}"): frozenset({Scope.TOOLS}),
    ("POST", "/grade"): frozenset({Scope.GRADE}),
    ("POST", "/rollouts"): frozenset({Scope.ROLLOUTS}),
    ("GET", "/rollouts"): frozenset({Scope.ROLLOUTS}),
    ("GET", "/rollouts/{trace_id}"): frozenset({Scope.ROLLOUTS}),
    ("DELETE", "/rollouts/{trace_id}"): frozenset({Scope.ROLLOUTS}),
    ("GET", "/tools"): frozenset({Scope.ROLLOUTS}),
    ("GET", "/healthz"): None,
    ("GET", "/readyz"): None,
    ("GET", "/metrics"): frozenset({Scope.METRICS}),
    ("GET", "/openapi.json"): frozenset({Scope.ADMIN}),
}
BY_JOB = {path for _, path in ROUTES if path.startswith(("/tools", "/grade", "/rollouts"))}
BODIES = {"/rollouts": {"task_id": "t1", "trace_id": "x"}}


def every_route() -> dict[tuple[str, str], frozenset[Scope] | None]:
    more = {(method, "/jobs/{job}" + path): scopes for (method, path), scopes in ROUTES.items() if path in BY_JOB}
    return ROUTES | more


async def ask(client: httpx.AsyncClient, method: str, path: str, job: str = "demo") -> httpx.Response:
    url = path.format(job=job, name="shell", again="shell", trace_id="x")
    body = BODIES.get(path.removeprefix("/jobs/{job}"), CALL | {"trace_id": "x"})
    return await client.request(method, url, json=body if method == "POST" else None)


async def test_every_route_of_the_application_stands_in_the_table(gateway: Gateway) -> None:
    described = create_app(gateway.deps).openapi()["paths"]
    assert isinstance(described, dict)
    found = {(method.upper(), path) for path, methods in described.items() for method in dict(methods)}
    assert found == set(every_route())


@pytest.mark.parametrize("scope", list(Scope))
async def test_each_scope_opens_its_routes_and_no_other(gateway: Gateway, scope: Scope) -> None:
    async with gateway.client("one") as owner, gateway.client(scope.value) as client:
        for (method, path), allowed in every_route().items():
            await ask(owner, "POST", "/rollouts")
            reply = await ask(client, method, path)
            opened = allowed is None or scope in allowed
            assert (reply.status_code in (200, 201, 204)) == opened, (method, path, reply.text)
            assert opened or (reply.status_code, reply.json()["error"]) == (403, "forbidden"), (method, path)


async def test_without_a_token_nothing_is_told(gateway: Gateway) -> None:
    async with gateway.client(None) as client:
        for (method, path), allowed in every_route().items():
            reply = await ask(client, method, path)
            assert reply.status_code == (200 if allowed is None else 401), (method, path)
            nonsense = path.format(job="?", name="%00", again="x", trace_id="a b") + "?limit=x"
            assert (await client.request(method, nonsense)).status_code in (200, 401, 404), (method, path)


async def test_another_tenants_job_looks_like_no_job(gateway: Gateway) -> None:
    async with gateway.client("many") as owner:
        assert (await ask(owner, "POST", "/rollouts")).status_code == 201
    async with gateway.client("one") as client:
        for method, path in every_route():
            if "{job}" not in path:
                continue
            foreign = await ask(client, method, path, "many")
            missing = await ask(client, method, path, "no-such-job")
            assert foreign.status_code == missing.status_code == 404, (method, path)
            assert foreign.content == missing.content, (method, path)
    assert not await gateway.tainted("x", "many")


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_another_tenants_rollout_looks_like_no_rollout(gateway: Gateway, method: str) -> None:
    async with gateway.client("many") as owner:
        assert (await owner.post("/rollouts", json={"task_id": "t1", "trace_id": "theirs"})).status_code == 201
        assert (await owner.get("/rollouts/theirs")).status_code == 200
    async with gateway.client("one") as client:
        foreign = await client.request(method, "/rollouts/theirs")
        missing = await client.request(method, "/rollouts/none")
    assert foreign.status_code == missing.status_code == 404
    assert foreign.content == missing.content
    binding = await gateway.store.binding(RolloutKey(job=JobId("many"), trace_id=TraceId("theirs")))
    assert binding is not None
    assert binding.state.value == "open"


class TestOpenMode:
    @pytest.mark.parametrize("peer", ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"])
    async def test_this_machine_may_do_everything(self, gateway: Gateway, peer: str) -> None:
        async with gateway.but(auth=Auth.open_loopback()).client(None, peer) as client:
            assert (await client.post("/jobs/demo/tools", json=CALL)).status_code == 200
            assert (await client.get("/metrics")).status_code == 200
            assert (await client.get("/healthz", headers={"Host": "127.0.0.1:8000"})).status_code == 200
            assert (await client.get("/healthz", headers={"Host": "[::1]:8000"})).status_code == 200

    @pytest.mark.parametrize(
        "peer", ["10.0.0.1", "192.168.1.1", "8.8.8.8", "::2", "::ffff:10.0.0.1", "", "localhost.evil"]
    )
    async def test_other_machines_get_nothing(self, gateway: Gateway, peer: str) -> None:
        async with gateway.but(auth=Auth.open_loopback()).client(None, peer) as client:
            for path in ("/healthz", "/readyz", "/metrics", "/openapi.json", "/jobs/demo/rollouts"):
                assert (await client.get(path)).status_code == 403

    @pytest.mark.parametrize(
        "headers",
        [
            {"X-Forwarded-For": "127.0.0.1"},
            {"Forwarded": "for=127.0.0.1"},
            {"X-Real-IP": "127.0.0.1"},
            {"Origin": "https://evil.example"},
            {"Origin": "null"},
            {"Host": "evil.example"},
            {"Host": "localhost.evil.example"},
            {"Host": "127.0.0.1.evil.example:80"},
        ],
        ids=str,
    )
    async def test_proxies_and_web_pages_get_nothing(self, gateway: Gateway, headers: dict[str, str]) -> None:
        async with gateway.but(auth=Auth.open_loopback()).client(None) as client:
            assert (await client.post("/jobs/demo/tools", json=CALL, headers=headers)).status_code == 403
            assert (await client.get("/healthz", headers=headers)).status_code == 403

    async def test_with_tokens_those_headers_mean_nothing(self, gateway: Gateway) -> None:
        async with gateway.client("one", "10.0.0.1") as client:
            headers = {"X-Forwarded-For": "1.2.3.4", "Host": "gw.example"}
            assert (await client.post("/tools", json=CALL, headers=headers)).status_code == 200
