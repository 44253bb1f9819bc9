"""Runs inside a box as the command's uid, tries what must not work, and prints what it found as JSON. Standard library only, x86-64."""

import ctypes
import errno
import json
import mmap
import os
import resource
import socket
import stat
import sys

LIBC = ctypes.CDLL(None, use_errno=True)
NEWUSER = 0x10000000
CALLS = {
    "acct": (163, 0),
    "add_key": (248, 0, 0, 0, 0, 0),
    "bpf": (321, 0, 0, 0),
    "chroot": (161, b"/"),
    "clock_settime": (227, 0, 0),
    "clone3": (435, 0, 0),
    "fanotify_init": (300, 0, 0),
    "finit_module": (313, -1, b"", 0),
    "fsopen": (430, b"tmpfs", 0),
    "init_module": (175, 0, 0, b""),
    "io_uring_enter": (426, -1, 0, 0, 0, 0),
    "io_uring_register": (427, -1, 0, 0, 0),
    "io_uring_setup": (425, 1, 0),
    "ioperm": (173, 0x80, 1, 1),
    "iopl": (172, 3),
    "kcmp": (312, 1, 1, 0, 0, 0),
    "kexec_load": (246, 0, 0, 0, 0),
    "keyctl": (250, 0, -3, 0),
    "memfd_secret": (447, 0),
    "modify_ldt": (154, 0, 0, 0),
    "mount": (165, b"none", b"/tmp", b"tmpfs", 0, 0),
    "mount_setattr": (442, -1, b"", 0, 0, 0),
    "move_mount": (429, -1, b"", -1, b"", 0),
    "name_to_handle_at": (303, -1, b"", 0, 0, 0),
    "open_by_handle_at": (304, -1, 0, 0),
    "open_tree": (428, -1, b"", 0),
    "perf_event_open": (298, 0, 0, -1, -1, 0),
    "personality_no_random": (135, 0x40000),
    "pidfd_getfd": (438, -1, 0, 0),
    "pivot_root": (155, b"/", b"/"),
    "process_madvise": (440, -1, 0, 0, 0, 0),
    "quotactl": (179, 0, b"", 0, 0),
    "reboot": (169, 0, 0, 0),
    "request_key": (249, 0, 0, 0, 0),
    "sethostname": (170, b"x", 1),
    "setns": (308, -1, 0),
    "settimeofday": (164, 0, 0),
    "swapon": (167, b"/", 0),
    "syslog": (103, 3, 0, 0),
    "umount2": (166, b"/tmp", 0),
    "unshare_user": (272, NEWUSER),
    "userfaultfd": (323, 1),
}
MASKED = (
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/kallsyms",
    "/proc/timer_list",
    "/proc/sched_debug",
    "/sys/firmware",
)
SWITCHES = (
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/kernel/hostname",
    "/proc/sysrq-trigger",
    "/sys/kernel/uevent_helper",
)
FAMILIES = {
    "unix": (1, 1, 0),
    "ip": (2, 1, 0),
    "ip6": (10, 2, 0),
    "netlink_route": (16, 3, 0),
    "netlink_audit": (16, 3, 9),
    "packet": (17, 3, 0),
    "alg": (38, 5, 0),
    "vsock": (40, 1, 0),
    "sctp": (2, 1, 132),
    "mptcp": (2, 1, 262),
    "raw": (2, 3, 1),
}
PEERS = (
    ("169.254.169.254", 80),
    ("100.100.100.200", 80),
    ("8.8.8.8", 53),
    ("172.17.0.1", 2375),
    ("10.96.0.1", 443),
    ("fd00:ec2::254", 80),
    ("2001:4860:4860::8888", 53),
    ("::ffff:169.254.169.254", 80),
)


def call(number, *arguments):
    """The error's name, or "ok". Ends in a child, so that what works harms nobody and a killed child is seen."""

    def attempt():
        words = [ctypes.c_char_p(a) if isinstance(a, bytes) else ctypes.c_long(a) for a in arguments]
        ctypes.set_errno(0)
        failed = LIBC.syscall(ctypes.c_long(number), *words) == -1
        return errno.errorcode.get(ctypes.get_errno(), "?") if failed else "ok"

    return in_child(attempt)


def in_child(attempt):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, attempt().encode())
        finally:
            os._exit(0)
    os.close(writer)
    answer = os.read(reader, 100).decode()
    os.close(reader)
    _, status = os.waitpid(child, 0)
    return f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else answer


def clone_user():
    def attempt():
        made = LIBC.syscall(ctypes.c_long(56), ctypes.c_long(NEWUSER | 17), *[ctypes.c_long(0)] * 4)
        if made == 0:
            os._exit(0)
        return "ok" if made > 0 else errno.errorcode[ctypes.get_errno()]

    return in_child(attempt)


def int80():
    """getpid through the 32-bit gate."""

    def attempt():
        page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        page.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")
        address = ctypes.addressof(ctypes.c_char.from_buffer(page))
        answer = ctypes.CFUNCTYPE(ctypes.c_int)(address)()
        return "ok" if answer > 0 else errno.errorcode.get(-answer, "?")

    return in_child(attempt)


def status_lines():
    with open("/proc/self/status") as lines:
        return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def reason(action):
    try:
        action()
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error.errno))
    return "ok"


def write_to(folder):
    path = os.path.join(folder, ".tiltyard-probe")

    def attempt():
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW, 0o600))
        os.unlink(path)

    return reason(attempt)


def folders():
    found = ["/"]
    for name in sorted(os.listdir("/")):
        path = "/" + name
        if os.path.isdir(path) and not os.path.islink(path) and path != "/proc":
            found.append(path)
    return [*found, "/dev/shm", "/dev/mqueue", "/home/agent", "/run/tiltyard", "/sys/fs/cgroup", "/var/tmp"]


def readable(path):
    """How many bytes or names it gives away."""
    try:
        if os.path.isdir(path):
            return len(os.listdir(path))
        with open(path, "rb") as stream:
            return len(stream.read(64))
    except OSError:
        return 0


def open_for_writing(path):
    return reason(lambda: os.close(os.open(path, os.O_WRONLY)))


def unix_sockets():
    found = []
    for folder, names, files in os.walk("/"):
        if folder in ("/proc", "/sys"):
            names.clear()
        for name in files:
            path = os.path.join(folder, name)
            try:
                if stat.S_ISSOCK(os.lstat(path).st_mode):
                    found.append(path)
            except OSError:
                pass
    return found


def make_socket(family, kind, protocol):
    return reason(lambda: socket.socket(family, kind, protocol).close())


def connect(host, port):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET

    def attempt(kind):
        with socket.socket(family, kind) as peer:
            peer.settimeout(1)
            peer.connect((host, port))

    return [reason(lambda: attempt(socket.SOCK_STREAM)), reason(lambda: attempt(socket.SOCK_DGRAM))]


def resolve():
    try:
        socket.getaddrinfo("example.com", 80)
    except OSError:
        return "fails"
    return "ok"


def mounts():
    found = {}
    with open("/proc/self/mountinfo") as lines:
        for line in lines:
            fields = line.split()
            found[fields[4]] = fields[5].split(",")
    return found


def processes():
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/cmdline", "rb") as stream:
                    found[name] = stream.read().replace(b"\0", b" ").decode("utf-8", "replace")[:60]
            except OSError:
                pass
    return found


def limits():
    names = ("NOFILE", "CORE", "FSIZE", "NPROC")
    return {name.lower(): resource.getrlimit(getattr(resource, f"RLIMIT_{name}")) for name in names}


def signal_agent():
    return reason(lambda: os.kill(1, 9))


def gather():
    return {
        "uid": os.getresuid(),
        "status": status_lines(),
        "environment": dict(os.environ),
        "writes": {folder: write_to(folder) for folder in folders()},
        "masked": {path: readable(path) for path in MASKED},
        "switches": {path: open_for_writing(path) for path in SWITCHES},
        "devices": sorted(os.listdir("/dev")),
        "unix_sockets": unix_sockets(),
        "agent_socket": reason(lambda: socket.socket(socket.AF_UNIX).connect("/run/tiltyard/agent.sock")),
        "agent_state": reason(lambda: os.listdir("/run/tiltyard/state")),
        "agent_memory": open_for_writing("/proc/1/mem"),
        "agent_signal": signal_agent(),
        "namespaces": {name: os.readlink(f"/proc/self/ns/{name}") for name in sorted(os.listdir("/proc/self/ns"))},
        "calls": {**{name: call(*arguments) for name, arguments in CALLS.items()}, "clone_user": clone_user()},
        "int80": int80(),
        "x32": call(0x40000000 | 39),
        "families": {name: make_socket(*arguments) for name, arguments in FAMILIES.items()},
        "interfaces": interfaces(),
        "peers": {host: connect(host, port) for host, port in PEERS},
        "names": resolve(),
        "loopback": loopback(),
        "mounts": mounts(),
        "processes": processes(),
        "limits": limits(),
        "mknod": reason(lambda: os.mknod("/tmp/probe-null", 0o600 | stat.S_IFCHR, os.makedev(1, 3))),
        "chown": reason(lambda: chown_a_file()),
    }


def interfaces():
    with open("/proc/net/dev") as lines:
        return [line.split(":")[0].strip() for line in lines if ":" in line]


def chown_a_file():
    path = "/tmp/probe-owned"
    with open(path, "w"):
        pass
    try:
        os.chown(path, 0, 0)
    finally:
        os.unlink(path)


def loopback():
    """The positive control of the network rows: the box's own loopback carries bytes."""

    def attempt():
        with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()[:2], 2):
            pass

    return reason(attempt)


json.dump(gather(), sys.stdout)
