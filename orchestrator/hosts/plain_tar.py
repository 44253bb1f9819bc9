"""Tars as the agent writes them, read strictly: regular files, each after at most one extended header that holds its name.

tarfile knows more than that, and on what a box's own program may have written it recurses (chains of extended headers) or never ends
(sparse maps), whatever is checked of the members that it returns.
"""

import tarfile
from collections.abc import Iterator

BLOCK = tarfile.BLOCKSIZE
HEADER_BYTES = 8 * BLOCK
"""An extended header's: it holds a path of at most 4,096 bytes less its own words."""


def regular_members(tar: bytes) -> Iterator[tuple[str, bytes]]:
    """Name and content of each member, in order. Raises ValueError for anything else, or where the end is missing."""
    offset, name = 0, ""
    while True:
        block = tar[offset : offset + BLOCK]
        try:
            head = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
        except tarfile.TarError as error:
            if len(block) == BLOCK and not any(block) and not name:
                return
            raise ValueError(f"a damaged header: {error}") from None
        data = tar[offset + BLOCK : offset + BLOCK + head.size]
        if head.size < 0 or len(data) != head.size:
            raise ValueError("a member that is cut")
        offset += BLOCK + -(-head.size // BLOCK) * BLOCK
        if head.type == tarfile.XHDTYPE and not name and head.size <= HEADER_BYTES:
            name = _path(data)
        elif head.type == tarfile.REGTYPE:
            yield name or head.name, data
            name = ""
        else:
            raise ValueError(f"a member of type {head.type!r}")


def _path(records: bytes) -> str:
    """Of an extended header, which must hold nothing else: `LENGTH path=VALUE\\n`."""
    length, _, rest = records.partition(b" ")
    key, _, value = rest.partition(b"=")
    if key != b"path" or length != b"%d" % len(records) or not value.endswith(b"\n") or len(value) < 2:
        raise ValueError("an extended header with more than a path")
    return value[:-1].decode("utf-8")
