"""Forks children from a process that has pytest imported and knows nothing: no plan, no events, no word of an earlier child."""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import signal
import socket
import struct
import sys
import sysconfig
import time
from typing import Any, NoReturn

from . import child, sweep

LENGTH = struct.Struct("!I")


def send_request(control: socket.socket, request: dict[str, Any], fds: list[int]) -> None:
    """The director's half of `_receive`: length and descriptors first, then the JSON."""
    body = json.dumps(request).encode()
    socket.send_fds(control, [LENGTH.pack(len(body))], fds)
    control.sendall(body)


def serve(control: socket.socket) -> NoReturn:
    """Start a warden per request until the director is gone."""
    _preload()
    control.sendall(b"up\n")
    while True:
        received = _receive(control)
        if received is None:
            os._exit(0)
        request, fds = received
        pid = os.fork()
        if pid == 0:
            _warden(control, request, *fds)
        for fd in fds:
            os.close(fd)
        os.waitpid(pid, 0)


def _receive(control: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    head, fds, _flags, _address = socket.recv_fds(control, LENGTH.size, 2)
    if len(head) < LENGTH.size:
        return None
    body = b""
    size = LENGTH.unpack(head)[0]
    while len(body) < size:
        part = control.recv(size - len(body))
        if not part:
            return None
        body += part
    return json.loads(body), fds


def _preload() -> None:
    """Import pytest from the interpreter's own packages, without `site`: no .pth and no sitecustomize runs."""
    gc.disable()  # nothing of an import is garbage
    sys.path.extend(path for path in package_dirs(sys.executable) if os.path.isdir(path) and path not in sys.path)
    import _pytest.config
    import pytest  # noqa: F401

    plugins = ["_pytest." + name for name in getattr(_pytest.config, "default_plugins", ())]
    for name in (*plugins, "_pytest._argcomplete", "faulthandler", "pdb"):
        with contextlib.suppress(
            ImportError
        ):  # else each child would import it; what a child cannot do without, it says
            importlib.import_module(name)
    gc.freeze()
    gc.enable()


def package_dirs(executable: str) -> list[str]:
    """Where that interpreter's installed packages lie; a virtual environment's before the system's."""
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    system = [
        sysconfig.get_path("purelib"),
        sysconfig.get_path("platlib"),
        f"/usr/local/lib/{version}/dist-packages",
        "/usr/lib/python3/dist-packages",
    ]
    prefix = os.path.dirname(os.path.dirname(executable))
    try:
        with open(os.path.join(prefix, "pyvenv.cfg"), encoding="utf-8") as file:
            settings = file.read().lower().replace(" ", "")
    except OSError:
        return system
    own = [os.path.join(prefix, lib, version, "site-packages") for lib in ("lib", "lib64")]
    return own + system if "include-system-site-packages=true" in settings else own


def _warden(control: socket.socket, request: dict[str, Any], events: int, output: int) -> NoReturn:
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
        pid = os.fork()
        if pid == 0:
            child.main(request, events, output)
        os.close(events)
        os.close(output)
        status = _wait(pid, request["timeout_s"])
        timed_out = status is None
        if status is None:
            os.kill(pid, signal.SIGKILL)
            status = os.waitpid(pid, 0)[1]
        clean = sweep.clear(request["uid"], request["sweeper_uid"])
        report = {"status": status, "timed_out": timed_out, "clean": clean}
        control.sendall(json.dumps(report).encode() + b"\n")
    finally:
        os._exit(0)


def _wait(pid: int, timeout_s: float) -> int | None:
    """The wait status, or None after `timeout_s`. Not by pidfd: gVisor has none."""
    end = time.monotonic() + timeout_s
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status
        left = end - time.monotonic()
        if left <= 0:
            return None
        signal.sigtimedwait([signal.SIGCHLD], left)
