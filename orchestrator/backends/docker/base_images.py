"""tiltyard's own images, made from `sandbox_images/`: rebuilt when the recipe changes, found by label when it does not."""

import asyncio
import hashlib
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import sandbox_images
from orchestrator.backends.docker.engine import Engine
from orchestrator.errors import Misconfigured, StartFailed

RECIPE_LABEL = "tiltyard.recipe"
BASE = "tiltyard/base:bookworm"
PYTHON = "tiltyard/python:3.11"
EGRESS = "tiltyard/egress:bookworm"
BUSYBOX = "tiltyard/busybox:bookworm"
"""A POSIX shell, its applets and nothing else: boxes must need no more of an image."""
NAMES = (BASE, PYTHON, EGRESS, BUSYBOX)
RECIPES = Path(sandbox_images.__file__).parent
BOOTSTRAP_TIMEOUT_S = 900.0
"""Half a minute on a good line; a slow mirror takes many times that."""

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How one image is made. `parent` is what it is built over: empty where it is bootstrapped from packages."""

    name: str
    folder: Path
    parent: str

    @property
    def bootstrapped(self) -> bool:
        return not self.parent


def recipe(name: str, registry_base: str = "") -> Recipe:
    """Of one of NAMES; `registry_base` replaces the bootstrap. Raises Misconfigured for another name."""
    if name == BASE:
        return Recipe(name=BASE, folder=RECIPES / "base", parent=registry_base)
    if name == PYTHON:
        return Recipe(name=PYTHON, folder=RECIPES / "python", parent=BASE)
    if name == EGRESS:
        return Recipe(name=EGRESS, folder=RECIPES / "egress", parent=BASE)
    if name == BUSYBOX:
        return Recipe(name=BUSYBOX, folder=RECIPES / "busybox", parent=registry_base)
    raise Misconfigured(f"{name!r} is not one of tiltyard's own images: {', '.join(NAMES)}")


def recipe_digest(recipe_: Recipe, parent_id: str) -> str:
    """Changes when anything that the image is made from changes, as far as we choose it: recipe files and parent."""
    digest = hashlib.sha256(parent_id.encode())
    for path in sorted(path for path in recipe_.folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        digest.update(f"\0{path.relative_to(recipe_.folder)}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


async def ensure(engine: Engine, name: str, *, registry_base: str = "", progress: Progress = lambda _: None) -> str:
    """The image's id, made first (its parent, too) when it is missing or its recipe changed.

    Raises Misconfigured (unknown name, no mmdebstrap), StartFailed (the build's words), EngineUnavailable.
    """
    found = recipe(name, registry_base)
    parent_id = found.parent
    if found.parent == BASE:
        parent_id = await ensure(engine, BASE, registry_base=registry_base, progress=progress)
    digest = await asyncio.to_thread(recipe_digest, found, parent_id)
    present = await engine.image(name)
    if present is not None and present.labels.get(RECIPE_LABEL) == digest:
        progress(f"{name} is up to date")
        return present.id
    progress(f"making {name} (once; minutes on a slow line)")
    labels = {RECIPE_LABEL: digest}
    if found.bootstrapped:
        await _bootstrap(engine, found, labels)
    else:
        await engine.build(found.folder, tag=name, arguments={"BASE": found.parent}, labels=labels, progress=progress)
    made = await engine.image(name)
    if made is None:
        raise StartFailed(f"the engine lost {name} right after it was made")
    progress(f"{name} is made")
    return made.id


async def _bootstrap(engine: Engine, found: Recipe, labels: Mapping[str, str]) -> None:
    repository, _, tag = found.name.partition(":")
    if shutil.which("mmdebstrap") is None:
        raise Misconfigured(
            f"{found.name} is made with mmdebstrap, which is not installed: apt-get install mmdebstrap; "
            "or build over an image that you can pull: sandbox_images/build --base debian:bookworm-slim"
        )
    with tempfile.TemporaryDirectory(prefix="tiltyard-base-") as folder:
        tar = Path(folder) / "root.tar"
        await _run_to_file(found.folder / "bootstrap", tar)
        await engine.import_image(tar, repository=repository, tag=tag, labels=labels, environment={"LANG": "C.UTF-8"})


async def _run_to_file(command: Path, target: Path) -> None:
    """Run with an empty environment but PATH: no proxy, bundle or option of this machine may shape the image."""
    with target.open("wb") as stream:
        process = await asyncio.create_subprocess_exec(
            str(command),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=stream,
            stderr=asyncio.subprocess.PIPE,
            env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(target.parent)},
        )
        try:
            async with asyncio.timeout(BOOTSTRAP_TIMEOUT_S):
                _, errors = await process.communicate()
        except TimeoutError:
            raise StartFailed(f"{command.name} did not end within {BOOTSTRAP_TIMEOUT_S:g} s") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    if process.returncode:
        raise StartFailed(f"{command.name} failed: {errors.decode('utf-8', 'replace')[-2000:]}")
