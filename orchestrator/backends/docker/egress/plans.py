"""What the proxy is, in the words of squid, dnsmasq, iptables and the Engine API. Pure.

A box's network namespace holds one wire, to the proxy's namespace: no bridge, no address of this machine, no route but the one to GATE.
Each rule is kept twice where it can be: squid decides by names and resolved addresses, the firewall of the proxy's namespace by addresses alone.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from orchestrator.backends.boxes import MIB
from orchestrator.backends.docker.spec import MASKED_PATHS, READONLY_PATHS
from orchestrator.egress.addresses import REFUSED_IPV4
from orchestrator.egress.names import WILDCARD
from orchestrator.models import JsonValue, Network, canonical_json

GATE = "100.127.0.1"
"""The proxy's address on every wire. It exists in the namespaces of boxes and proxies only, and lies in a refused range."""
POOL = "100.127.0.0/16"
FIRST, LAST = 2, 0xFFFE
"""Numbers of boxes' addresses in POOL."""
PORT = 3128
DNS_PORT = 53
ENGINE_DNS = "127.0.0.11"
"""The engine's resolver in namespaces on a network of its own."""
LIB = "/usr/local/lib/tiltyard"
CONF, NOTES = "/etc/tiltyard", "/var/log/tiltyard"
UID = 13
"""`proxy` in Debian (base-passwd)."""
UPLINK = "eth0"
WIRE = "eth0"
"""Name in the box."""
PROXY_MEMORY_MIB, PROXY_PIDS = 256, 64
HOLDER_MEMORY_MIB, HOLDER_PIDS = 16, 8
PROXY_FILES = 8192
"""Open connections of all boxes of one allow-list, two files each."""
BOX_CONNECTIONS = 256
"""Of one box at once: it cannot take the others' share."""
SAFE_METHODS = "GET HEAD POST PUT PATCH DELETE OPTIONS"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyPlan:
    """Everything a proxy is decided from. `uplink`: the engine's network it goes out by; `dns`: resolvers, empty for the engine's own;
    `own`: this machine's IPv4 addresses outside the refused ranges. There is no IPv6 in any of these namespaces, and squid asks for none."""

    network: Network
    uplink: str
    dns: tuple[str, ...]
    own: tuple[str, ...]
    owner: Mapping[str, str]
    """Labels: deployment, host, and whether it serves boxes or set-up commands."""
    image: str

    @property
    def key(self) -> str:
        return hashlib.sha256(canonical_json(asdict(self)).encode()).hexdigest()[:16]

    @property
    def name(self) -> str:
        return proxy_name(self.key)

    @property
    def resolvers(self) -> tuple[str, ...]:
        return self.dns or (ENGINE_DNS,)


def proxy_name(key: str) -> str:
    return f"tiltyard-egress-{key}"


def uplink_name(deployment: str, host_id: str, use: str) -> str:
    return f"tiltyard-egress-{deployment}-{host_id}-{use}"


def box_address(number: int) -> str:
    return f"100.127.{number >> 8}.{number & 0xFF}"


def proxy_environment() -> dict[str, str]:
    """How programs in the box find the proxy; both spellings are in use."""
    url = f"http://{GATE}:{PORT}"
    found = {"HTTP_PROXY": url, "HTTPS_PROXY": url, "NO_PROXY": "localhost,127.0.0.1,::1"}
    return found | {name.lower(): value for name, value in found.items()}


def squid_conf(plan: ProxyPlan) -> str:
    """The allowing line repeats every condition: the refusing ones above it only note why, and do not match while the note-taker fails."""
    names, apexes = _squid_names(plan.network)
    # squid takes no empty list; this name cannot be asked for.
    apex = " ".join(apexes) or "none.invalid"
    plain = [port for port in plan.network.ports if port != 443] or [0]
    tunnel = [port for port in plan.network.ports if port != 80] or [0]
    lines = [
        f"http_port {GATE}:{PORT}",
        "visible_hostname proxy.invalid",
        "acl boxes src " + POOL,
        "acl listed dstdomain -n " + " ".join(names),
        "acl apex dstdomain -n " + apex,
        "acl refused dst " + " ".join((*REFUSED_IPV4, *plan.own)),
        "acl tunnel method CONNECT",
        "acl methods method CONNECT " + SAFE_METHODS,
        "acl http proto HTTP",
        "acl plain_port port " + " ".join(map(str, plain)),
        "acl tunnel_port port " + " ".join(map(str, tunnel)),
        "acl plain_form all-of http plain_port !tunnel methods",
        "acl tunnel_form all-of tunnel tunnel_port",
        "acl form any-of plain_form tunnel_form",
        f"external_acl_type note ttl=0 negative_ttl=0 cache=0 children-startup=1 children-max=1 concurrency=10000 queue-size=20000 "
        f"%>a %>rm %>rd %>rP %DATA /usr/bin/gawk -v dir={NOTES} -f {LIB}/attempts.awk -f {LIB}/requests.awk",
        *(f"acl note_{verdict} external note {verdict}" for verdict in ("name", "port", "address", "allowed")),
        "http_access deny !boxes",
        "http_access deny apex note_name",
        "http_access deny !listed note_name",
        "http_access deny !form note_port",
        "http_access deny refused note_address",
        "http_access allow boxes listed !apex form !refused note_allowed",
        "http_access deny all",
        f"dns_nameservers {' '.join(plan.resolvers)}",
        "hosts_file none",
        "cache deny all",
        "cache_mem 0 MB",
        "memory_pools off",
        "access_log none",
        "cache_log /dev/null",
        "cache_store_log none",
        "netdb_filename none",
        "pid_filename none",
        "coredump_dir none",
        "pinger_enable off",
        "cachemgr_passwd disable all",
        "icp_port 0",
        "htcp_port 0",
        "snmp_port 0",
        "via off",
        "forwarded_for delete",
        "httpd_suppress_version_string on",
        "request_header_max_size 64 KB",
        "connect_timeout 20 seconds",
        "dns_timeout 10 seconds",
        "positive_dns_ttl 60 seconds",
        "negative_dns_ttl 1 seconds",
        f"max_filedescriptors {PROXY_FILES}",
        f"client_ip_max_connections {BOX_CONNECTIONS}",
        "shutdown_lifetime 0 seconds",
    ]
    return "\n".join(lines) + "\n"


def _squid_names(network: Network) -> tuple[list[str], list[str]]:
    """(names for dstdomain, bare names below which all is allowed but that are not themselves). squid refuses a name beside its wildcard."""
    wild = [name.removeprefix(WILDCARD) for name in network.allow if name.startswith(WILDCARD)]
    top = [name for name in wild if not any(name.endswith("." + other) for other in wild)]
    exact = [name for name in network.allow if not name.startswith(WILDCARD)]
    free = [name for name in exact if not any(name == other or name.endswith("." + other) for other in top)]
    return [*free, *("." + name for name in top)], [name for name in top if name not in network.allow]


def dnsmasq_conf(network: Network) -> str:
    """Listed names have the proxy's own address, which is where their port is; nothing that a box asks leaves this namespace."""
    exact = [name for name in network.allow if not name.startswith(WILDCARD)]
    below = [name.removeprefix(WILDCARD) for name in network.allow if name.startswith(WILDCARD)]
    lines = [
        "no-resolv",
        "no-hosts",
        "no-poll",
        f"port={DNS_PORT}",
        f"listen-address={GATE}",
        "bind-interfaces",
        "pid-file=",
        "cache-size=0",
        "log-queries=extra",
        "address=/#/",
        *(f"host-record={name},{GATE}" for name in exact),
        *(f"address=/{name}/{GATE}" for name in below),
    ]
    return "\n".join(lines) + "\n"


def firewall(plan: ProxyPlan) -> str:
    """For iptables-restore in the proxy's namespace: boxes reach two ports of GATE, the proxy reaches public addresses on the listed ports."""
    refuse = "-j REJECT --reject-with icmp-admin-prohibited"
    lines = [
        "*filter",
        ":INPUT DROP [0:0]",
        ":FORWARD DROP [0:0]",
        ":OUTPUT DROP [0:0]",
        "-A INPUT -i lo -j ACCEPT",
        f"-A INPUT -i b+ -s {POOL} -d {GATE} -p tcp --dport {PORT} -j ACCEPT",
        f"-A INPUT -i b+ -s {POOL} -d {GATE} -p udp --dport {DNS_PORT} -j ACCEPT",
        f"-A INPUT -i b+ -s {POOL} -d {GATE} -p tcp --dport {DNS_PORT} -j ACCEPT",
        "-A INPUT -i b+ -p tcp -j REJECT --reject-with tcp-reset",
        f"-A INPUT -i b+ {refuse}",
        f"-A INPUT -i {UPLINK} -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT",
        f"-A OUTPUT -o b+ -s {GATE} -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT",
        # Told at once what is refused below, instead of waiting for an answer.
        "-A OUTPUT -o lo -p icmp --icmp-type destination-unreachable -j ACCEPT",
        f"-A OUTPUT -o lo -d {ENGINE_DNS} -j ACCEPT",
        f"-A OUTPUT -o lo -s {ENGINE_DNS} -j ACCEPT",
        # squid talks to its helper over loopback; a service would listen on a port below these.
        "-A OUTPUT -o lo -s 127.0.0.1 -d 127.0.0.1 -p tcp --sport 32768: --dport 32768: -j ACCEPT",
    ]
    for resolver in plan.dns:
        lines += [
            f"-A OUTPUT -o {UPLINK} -d {resolver} -p {protocol} --dport 53 -j ACCEPT" for protocol in ("udp", "tcp")
        ]
    lines += [f"-A OUTPUT -d {reach} {refuse}" for reach in (*REFUSED_IPV4, *plan.own)]
    ports = ",".join(map(str, plan.network.ports))
    lines += [f"-A OUTPUT -o {UPLINK} -p tcp -m multiport --dports {ports} -j ACCEPT", f"-A OUTPUT {refuse}", "COMMIT"]
    return "\n".join(lines) + "\n"


def proxy_spec(plan: ProxyPlan, seccomp: str, folder: Path, labels: Mapping[str, str]) -> dict[str, JsonValue]:
    """The body of the create request. `seccomp` is the boxes' own filter; `folder` holds `conf` and `notes`."""
    return {
        "Image": plan.image,
        "User": f"{UID}:{UID}",
        "Hostname": "proxy",
        "Entrypoint": [f"{LIB}/run"],
        "Cmd": [],
        "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
        "Healthcheck": {"Test": ["NONE"]},
        "Labels": {**labels},
        "HostConfig": {
            **_hardened(seccomp, memory_mib=PROXY_MEMORY_MIB, pids=PROXY_PIDS),
            "NetworkMode": plan.uplink,
            "Mounts": [_bind(folder / "conf", CONF, read_only=True), _bind(folder / "notes", NOTES)],
            "Tmpfs": {
                "/run": "size=16m,mode=0755,uid=13,gid=13",
                "/tmp": "size=1m",  # noqa: S108 - its own
                "/var/spool/squid": "size=1m,uid=13",
            },
            "LogConfig": {"Type": "json-file", "Config": {"max-size": "1m", "max-file": "1"}},
            "Ulimits": [{"Name": "nofile", "Soft": PROXY_FILES, "Hard": PROXY_FILES}],
        },
    }


def holder_spec(image_id: str, seccomp: str, labels: Mapping[str, str], hostname: str) -> dict[str, JsonValue]:
    """A process that does nothing: it holds the box's network namespace, wired before the box starts (gVisor looks at it only then)."""
    return {
        "Image": image_id,
        "User": "65534:65534",
        "Hostname": hostname,
        "Entrypoint": ["/usr/bin/sleep"],
        "Cmd": ["infinity"],
        "Env": [],
        "Healthcheck": {"Test": ["NONE"]},
        "Labels": {**labels},
        "HostConfig": {
            **_hardened(seccomp, memory_mib=HOLDER_MEMORY_MIB, pids=HOLDER_PIDS),
            "NetworkMode": "none",
            "Dns": [GATE],
            "DnsSearch": ["."],
            "LogConfig": {"Type": "none"},
        },
    }


def _hardened(seccomp: str, *, memory_mib: int, pids: int) -> dict[str, JsonValue]:
    return {
        "ReadonlyRootfs": True,
        "Privileged": False,
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges", f"seccomp={seccomp}"],
        "Runtime": "runc",
        "IpcMode": "private",
        "CgroupnsMode": "private",
        "MaskedPaths": [*MASKED_PATHS],
        "ReadonlyPaths": [*READONLY_PATHS],
        "Memory": memory_mib * MIB,
        "MemorySwap": memory_mib * MIB,
        "PidsLimit": pids,
        "Sysctls": {
            "net.ipv4.ip_forward": "0",
            "net.ipv4.ip_unprivileged_port_start": "0",
            "net.ipv4.conf.all.rp_filter": "1",
            "net.ipv6.conf.all.disable_ipv6": "1",
            "net.ipv6.conf.default.disable_ipv6": "1",
        },
        "RestartPolicy": {"Name": "no"},
        "AutoRemove": False,
    }


def _bind(source: Path, target: str, *, read_only: bool = False) -> dict[str, JsonValue]:
    options: dict[str, JsonValue] = {"Propagation": "rprivate"}
    return {"Type": "bind", "Source": str(source), "Target": target, "ReadOnly": read_only, "BindOptions": options}


def proxy_wiring() -> Sequence[str]:
    """Lines of `ip -batch` in the proxy's namespace."""
    return [f"address add {GATE}/32 dev lo"]


def proxy_end(number: int) -> str:
    """Name of a box's wire in the proxy's namespace."""
    return f"b{number:04x}"


def wiring_at_proxy(number: int) -> Sequence[str]:
    end = proxy_end(number)
    return [f"link set {end} up", f"route add {box_address(number)}/32 dev {end} src {GATE}"]


def wiring_at_box(number: int) -> Sequence[str]:
    """One address, one route: to GATE. There is no default route."""
    return [
        f"address add {box_address(number)}/32 dev {WIRE}",
        f"link set {WIRE} up",
        f"route add {GATE}/32 dev {WIRE}",
    ]
