"""Python programs that checks run inside a box, with `python3 -I -c`. Each prints what it found, one word or line per finding."""

CONNECT = """
import errno, socket, sys
for target in sys.argv[1:]:
    host, _, port = target.rpartition(' ')
    try:
        found = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
    except OSError:
        print(target, 'unresolved')
        continue
    probe = socket.socket(found[0][0], socket.SOCK_STREAM)
    probe.settimeout(2)
    try:
        probe.connect(found[0][4])
        print(target, 'connected')
    except OSError as error:
        print(target, 'refused' if error.errno == errno.ECONNREFUSED else 'unreachable')
"""
"""`HOST PORT` each: connected, refused (somebody is there), unreachable, unresolved."""

SEND = """
import socket, sys
for target in sys.argv[1:]:
    host, _, port = target.rpartition(' ')
    probe = socket.socket(socket.AF_INET6 if ':' in host else socket.AF_INET, socket.SOCK_DGRAM)
    try:
        probe.sendto(b'x', (host, int(port)))
        print(target, 'sent')
    except OSError:
        print(target, 'unreachable')
"""

LOOPBACK = """
import socket
server = socket.create_server(('127.0.0.1', 0))
client = socket.create_connection(server.getsockname(), timeout=2)
peer, _ = server.accept()
client.sendall(b'hello')
print(peer.recv(5).decode())
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(('127.0.0.1', 0))
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', udp.getsockname())
print(len(udp.recv(5)))
"""

INTERFACES = """
import socket
print(' '.join(sorted(name for _, name in socket.if_nameindex())))
"""

SOCKETS = """
import os, socket, stat
for folder, folders, files in os.walk('/'):
    folders[:] = [name for name in folders if os.path.join(folder, name) not in ('/proc', '/sys')]
    for name in files:
        path = os.path.join(folder, name)
        try:
            if not stat.S_ISSOCK(os.lstat(path).st_mode):
                continue
            probe = socket.socket(socket.AF_UNIX)
            probe.connect(path)
            print(path)
        except OSError:
            continue
"""
"""Unix sockets that can be connected to."""

SYSCALLS = """
import ctypes, os, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
NUMBERS = {'x86_64': dict(io_uring_setup=425, bpf=321, perf_event_open=298, userfaultfd=323, keyctl=250, add_key=248,
  fsopen=430, move_mount=429, pivot_root=155, setns=308, open_by_handle_at=304, init_module=175, kexec_load=246,
  pidfd_getfd=438, mount=165, unshare=272, getpid=39)}
numbers = NUMBERS[os.uname().machine]
arguments = dict(unshare=(0x10000000,), io_uring_setup=(1, ctypes.create_string_buffer(120)), userfaultfd=(0,),
  keyctl=(0, -3, 0), bpf=(0, ctypes.create_string_buffer(64), 48), getpid=())
for name in sys.argv[1:]:
    result = libc.syscall(numbers[name], *arguments.get(name, (0, 0, 0, 0, 0)))
    print(name, 'allowed' if result >= 0 else os.strerror(ctypes.get_errno()))
for family in (38, 40):
    try:
        socket.socket(family, socket.SOCK_SEQPACKET if family == 38 else socket.SOCK_STREAM).close()
        print('family', family, 'allowed')
    except OSError as error:
        print('family', family, error.strerror)
"""

READABLE = """
import os, sys
for path in sys.argv[1:]:
    try:
        if os.path.isdir(path):
            os.listdir(path)
        else:
            with open(path, 'rb') as file:
                if not file.read(1):
                    continue
        print(path)
    except OSError:
        continue
"""
"""Those of the given paths that can be read and hold something."""

WRITABLE = """
import os, sys
for path in sys.argv[1:]:
    try:
        os.close(os.open(path, os.O_WRONLY))
        print(path)
    except OSError:
        continue
"""

TOP_LEVEL = """
import os
for name in sorted(os.listdir('/')):
    folder = '/' + name
    if name in ('proc', 'sys', 'dev') or os.path.islink(folder) or not os.path.isdir(folder):
        continue
    for place, _, _ in os.walk(folder):
        if place.count('/') > 2:
            break
        try:
            path = os.path.join(place, 'conformance-probe')
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
            os.unlink(path)
            print(place)
        except OSError:
            continue
"""
"""Folders of the root file system, to some depth, in which a file can be made."""

STATUS = """
import os, subprocess, sys
child = subprocess.run([sys.executable, '-c', "print(open('/proc/self/status').read())"], capture_output=True, text=True).stdout
for text in (open('/proc/self/status').read(), child):
    print(' '.join(line.split(':')[1].split()[0] for line in text.splitlines() if line.split(':')[0] in
      ('CapInh', 'CapPrm', 'CapEff', 'CapBnd', 'CapAmb', 'NoNewPrivs', 'Seccomp', 'Uid', 'Gid')))
"""

PROCESSES = """
import os
for pid in filter(str.isdigit, os.listdir('/proc')):
    try:
        print(open(f'/proc/{pid}/cmdline').read().replace(chr(0), ' '))
    except OSError:
        continue
"""

PTRACE = """
import ctypes, os, subprocess, sys
libc = ctypes.CDLL(None, use_errno=True)
def attach(pid):
    done = libc.ptrace(16, pid, None, None)
    if done == 0:
        libc.ptrace(17, pid, None, None)
    return 'attached' if done == 0 else 'refused'
print(attach(1))
"""

FORKS = """
import os, signal, sys, time
children, limit = [], int(sys.argv[1])
try:
    for _ in range(limit):
        pid = os.fork()
        if pid == 0:
            signal.pause()
        children.append(pid)
except OSError:
    pass
print(len(children))
for pid in children:
    os.kill(pid, signal.SIGKILL)
"""

BOMB = """
import os, sys, time
end = time.monotonic() + float(sys.argv[1])
sys.stdout.write('armed')
sys.stdout.flush()
while time.monotonic() < end:
    try:
        os.fork()
    except OSError:
        pass
os._exit(0)
"""

HOG = """
import sys
size, held = int(sys.argv[1]), []
for _ in range(size):
    held.append(bytearray(b'x') * (1024 * 1024))
print(len(held))
"""
"""Hold that many MiB, each page touched."""

INODES = """
import os, sys
made = 0
try:
    for number in range(int(sys.argv[1])):
        os.close(os.open(f'i{number}', os.O_CREAT | os.O_WRONLY))
        made += 1
except OSError as error:
    print(os.strerror(error.errno))
print(made)
"""

SPIN = """
import os, sys, time
def used():
    return sum(os.times()[:4])
end = time.monotonic() + float(sys.argv[1])
pids = []
for _ in range(4):
    pid = os.fork()
    if pid == 0:
        while time.monotonic() < end:
            pass
        os._exit(0)
    pids.append(pid)
for pid in pids:
    os.waitpid(pid, 0)
print(used())
"""
"""Processor seconds that four spinning processes get in that many seconds."""

LIMITS = """
import resource
print(*resource.getrlimit(resource.RLIMIT_NOFILE), *resource.getrlimit(resource.RLIMIT_CORE))
"""

SHARED_MEMORY = """
import os, sys
for number, path in enumerate(('/dev/shm/' + sys.argv[1], '/dev/mqueue/' + sys.argv[1])):
    try:
        if sys.argv[2] == 'make':
            os.close(os.open(path, os.O_CREAT | os.O_RDWR))
        print(number if os.path.exists(path) else 'none')
    except OSError:
        print('none')
"""
