"""A template's record on disk: manifest.json."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from orchestrator.errors import RepositoryError
from orchestrator.interfaces import Template
from orchestrator.operations import Manifest
from orchestrator.repos import manifests

FILE = "manifest.json"
SIZE_FILE = "size"
FORMAT = 1
"""Part of every key: a template of another format is never read, only pruned."""


class StoredTemplate(BaseModel):
    """`lowers` are names beside this file, topmost first; `image` is None where boxes start from the task's own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int
    key: str
    repository: str
    commit: str
    image: str | None
    lowers: tuple[str, ...]
    owner_uid: int
    files: manifests.Stored


def write(folder: Path, record: StoredTemplate, size_bytes: int) -> None:
    """Raises OSError."""
    (folder / FILE).write_text(record.model_dump_json(), encoding="utf-8")
    (folder / SIZE_FILE).write_text(str(size_bytes), encoding="ascii")


def read(folder: Path) -> Template | None:
    """The template in `folder`, its image empty where boxes start from the task's own; None where there is none.

    Raises RepositoryError for a damaged one.
    """
    try:
        raw = (folder / FILE).read_bytes()
    except FileNotFoundError:
        return None
    try:
        record = StoredTemplate.model_validate_json(raw)
        files: Manifest = manifests.from_stored(record.files)
    except (ValidationError, ValueError) as error:
        raise RepositoryError(f"template {folder.name} is damaged: remove its folder, it will be built anew") from error
    return Template(
        key=record.key,
        lowers=tuple(str(folder / name) for name in record.lowers),
        manifest=files,
        owner_uid=record.owner_uid,
        image=record.image or "",
    )


def size_bytes(folder: Path) -> int:
    """As written at building; 0 where unknown."""
    try:
        return int((folder / SIZE_FILE).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 0
