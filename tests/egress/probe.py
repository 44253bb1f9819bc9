"""What a box tries: one probe a run, `python3 probe.py KIND ARGUMENT...`. Prints what came of it; ends with 0 whatever it was."""

import contextlib
import socket
import sys
import urllib.error
import urllib.request

PROXY = ("100.127.0.1", 3128)
WAIT_S = 3.0


def http(url: str) -> str:
    """By the environment's proxy, as programs do it."""
    try:
        with urllib.request.urlopen(url, timeout=8) as reply:
            return f"{reply.status} {reply.read(4000).decode()}"
    except urllib.error.HTTPError as error:
        return f"{error.code} {error.headers.get('X-Squid-Error')}"


def raw(text: str) -> str:
    """`text` (with escapes) to the proxy; all that comes back."""
    with socket.create_connection(PROXY, WAIT_S) as link:
        link.settimeout(WAIT_S)
        link.sendall(text.encode().decode("unicode_escape").encode("latin-1"))
        found = b""
        with contextlib.suppress(TimeoutError, ConnectionResetError):
            while part := link.recv(65536):
                found += part
    return found[:20000].decode("latin-1")


def connect(target: str, line: str = "hello") -> str:
    """A tunnel to `target` (host:port) and one line through it."""
    with socket.create_connection(PROXY, WAIT_S) as link:
        link.settimeout(WAIT_S + 5)
        link.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
        status = link.recv(4096).decode("latin-1").split("\r\n")[0]
        if " 200 " not in status:
            return status
        link.sendall(line.encode() + b"\n")
        return f"{status} {link.recv(4096).decode('latin-1')}"


def tcp(host: str, port: str) -> str:
    with socket.create_connection((host, int(port)), WAIT_S):
        return "connected"


def udp(host: str, port: str) -> str:
    """A question for the address of example.org, and whether anything answers."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as link:
        link.settimeout(WAIT_S)
        link.connect((host, int(port)))
        link.send(b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07example\x03org\x00\x00\x01\x00\x01")
        return f"answered {len(link.recv(512))}"


def icmp(host: str) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP) as link:
        link.settimeout(WAIT_S)
        link.connect((host, 0))
        link.send(b"\x08\x00\xf7\xff\x00\x00\x00\x00")
        return f"answered {len(link.recv(512))}"


def name(host: str) -> str:
    return socket.gethostbyname(host)


try:
    print("got", globals()[sys.argv[1]](*sys.argv[2:]))
except Exception as error:  # noqa: BLE001  whatever it is, it is what came of it
    print("failed", type(error).__name__, error)
