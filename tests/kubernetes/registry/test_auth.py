"""Who we are to a registry, and to which one that is told."""

import asyncio
import io
import os
import ssl
import subprocess
from pathlib import Path

import pytest

from orchestrator.backends.kubernetes.registry.client import Registry
from orchestrator.backends.kubernetes.registry.references import parse_reference, parse_repository
from orchestrator.backends.kubernetes.registry.task_images import task_image
from orchestrator.errors import Misconfigured
from tests.kubernetes.registry.conftest import blob, log_in, push_base, settings, template
from tests.kubernetes.registry_server import Front, front

pytestmark = pytest.mark.anyio


async def test_a_certificate_that_nobody_vouches_for_is_told(proxy: Front, registry: Registry, tmp_path: Path) -> None:
    """By way of a redirect: what lies on loopback itself is spoken to without TLS."""
    name = f"{proxy.host}/base-tls:1"
    image = await registry.image(await push_base(registry, name))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    signed = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    await asyncio.to_thread(
        subprocess.run,
        [*signed, "-subj", "/CN=127.0.0.1", "-keyout", str(key), "-out", str(certificate)],
        check=True,
        capture_output=True,
    )
    context.load_cert_chain(certificate, key)
    async with front(proxy.upstream, tls=context) as other:
        proxy.sends_on = f"https://{other.host}"
        with pytest.raises(Misconfigured, match="no certificate that we trust"):
            await registry.read_blob(parse_reference(name), image.config)


def test_only_loopback_and_what_is_listed_goes_without_tls(tmp_path: Path) -> None:
    known = Registry(settings(tmp_path, insecure=frozenset({"registry.invalid:1"})))
    hosts = ("registry.invalid:1", "registry.invalid:2", "[::1]:2", "127.1.2.3", "localhost:1", "docker.io", "127.evil")
    assert [known.address(host) for host in hosts] == [
        "http://registry.invalid:1",
        "https://registry.invalid:2",
        "http://[::1]:2",
        "http://127.1.2.3",
        "http://localhost:1",
        "https://registry-1.docker.io",
        "https://127.evil",
    ]


async def test_a_store_that_we_are_sent_on_to_sees_no_login(proxy: Front, registry: Registry, tmp_path: Path) -> None:
    log_in(tmp_path, proxy.host)
    proxy.token = "one"
    name = f"{proxy.host}/base-store:1"
    async with front(proxy.upstream) as store:
        proxy.stores_at, proxy.sends_on = store.host, f"http://{store.host}"
        image = await registry.image(await push_base(registry, name))
        assert await registry.read_blob(parse_reference(name), image.config)
        assert [method for method, _ in store.seen] == ["PUT", "PUT", "PUT", "GET"]
        assert set(store.logins) == {""}
        store.token, store.realm = "two", f"http://{store.host}/token"
        with pytest.raises(Misconfigured, match="does not let us pull"):
            await registry.read_blob(parse_reference(name), image.config)
        assert store.scopes == []


async def test_a_login_is_taken_from_dockers_config(guarded: str, tmp_path: Path) -> None:
    async with Registry(settings(tmp_path)) as registry:
        name = f"{guarded}/base:1"
        with pytest.raises(Misconfigured, match=rf"wants a login: run `docker login {guarded}`"):
            await push_base(registry, name)
        log_in(tmp_path, guarded, "wrong")
        with pytest.raises(Misconfigured, match="does not let us push to") as caught:
            await push_base(registry, name)
        assert "wrong" not in str(caught.value)
        log_in(tmp_path, f"https://{guarded}/v1/")
        await push_base(registry, name)
        made = await task_image(registry, name, template(tmp_path), workdir="/w", repository=f"{guarded}/tasks")
        assert await registry.image(parse_reference(made))


async def test_a_config_that_cannot_be_read_is_told_without_what_it_holds(guarded: str, tmp_path: Path) -> None:
    (tmp_path / "docker").mkdir()
    (tmp_path / "docker" / "config.json").write_text('{"auths": {"x": "hunter2"}}')
    async with Registry(settings(tmp_path)) as registry:
        with pytest.raises(Misconfigured, match="cannot be read") as caught:
            await registry.image(parse_reference(f"{guarded}/a:1"))
    error: BaseException | None = caught.value
    assert "hunter2" not in str(error)
    assert caught.value.__suppress_context__


async def test_dockers_own_variable_names_the_config(
    guarded: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_in(tmp_path, guarded)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    async with Registry() as registry:
        await push_base(registry, f"{guarded}/by-variable:1")


async def test_tokens_are_asked_for_with_what_is_done(proxy: Front, registry: Registry, tmp_path: Path) -> None:
    proxy.token = "one"
    log_in(tmp_path, proxy.host)
    name = f"{proxy.host}/base-token:1"
    await push_base(registry, name)
    await task_image(registry, name, template(tmp_path), workdir="/w", repository=f"{proxy.host}/token")
    assert proxy.scopes == [
        ["repository:base-token:pull,push"],
        ["repository:base-token:pull"],
        ["repository:token:pull"],
        ["repository:token:pull,push", "repository:base-token:pull"],
        ["repository:token:pull,push"],
    ]
    proxy.token = "two"  # the first one's time is over
    data = os.urandom(3_000_000)
    await registry.put_blob(parse_repository(f"{proxy.host}/token"), blob(data), lambda: io.BytesIO(data))
    assert len(proxy.scopes) == 6


async def test_a_token_that_is_refused_is_told(proxy: Front, registry: Registry, tmp_path: Path) -> None:
    proxy.token = "one"
    log_in(tmp_path, proxy.host, "wrong")
    with pytest.raises(Misconfigured, match=rf"holds a login for {proxy.host} that may pull"):
        await registry.image(parse_reference(f"{proxy.host}/a:1"))


async def test_a_login_goes_only_where_nobody_listens_in(proxy: Front, registry: Registry, tmp_path: Path) -> None:
    proxy.token, proxy.realm = "one", "ftp://elsewhere.invalid/token"
    log_in(tmp_path, proxy.host)
    with pytest.raises(Misconfigured, match="no https address"):
        await registry.image(parse_reference(f"{proxy.host}/a:1"))
