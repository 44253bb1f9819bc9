"""C20 where a task has an allow-list: what is listed can be reached, nothing else can, by any way that a box knows."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from orchestrator.models import Network
from tests.egress.conftest import LISTED, Open, Prober
from tests.egress.internet import Internet, docker, records
from tests.egress.servers import host_servers
from tests.needs import needs

pytestmark = [pytest.mark.anyio, needs("docker", "root")]

GATE = "100.127.0.1"
DENIED = "got 403 ERR_ACCESS_DENIED 0"


@pytest.fixture
async def host_server(internet: Internet) -> AsyncIterator[int]:
    async with host_servers(internet) as port:
        yield port


async def test_listed_names_are_reached_by_http(prober: Prober) -> None:
    for url in ("http://good.example/a?b", "http://x.wild.example/", "http://a.b.wild.example/"):
        found = await prober.tries("http", url)
        assert found.startswith("got 200 web saw: GET /"), found


async def test_listed_names_are_reached_by_tunnel(prober: Prober) -> None:
    for target in ("good.example:443", "a.wild.example:443"):
        assert "200" in await prober.tries("connect", target, "through the tunnel")
        assert "web saw: through the tunnel" in await prober.tries("connect", target, "through the tunnel")


@pytest.mark.parametrize(
    "host", ["evil.example", "also.example", "x.good.example", "wild.example", "good.example.evil.example"]
)
async def test_names_that_are_not_listed_are_refused(prober: Prober, host: str) -> None:
    assert (await prober.tries("http", f"http://{host}/")).strip() == DENIED
    assert "403" in await prober.tries("connect", f"{host}:443")


@pytest.mark.parametrize(
    "host",
    [name for name, to in records("", "").items() if name.endswith(".bad.example") and ":" not in "".join(to)]
    + ["alias.bad.example"],
)
async def test_names_that_lead_where_nobody_may_go_are_refused(prober: Prober, host: str, host_server: int) -> None:
    """host.bad.example is this machine, where a server listens on an allowed port."""
    assert (await prober.tries("http", f"http://{host}/")).strip() == DENIED
    assert "403" in await prober.tries("connect", f"{host}:443")


async def test_ipv6_is_not_spoken(prober: Prober) -> None:
    """Names with nothing else lead nowhere; one that has an IPv4 address, too, is reached there."""
    for host in ("six", "ula", "link", "mapped", "nat64"):
        found = await prober.tries("http", f"http://{host}.bad.example/")
        assert found.startswith(("got 502 ", "got 503 ")), found
        assert "200" not in await prober.tries("connect", f"{host}.bad.example:443")
    assert (await prober.tries("http", "http://mixed.bad.example/")).startswith("got 200 web saw")


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "127.1", "0x7f.1", "0x7f000001", "2130706433", "017700000001", "0", "169.254.169.254", "0xa9fea9fe", "2852039166",
        "[::1]", "[::]", "[::ffff:169.254.169.254]", "[::ffff:a9fe:a9fe]", "[64:ff9b::a9fe:a9fe]", "[fe80::1]", "10.0.0.1", "172.17.0.1", GATE,
        "localhost",
    ],
)  # fmt: skip
async def test_addresses_are_refused_in_every_notation(prober: Prober, host: str) -> None:
    found = await prober.tries(
        "raw", f"GET http://{host}/ HTTP/1.1\\r\\nHost: {host}\\r\\nConnection: close\\r\\n\\r\\n"
    )
    assert found.startswith(("got HTTP/1.1 403", "got HTTP/1.1 400")), found
    assert "web saw" not in found
    assert "200" not in await prober.tries("connect", f"{host}:443")


async def test_a_public_address_of_a_listed_host_is_refused_as_an_address(prober: Prober, internet: Internet) -> None:
    assert (await prober.tries("raw", f"GET http://{internet.web}/ HTTP/1.0\\r\\n\\r\\n")).startswith(
        "got HTTP/1.1 403"
    )


@pytest.mark.parametrize(
    "target", ["good.example:22", "good.example:80", "good.example:8080", "good.example:53", "good.example:0"]
)
async def test_tunnels_to_other_ports_are_refused(prober: Prober, target: str) -> None:
    assert "200" not in await prober.tries("connect", target)


@pytest.mark.parametrize(
    "url", ["http://good.example:8080/", "http://good.example:443/", "http://good.example:22/", "ftp://good.example/"]
)
async def test_requests_to_other_ports_and_protocols_are_refused(prober: Prober, url: str) -> None:
    assert (await prober.tries("raw", f"GET {url} HTTP/1.0\\r\\n\\r\\n")).startswith("got HTTP/1.1 403")


@pytest.mark.parametrize(
    ("target", "port"),
    [
        ("8.8.8.8", 53), ("169.254.169.254", 80), ("100.100.100.200", 80), ("172.17.0.1", 2375), ("10.0.0.1", 443), ("{web}", 80),
        ("{gateway}", 80), ("{dns}", 53), (GATE, 22), (GATE, 80), ("fd00:ec2::254", 80), ("::ffff:169.254.169.254", 80), ("fe80::1%eth0", 80),
    ],
)  # fmt: skip
async def test_nothing_is_reached_directly(prober: Prober, internet: Internet, target: str, port: int) -> None:
    """Control: the proxy's port and resolver, reached by the same probe."""
    host = target.format(web=internet.web, gateway=internet.gateway, dns=internet.dns)
    assert (await prober.tries("tcp", host, str(port))).startswith("failed")
    assert (await prober.tries("udp", host, str(port))).startswith("failed")
    assert (await prober.tries("tcp", GATE, "3128")).startswith("got connected")
    assert (await prober.tries("udp", GATE, "53")).startswith("got answered")


async def test_nothing_answers_to_icmp(prober: Prober, internet: Internet) -> None:
    for host in (internet.web, internet.gateway, "169.254.169.254", GATE):
        assert (await prober.tries("icmp", host)).startswith("failed")


async def test_this_machine_is_not_reached(prober: Prober, internet: Internet, host_server: int) -> None:
    """The fixture has seen that its servers answer others."""
    addresses = await asyncio.to_thread(
        docker, "network", "inspect", "bridge", "--format", "{{(index .IPAM.Config 0).Gateway}}"
    )
    for host in (internet.gateway, addresses or "172.17.0.1", GATE, "127.0.0.1"):
        for port in (host_server, 80):
            assert (await prober.tries("tcp", host, str(port))).startswith("failed")


async def test_another_box_is_not_reached(prober: Prober, opened: Open) -> None:
    other = await opened()
    await other.box.text("nohup python3 -m http.server --bind 0.0.0.0 8000 >/dev/null 2>&1 & sleep 1")
    address = (
        await other.box.text(
            'python3 -c "import socket; s=socket.socket(type=socket.SOCK_DGRAM); '
            f"s.connect(('{GATE}', 53)); print(s.getsockname()[0])\""
        )
    ).strip()
    serve = f"python3 -m http.server --bind 0.0.0.0 8000 >/dev/null 2>&1 & sleep 2; python3 /tmp/probe.py tcp {address} 8000"
    assert "got connected" in await other.box.text(serve)
    assert (await prober.tries("tcp", address, "8000")).startswith("failed")
    assert "403" in await prober.tries("raw", f"GET http://{address}:80/ HTTP/1.0\\r\\n\\r\\n")
    assert "403" in await prober.tries("connect", f"{address}:443")


async def test_the_box_has_one_route_and_no_ipv6(prober: Prober) -> None:
    routes = (await prober.box.text("cat /proc/net/route")).splitlines()[1:]
    assert [line.split()[:3] for line in routes] == [["eth0", "01007F64", "00000000"]]
    found = (await prober.box.text("cat /proc/net/if_inet6 2>/dev/null || true")).split("\n")
    assert not [line for line in found if line.endswith("eth0")]


@pytest.mark.parametrize(
    "url", [f"http://{GATE}:3128/squid-internal-mgr/info", "cache_object://100.127.0.1/info", "cache_object://localhost/menu",
            "http://proxy.invalid:3128/squid-internal-mgr/menu", "http://proxy.invalid:3128/squid-internal-static/icons/SN.png"],
)  # fmt: skip
async def test_the_proxys_own_pages_are_refused(prober: Prober, url: str) -> None:
    found = await prober.tries("raw", f"GET {url} HTTP/1.0\\r\\n\\r\\n")
    assert found.startswith(("got HTTP/1.1 403", "got HTTP/1.1 400")), found
    assert (await prober.tries("raw", "GET /squid-internal-mgr/menu HTTP/1.0\\r\\n\\r\\n")).startswith("got HTTP/1.1 4")


async def test_the_request_line_decides_not_the_host_header(prober: Prober) -> None:
    evil = await prober.tries(
        "raw", "GET http://evil.example/ HTTP/1.1\\r\\nHost: good.example\\r\\nConnection: close\\r\\n\\r\\n"
    )
    assert evil.startswith("got HTTP/1.1 403")
    good = await prober.tries(
        "raw", "GET http://good.example/ HTTP/1.1\\r\\nHost: evil.example\\r\\nConnection: close\\r\\n\\r\\n"
    )
    assert "web saw" in good
    assert "Host: good.example" in good
    assert "evil" not in good
    origin = await prober.tries("raw", "GET / HTTP/1.1\\r\\nHost: good.example\\r\\nConnection: close\\r\\n\\r\\n")
    assert origin.startswith("got HTTP/1.1 400")


@pytest.mark.parametrize(
    "first",
    [
        "GET http://good.example/ HTTP/1.1\\r\\nHost: good.example\\r\\n\\r\\n",
        "POST http://good.example/ HTTP/1.1\\r\\nHost: good.example\\r\\nContent-Length: 0\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n0\\r\\n\\r\\n",
        "POST http://good.example/ HTTP/1.1\\r\\nHost: good.example\\r\\nContent-Length: 4\\r\\nContent-Length: 0\\r\\n\\r\\n",
        "POST http://good.example/ HTTP/1.1\\r\\nHost: good.example\\r\\nTransfer-Encoding: xchunked\\r\\nContent-Length: 0\\r\\n\\r\\n",
        "GET http://good.example/ HTTP/1.1\\r\\nHost: good.example\\r\\nX: a\\nb\\r\\n\\r\\n",
    ],
)
async def test_a_request_behind_another_is_judged_by_itself(prober: Prober, first: str) -> None:
    """Smuggling: whatever becomes of the first, the second reaches nobody."""
    second = "GET http://evil.example/smuggled HTTP/1.1\\r\\nHost: evil.example\\r\\nConnection: close\\r\\n\\r\\n"
    found = await prober.tries("raw", first + second)
    assert found.startswith("got HTTP/1.1 ")
    assert "GET http://evil" not in found.replace("&", "")
    assert "web saw: GET /smuggled" not in found


async def test_the_resolver_answers_for_the_list_alone(prober: Prober, internet: Internet) -> None:
    for host in ("good.example", "x.wild.example"):
        assert (await prober.tries("name", host)).strip() == f"got {GATE}"
    for host in (
        "evil.example",
        "also.example",
        "data.good.example",
        "org",
        "metadata.google.internal",
        "localhost.localdomain",
    ):
        assert (await prober.tries("name", host)).startswith("failed gaierror")


async def test_names_carry_nothing_out_unless_a_wildcard_permits_them(prober: Prober, internet: Internet) -> None:
    """What a box chooses of a name reaches the internet's name servers only below a wildcard, which is what a wildcard says."""
    for host in ("secret1.evil.example", "secret2.good.example", "secret3.wild.example"):
        await prober.tries("name", host)
        await prober.tries("http", f"http://{host}/")
        await prober.tries("connect", f"{host}:443")
    asked = internet.asked()
    assert "secret1" not in asked
    assert "secret2" not in asked
    assert "secret3.wild.example" in asked


async def test_the_firewall_holds_where_the_proxy_would_err(
    prober: Prober, internet: Internet, host_server: int
) -> None:
    """As if squid had been talked into it (a name that changes its address between check and connection): from the proxy's own namespace."""
    proxy = await asyncio.to_thread(docker, "ps", "--quiet", "--filter", "label=tiltyard.role=egress")
    (container,) = proxy.split()

    async def reached(host: str, port: int) -> bool:
        script = f"timeout 3 bash -c 'exec 3<>/dev/tcp/{host}/{port}' && echo yes || echo no"
        return await asyncio.to_thread(docker, "exec", container, "sh", "-c", script) == "yes"

    assert await reached(internet.web, 80)
    refused = [(internet.web, 22), (internet.gateway, host_server)]
    refused += [(host, 80) for host in (internet.gateway, "169.254.169.254", "10.1.2.3", "172.17.0.1", "127.0.0.1")]
    assert await asyncio.gather(*(reached(host, port) for host, port in refused)) == [False] * len(refused)


async def test_a_box_without_a_list_has_no_interface_and_no_proxy(opened: Open) -> None:
    plain = await opened(Network())
    assert (await plain.box.text("ls /sys/class/net")).split() == ["lo"]
    assert "proxy" not in (await plain.box.text("env")).lower()
    assert (await plain.tries("tcp", GATE, "3128")).startswith("failed")


def test_the_list_of_these_tests_holds_what_they_take_for_listed() -> None:
    assert LISTED.allow == ("*.bad.example", "*.wild.example", "good.example")
