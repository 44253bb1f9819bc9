"""What building templates needs of a container engine: images by reference, their files, and a throw-away box for set-up commands.

The docker backend implements all; `orchestrator.repos.fakes` has the in-memory ones.
"""

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar

from orchestrator.models import DEFAULT_WORKDIR, Network

T = TypeVar("T")


class ImageResolver(Protocol):
    """Knows the engine's images. Nothing is ever pulled."""

    async def image_id(self, reference: str) -> str:
        """The id (`sha256:...`) that `reference` (a tag, digest or id) names now. Raises Misconfigured with the fix when it is missing."""
        ...


class ImageFiles(Protocol):
    """Reads an image's files, running nothing of it."""

    async def read_folder(self, image: str, path: str, read: Callable[[BinaryIO], T], *, timeout_s: float) -> T:
        """`read(stream)` in a thread, over an uncompressed tar of the folder `path` and all below it: its members' names begin with the
        folder's own. "/" is the whole image. The stream is the image's: hostile. It ends, whatever `read` does, and raises OSError when it breaks.

        Raises Misconfigured (no such folder in the image), RepositoryError (it took longer than `timeout_s`), EngineUnavailable; what `read` raises.
        """
        ...


class Images(ImageResolver, ImageFiles, Protocol):
    """Both."""


class SetupRunner(Protocol):
    """Runs a task's set-up commands, once per template."""

    async def run_setup(
        self,
        *,
        image: str,
        commands: tuple[str, ...],
        tree: Path,
        upper: Path,
        tag: str,
        network: Network,
        timeout_s: float,
        workdir: str = DEFAULT_WORKDIR,
    ) -> str:
        """Run `commands` in turn as root (`sh -ec`), cwd = the workspace (mounted at `workdir`), in a throw-away container of `image`.

        They reach the hosts of `network` through a proxy that their environment names, and nothing else.

        The workspace is an overlay with `tree` as its lower and `upper` as its upper; its work folder is `upper.with_name("work")`, which stands
        empty beside it. What the commands change outside the workspace is committed as an image named `tag`.

        Without root (`os.geteuid() != 0`) everything in `upper` must belong to the caller's uid when this returns or a command fails (`chown -h`
        inside the container as its last act): the boxes' commands run as that uid. With root the caller mends owners itself.

        Returns the id of the committed image. On every way out the container and its mounts are gone.
        Raises RepositoryError with the tail of the log when a command fails or `timeout_s` passes; EngineUnavailable.
        """
        ...
