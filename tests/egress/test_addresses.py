"""The ranges that are refused, address by address."""

import pytest

from orchestrator.egress.addresses import REFUSED_IPV4, refused


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "100.64.0.1", "100.100.100.200", "100.127.255.255", "127.0.0.1", "127.255.0.1",
        "169.254.169.254", "169.254.0.1", "172.16.0.1", "172.17.0.1", "172.31.255.255", "192.0.0.1", "192.0.0.192", "192.168.0.1",
        "198.18.0.1", "198.19.255.255", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255",
        "::", "::1", "::ffff:169.254.169.254", "::ffff:8.8.8.8", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "fc00::1", "fd00:ec2::254", "fe80::1",
        "fec0::1", "ff02::1", "2002:a9fe:a9fe::1", "2001::1",
    ],
)  # fmt: skip
def test_nobody_may_go_there(address: str) -> None:
    assert refused(address)


@pytest.mark.parametrize(
    "address",
    ["8.8.8.8", "1.1.1.1", "9.255.255.255", "11.0.0.1", "100.63.255.255", "100.128.0.1", "169.253.1.1", "172.15.1.1", "172.32.0.1",
     "192.0.1.1", "192.169.0.1", "198.17.0.1", "198.20.0.1", "223.255.255.255", "2606:4700::1111", "2a00:1450::1"],
)  # fmt: skip
def test_public_addresses_are_free(address: str) -> None:
    assert not refused(address)
    assert refused(address, own=[address])


def test_the_ranges_that_every_list_must_have() -> None:
    must = {"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
            "192.168.0.0/16", "198.18.0.0/15", "224.0.0.0/4", "240.0.0.0/4"}  # fmt: skip
    assert must <= set(REFUSED_IPV4)
