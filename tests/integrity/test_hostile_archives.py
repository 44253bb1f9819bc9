"""C28 on the host: what a box sends for evidence is exactly what was asked for, or the box is at fault; no archive can do more than that."""

import hashlib
import io
import resource
import tarfile
import time
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import AgentProtocolError
from orchestrator.hosts.evidence import unpack
from orchestrator.operations import Change

BLOCK = tarfile.BLOCKSIZE
END = bytes(2 * BLOCK)
GIB = 1024**3


def change(path: str, data: bytes) -> Change:
    digest = hashlib.sha256(data).hexdigest()
    return Change(path=path, kind="added", type="file", mode=0o644, size_bytes=len(data), sha256=digest)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


def member(name: str, data: bytes = b"", *, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = -1) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, len(data) if size < 0 else size
    return info.tobuf(tarfile.USTAR_FORMAT) + padded(data)


def extended(records: Mapping[str, str], name: str = "a", data: bytes = b"x") -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.pax_headers = len(data), dict(records)
    return info.tobuf(tarfile.PAX_FORMAT) + padded(data)


def header(records: bytes) -> bytes:
    return member("PaxHeaders/a", records, kind=tarfile.XHDTYPE)


SPARSE = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "a", "GNU.sparse.realsize": "1"}
WANTED = [change("a", b"x")]
TRICKS: Mapping[str, bytes] = {
    "nothing": END,
    "no end": member("a", b"x"),
    "no bytes": b"",
    "another name": member("b", b"x"),
    "one more": member("a", b"x") + member("b", b"x"),
    "the same twice": member("a", b"x") + member("a", b"x"),
    "other content": member("a", b"y"),
    "a link": member("a", kind=tarfile.SYMTYPE, link="/etc/passwd"),
    "a hard link": member("a", kind=tarfile.LNKTYPE, link="/etc/shadow"),
    "a link and a file through it": member("a", kind=tarfile.SYMTYPE, link="/tmp") + member("a/x", b"x"),
    "a device": member("a", kind=tarfile.CHRTYPE),
    "a pipe": member("a", kind=tarfile.FIFOTYPE),
    "a folder": member("a", kind=tarfile.DIRTYPE),
    "a climbing name": member("../a", b"x"),
    "an absolute name": member("/a", b"x"),
    "an extended header that climbs": extended({"path": "../../a"}),
    "an extended header's size": extended({"size": str(10 * GIB)}),
    "an extended header's link": extended({"linkpath": "/etc/passwd"}),
    "an extended header of gigabytes": member("x", b"9", kind=tarfile.XHDTYPE, size=7 * GIB),
    "extended headers in a chain": header(b"12 path=aaa\n") * 5000 + member("a", b"x"),
    "a global header": member("x", b"10 path=a\n", kind=tarfile.XGLTYPE) + member("a", b"x"),
    "long names in a chain": member("././@LongLink", b"a\0", kind=tarfile.GNUTYPE_LONGNAME) * 5000 + member("a", b"x"),
    "a sparse map without end": extended(SPARSE, data=b"99999999\n1\n"),
    "a sparse member": member("a", b"x", kind=tarfile.GNUTYPE_SPARSE),
    "a size of gigabytes": member("a", b"x", size=7 * GIB),
    "a torn member": (member("a", b"x") + END)[: BLOCK + 1],
    "a header that is no UTF-8": header(b"11 path=\xff\xfe\n") + member("a", b"x"),
    "a compressed archive": b"\x1f\x8b\x08" + bytes(600),
    "noise": bytes(range(256)) * 8,
}


def test_what_was_asked_for_is_taken() -> None:
    files = {"a": b"x", "ü/" + "n" * 200 + "/" + "m" * 200: b"y" * 1000, "empty": b"", "deep/" * 20 + "f": bytes(700)}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    assert unpack(buffer.getvalue(), [change(name, data) for name, data in files.items()]) == files


@pytest.mark.parametrize("name", TRICKS)
def test_a_trick_is_the_boxs_fault_at_once_and_costs_nothing(name: str) -> None:
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(AgentProtocolError):
        unpack(TRICKS[name] + (b"" if name in ("no end", "no bytes", "a torn member") else END), WANTED)
    assert time.process_time() - began < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024


@settings(max_examples=300)
@given(st.binary(max_size=40), st.integers(0, 3 * BLOCK), st.binary(max_size=30))
def test_no_bytes_do_more_than_be_refused(head: bytes, at: int, splice: bytes) -> None:
    sound = header(b"10 path=a\n") + member("ignored", b"x") + END
    try:
        found = unpack(head + sound[:at] + splice + sound[at + len(splice) :], WANTED)
    except AgentProtocolError:
        return
    assert found == {"a": b"x"}
