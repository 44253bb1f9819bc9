"""What of this machine's own files a box sees: /usr, a few of /etc, what is named besides. Everything else is not there.

An allow-list: home folders, /root, /var, /run, /srv, keys, engines' sockets and whatever else a machine may hold need not be known to be kept out.
/etc is copied once per start of ours, so that a box has one mount of it and sees no file of this machine change.
"""

import errno
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import Misconfigured

LINKED = ("bin", "lib", "lib32", "lib64", "libx32", "sbin")
"""Links into /usr on a merged system, folders of their own on an older one."""
ETC = (
    *("alternatives", "debian_version", "fedora-release", "gai.conf", "host.conf", "inputrc", "java-*", "ld.so.cache"),
    *("ld.so.conf", "ld.so.conf.d", "locale.alias", "localtime", "lsb-release", "magic", "magic.mime", "mime.types"),
    *("os-release", "perl", "protocols", "python3*", "redhat-release", "rpc", "services", "shells", "ssl/certs"),
    *("ssl/openssl.cnf", "terminfo", "timezone", "xml"),
)
"""What toolchains read there. Not passwd, hosts, resolv.conf (a box has its own), and none that people write secrets into: profile, environment,
gitconfig, npmrc, pip.conf, maven, ssl/private, ssh, sudoers, shadow."""
BUILDING = ".building-"
MAX_FILE_BYTES = 4 * 1024 * 1024
OWN_ETC = {
    "passwd": "root:x:0:0:root:/:/usr/sbin/nologin\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    "group": "root:x:0:\nnogroup:x:65534:\n",
    "hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "hostname": "sandbox\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
    "resolv.conf": "nameserver 127.0.0.1\n",
}
PRIVATE = tuple(
    Path("/", name)
    for name in ("boot", "dev", "etc", "home", "media", "mnt", "proc", "root", "run", "srv", "sys", "tmp", "var")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Root:
    """`binds` and `links`: where in the box -> folder of this machine, text of the link. `etc` stands for /etc."""

    binds: Mapping[str, Path]
    links: Mapping[str, str]
    etc: Path
    masked: tuple[str, ...] = ()
    """Files of /proc that this machine has and boxes must not read."""
    masked_folders: tuple[str, ...] = ()


def check_shown(paths: Sequence[Path], state_dir: Path) -> None:
    """Raises Misconfigured for a folder that boxes must not be shown whole."""
    for path in paths:
        real = path.resolve()
        near = [private for private in (*PRIVATE, state_dir.resolve()) if real == private or real in private.parents]
        inside = [private for private in (*PRIVATE, state_dir.resolve()) if private in real.parents]
        if not path.is_absolute() or real != path or near or inside:
            raise Misconfigured(
                f"local_paths: {path} cannot be shown to boxes: name real folders outside of /home, /root, /etc, /var, /run, /tmp and the like"
            )
        if not real.is_dir():
            raise Misconfigured(f"local_paths: there is no folder {path}")


def read_root(own_dir: Path, paths: Sequence[Path], masked: Sequence[str], folders: Sequence[str]) -> Root:
    """Look at this machine; lay down the copy of /etc below `own_dir`. Blocks. Raises OSError."""
    binds = {"/usr": Path("/usr")}
    links = {}
    for name in LINKED:
        place = Path("/", name)
        if place.is_symlink():
            links[str(place)] = os.readlink(place)
        elif place.is_dir():
            binds[str(place)] = place
    binds |= {str(path): path for path in paths}
    present = tuple(path for path in masked if Path(path).is_file())
    present_folders = tuple(path for path in folders if Path(path).is_dir())
    return Root(
        binds=binds,
        links=links,
        etc=copy_etc(Path("/etc"), own_dir / "etc"),
        masked=present,
        masked_folders=present_folders,
    )


def copy_etc(source: Path, target: Path) -> Path:
    """`target/<digest>`: what boxes see as /etc, written once, whoever races. Blocks. Raises OSError."""
    target.mkdir(parents=True, exist_ok=True, mode=0o755)
    building = Path(tempfile.mkdtemp(dir=target, prefix=BUILDING))
    try:
        building.chmod(0o755)
        for path in public_files(source):
            _copy(path, building / path.relative_to(source))
        for name, text in OWN_ETC.items():
            (building / name).unlink(missing_ok=True)
            (building / name).write_text(text, encoding="ascii")
            (building / name).chmod(0o644)
        finished = target / _digest(building)
        try:
            building.rename(finished)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):  # it is there already
                raise
        return finished
    finally:
        shutil.rmtree(building, ignore_errors=True)


def forget_unfinished(own_dir: Path) -> None:
    """Remove copies that a killed process left half made; only for whoever holds the host's lock. Blocks."""
    for folder in (own_dir / "etc").glob(f"{BUILDING}*"):
        shutil.rmtree(folder, ignore_errors=True)


def public_files(etc: Path) -> Iterator[Path]:
    """Files and links that `ETC` names and everybody may read, however deep; of folders, what lies in them."""
    for pattern in ETC:
        for found in sorted(etc.glob(pattern)):
            yield from _public(found)


def _public(path: Path) -> Iterator[Path]:
    info = path.lstat()
    if stat.S_ISLNK(info.st_mode) or (
        stat.S_ISREG(info.st_mode) and info.st_mode & stat.S_IROTH and info.st_size <= MAX_FILE_BYTES
    ):
        yield path
    elif stat.S_ISDIR(info.st_mode) and info.st_mode & stat.S_IROTH and info.st_mode & stat.S_IXOTH:
        for inner in sorted(path.iterdir()):
            yield from _public(inner)


def _copy(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    shutil.copyfile(path, target, follow_symlinks=False)
    if not path.is_symlink():
        target.chmod(0o755 if os.stat(path).st_mode & stat.S_IXOTH else 0o644)


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        digest.update(f"{path.relative_to(folder)}\0".encode())
        if path.is_symlink():
            digest.update(os.readlink(path).encode())
        elif path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()[:32]
