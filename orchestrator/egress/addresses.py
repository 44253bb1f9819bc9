"""Addresses that nobody in a box is to reach by way of the proxy, whatever name resolves to them."""

from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

REFUSED_IPV4 = (
    "0.0.0.0/8",  # "this network": Linux connects to itself
    "10.0.0.0/8",
    "100.64.0.0/10",  # carrier-grade NAT; clouds keep metadata there, and our own wires lie in it
    "127.0.0.0/8",
    "169.254.0.0/16",  # link-local, where clouds keep metadata
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "224.0.0.0/4",
    "240.0.0.0/4",
)
REFUSED_IPV6 = (
    "::/128",
    "::1/128",
    "::ffff:0:0/96",  # v4-mapped
    "::ffff:0:0:0/96",  # v4-translated
    "64:ff9b::/96",  # NAT64
    "64:ff9b:1::/48",
    "100::/64",
    "2001::/23",
    "2002::/16",  # 6to4 carries an IPv4 address
    "fc00::/7",
    "fe80::/10",
    "fec0::/10",
    "ff00::/8",
)
"""IANA's special-purpose registries, less the ranges kept for documentation: nobody lives there."""

_RANGES: tuple[IPv4Network | IPv6Network, ...] = tuple(map(ip_network, (*REFUSED_IPV4, *REFUSED_IPV6)))


def refused(address: str, own: Iterable[str] = ()) -> bool:
    """Whether `address` lies in a refused range or is one of `own`, this machine's. Raises ValueError for what is no address."""
    found = ip_address(address)
    return any(found in reach for reach in _RANGES) or any(found == ip_address(each) for each in own)
