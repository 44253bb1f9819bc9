"""Source releases of a published package, fetched with its index's own client and unpacked without running any of it."""

import os
import tarfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from orchestrator.errors import Misconfigured

MAX_FILE_BYTES = 2 * 1024 * 1024
MAX_FILES = 5_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """One published source archive; `sha256` pins its content."""

    project: str
    version: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    path: str
    data: bytes
    executable: bool


def fetch(release: Release, folder: Path) -> Path:
    """The archive in `folder`, downloaded when missing and checked against its hash.

    The index is pip's: PIP_INDEX_URL where set, else the public one. Raises Misconfigured with the fix.
    """
    try:
        from pypi_simple import PyPISimple
    except ImportError as error:
        raise Misconfigured("the demo fetches its packages with pypi-simple: pip install 'tiltyard[demo]'") from error
    target = folder / f"{release.project}-{release.version}.tar.gz"
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    endpoint = os.environ.get("PIP_INDEX_URL")
    try:
        with PyPISimple(endpoint=endpoint) if endpoint else PyPISimple() as index:
            for package in index.get_project_page(release.project).packages:
                if package.package_type == "sdist" and package.version == release.version:
                    package.digests = {"sha256": release.sha256}
                    index.download_package(package, target)
                    return target
    except Exception as error:
        raise Misconfigured(
            f"cannot fetch {release.project} {release.version}: {type(error).__name__}. "
            "The demo needs the Python package index once; set PIP_INDEX_URL if you use a mirror."
        ) from error
    raise Misconfigured(f"the package index has no source archive of {release.project} {release.version}")


def unpack(archive: Path) -> tuple[SourceFile, ...]:
    """Regular files of the archive below its single top folder; links, devices and odd paths are passed over.

    Raises Misconfigured when it holds more or larger files than a source release has.
    """
    files: list[SourceFile] = []
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            path = _inner_path(member.name)
            if not member.isreg() or path is None:
                continue
            if member.size > MAX_FILE_BYTES or len(files) >= MAX_FILES:
                raise Misconfigured(f"{archive.name} is larger than a source release should be")
            stream = tar.extractfile(member)
            if stream is not None:
                files.append(SourceFile(path=path, data=stream.read(), executable=bool(member.mode & 0o100)))
    return tuple(files)


def _inner_path(name: str) -> str | None:
    parts = PurePosixPath(name).parts
    if name.startswith("/") or ".." in parts or ".git" in parts or len(parts) < 2:
        return None
    return str(PurePosixPath(*parts[1:]))
