"""An internet of the tests' own: a network of documentation addresses with a web server and a name server on it. Nothing leaves the machine."""

import secrets
import subprocess
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path

PYTHON, EGRESS = "tiltyard/python:3.11", "tiltyard/egress:bookworm"
SUBNETS = [
    *IPv4Network("203.0.113.0/24").subnets(new_prefix=27),
    *IPv4Network("198.51.100.0/24").subnets(new_prefix=27),
]
HERE = Path(__file__).parent


def docker(*command: str) -> str:
    done = subprocess.run(["docker", *command], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, (command, done.stderr)
    return done.stdout.strip()


@dataclass(frozen=True)
class Internet:
    """`gateway` is this machine's own address on it."""

    name: str
    gateway: str
    web: str
    dns: str

    def asked(self) -> str:
        """What the name server was asked so far."""
        done = subprocess.run(
            ["docker", "logs", f"{self.name}-dns"], capture_output=True, text=True, timeout=60, check=True
        )
        return done.stdout + done.stderr

    def end(self) -> None:
        docker("rm", "--force", "--volumes", f"{self.name}-web", f"{self.name}-dns")
        docker("network", "rm", self.name)


def records(web: str, gateway: str) -> dict[str, list[str]]:
    """Name -> addresses. Names below bad.example are allowed by the tests' lists, and lead where nobody may go."""
    return {
        "good.example": [web],
        "also.example": [web],
        "host.bad.example": [gateway],
        "meta.bad.example": ["169.254.169.254"],
        "ali.bad.example": ["100.100.100.200"],
        "ten.bad.example": ["10.1.2.3"],
        "lan.bad.example": ["192.168.1.1"],
        "bridge.bad.example": ["172.17.0.1"],
        "loop.bad.example": ["127.0.0.1"],
        "zero.bad.example": ["0.0.0.0"],
        "gate.bad.example": ["100.127.0.1"],
        "multi.bad.example": ["224.0.0.1"],
        "bench.bad.example": ["198.18.0.1"],
        "both.bad.example": [web, "10.1.2.3"],
        "six.bad.example": ["::1"],
        "ula.bad.example": ["fd00:ec2::254"],
        "link.bad.example": ["fe80::1"],
        "mapped.bad.example": ["::ffff:169.254.169.254"],
        "nat64.bad.example": ["64:ff9b::a9fe:a9fe"],
        "mixed.bad.example": [web, "::1"],
    }


def open_internet() -> Internet:
    name = f"tyeg-{secrets.token_hex(4)}"
    subnet = _network(name)
    hosts = [str(host) for host in subnet.hosts()]
    made = Internet(name=name, gateway=hosts[0], web=hosts[9], dns=hosts[10])
    try:
        _start(made)
    except BaseException:
        made.end()
        raise
    return made


def _network(name: str) -> IPv4Network:
    for subnet in secrets.SystemRandom().sample(SUBNETS, len(SUBNETS)):
        command = ["docker", "network", "create", "--subnet", str(subnet), name]
        if subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0:
            return subnet
    raise AssertionError("no subnet of documentation addresses is free")


def _start(made: Internet) -> None:
    common = ["--detach", "--network", made.name, "--memory", "128m", "--pids-limit", "64"]
    docker(
        "run", *common, "--name", f"{made.name}-web", "--ip", made.web,
        "--volume", f"{HERE / 'web.py'}:/web.py:ro", PYTHON, "python3", "/web.py",
    )  # fmt: skip
    listed = [
        f"--host-record={name},{address}"
        for name, addresses in records(made.web, made.gateway).items()
        for address in addresses
    ]
    docker(
        "run", *common, "--name", f"{made.name}-dns", "--ip", made.dns, EGRESS, "dnsmasq", "--keep-in-foreground",
        "--user=root", "--no-resolv", "--no-hosts", "--log-facility=-", "--log-queries", *listed,
        f"--address=/wild.example/{made.web}", "--cname=alias.bad.example,meta.bad.example",
    )  # fmt: skip
