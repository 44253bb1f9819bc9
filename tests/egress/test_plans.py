"""Configuration of the proxy as text: every condition in the allowing line, nothing of a task's in a place where it could say more than a name."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.backends.docker.egress import notes, plans
from orchestrator.backends.docker.egress.plans import ProxyPlan, dnsmasq_conf, firewall, squid_conf
from orchestrator.egress.addresses import REFUSED_IPV4
from orchestrator.egress.names import network
from orchestrator.errors import StartFailed

PLAN = ProxyPlan(
    network=network(["pypi.org", "*.example.org"]),
    uplink="up",
    dns=("203.0.113.53",),
    own=("203.0.113.1",),
    owner={"tiltyard.deployment": "d", "tiltyard.host": "h", "tiltyard.egress.use": "boxes"},
    image="sha256:aa",
)


def line(conf: str, start: str) -> str:
    (found,) = [each for each in conf.splitlines() if each.startswith(start)]
    return found.removeprefix(start).strip()


def test_one_line_allows_and_it_holds_every_condition() -> None:
    rules = [each for each in squid_conf(PLAN).splitlines() if each.startswith("http_access ")]
    (allow,) = [each for each in rules if "allow" in each]
    assert allow == "http_access allow boxes listed !apex form !refused note_allowed"
    assert rules[0] == "http_access deny !boxes"
    assert rules[-1] == "http_access deny all"


def test_addresses_are_refused_twice_by_the_proxy_and_by_its_firewall() -> None:
    listed = line(squid_conf(PLAN), "acl refused dst").split()
    rules = firewall(PLAN).splitlines()
    accept = next(number for number, rule in enumerate(rules) if "multiport" in rule)
    for reach in (*REFUSED_IPV4, "203.0.113.1"):
        assert reach in listed
        (at,) = [number for number, rule in enumerate(rules) if rule.startswith(f"-A OUTPUT -d {reach} -j REJECT")]
        assert at < accept
    assert [rule for rule in rules if rule.startswith(":")] == [
        ":INPUT DROP [0:0]",
        ":FORWARD DROP [0:0]",
        ":OUTPUT DROP [0:0]",
    ]


@pytest.mark.parametrize(
    ("allow", "names", "apex"),
    [
        (["a.org"], "a.org", "none.invalid"),
        (["*.a.org"], ".a.org", "a.org"),
        (["*.a.org", "a.org"], ".a.org", "none.invalid"),
        (["*.a.org", "x.a.org"], ".a.org", "a.org"),
        (["*.a.org", "*.b.a.org", "b.a.org"], ".a.org", "a.org"),
        (["*.a.org", "ba.org"], "ba.org .a.org", "a.org"),
    ],
)
def test_squid_is_given_no_name_beside_its_wildcard(allow: list[str], names: str, apex: str) -> None:
    conf = squid_conf(replace(PLAN, network=network(allow)))
    assert line(conf, "acl listed dstdomain -n") == names
    assert line(conf, "acl apex dstdomain -n") == apex


@pytest.mark.parametrize(
    ("ports", "plain", "tunnel"),
    [((80, 443), "80", "443"), ((443,), "0", "443"), ((80,), "80", "0"), ((80, 443, 8443), "80 8443", "443 8443")],
)
def test_port_80_is_plain_and_443_is_tunnelled(ports: tuple[int, ...], plain: str, tunnel: str) -> None:
    conf = squid_conf(replace(PLAN, network=network(["a.org"], ports)))
    assert line(conf, "acl plain_port port") == plain
    assert line(conf, "acl tunnel_port port") == tunnel


def test_the_resolver_asks_nobody() -> None:
    conf = dnsmasq_conf(PLAN.network).splitlines()
    assert "no-resolv" in conf
    assert not [each for each in conf if each.startswith("server")]
    assert "host-record=pypi.org,100.127.0.1" in conf
    assert "address=/example.org/100.127.0.1" in conf


def test_a_proxy_is_known_by_all_that_it_is_made_from() -> None:
    others = [
        replace(PLAN, network=network(["pypi.org"])),
        replace(PLAN, dns=()),
        replace(PLAN, own=()),
        replace(PLAN, uplink="other"),
        replace(PLAN, image="sha256:bb"),
        replace(PLAN, owner={**PLAN.owner, "tiltyard.egress.use": "setup"}),
    ]
    assert len({plan.key for plan in (PLAN, *others)}) == len(others) + 1
    assert replace(PLAN).key == PLAN.key


def test_proxy_and_holder_may_do_nothing_of_this_machine() -> None:
    proxy: Any = plans.proxy_spec(PLAN, "{}", Path("/srv/e"), {})["HostConfig"]
    holder: Any = plans.holder_spec("sha256:aa", "{}", {}, "sandbox")["HostConfig"]
    for config in (proxy, holder):
        assert config["CapDrop"] == ["ALL"]
        assert config["ReadonlyRootfs"] is True
        assert config["SecurityOpt"] == ["no-new-privileges", "seccomp={}"]
        assert config["Sysctls"]["net.ipv4.ip_forward"] == "0"
        assert config["Sysctls"]["net.ipv6.conf.all.disable_ipv6"] == "1"
    assert (holder["NetworkMode"], holder["Dns"]) == ("none", ["100.127.0.1"])
    assert "Mounts" not in holder


def test_numbers_are_given_out_in_turn_and_again_only_after_all_others(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "cut").mkdir()
    assert [notes.next_number(tmp_path, chown=False) for _ in range(3)] == [2, 3, 4]
    notes.forget(tmp_path, 3)
    assert notes.next_number(tmp_path, chown=False) == 5
    (tmp_path / "next").write_text(str(plans.LAST))
    assert [notes.next_number(tmp_path, chown=False) for _ in range(2)] == [plans.LAST, 3]
    assert plans.box_address(plans.LAST) == "100.127.255.254"


def test_a_damaged_counter_is_no_reason_to_give_an_address_twice(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "next").write_text("")
    assert [notes.next_number(tmp_path, chown=False) for _ in range(2)] == [2, 3]


def test_full_is_said(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    for number in range(plans.FIRST, plans.FIRST + 4):
        (tmp_path / "notes" / f"{plans.box_address(number)}.queries").touch()
    assert notes.next_number(tmp_path, last=plans.FIRST + 4, chown=False) == plans.FIRST + 4
    with pytest.raises(StartFailed, match="in use"):
        notes.next_number(tmp_path, last=plans.FIRST + 4, chown=False)
