"""What the local backend needs to know, fixed for its life."""

from dataclasses import dataclass
from pathlib import Path

HOST_IMAGE = "host"
"""The only image there is: this machine's own programs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalSettings:
    """`state_dir` is the deployment's own folder; boxes lie in `state_dir/local/boxes`, apart from an engine's."""

    deployment: str
    state_dir: Path
    any_image: bool = False
    """Take tasks that name an image, and run them over this machine's programs all the same."""
    paths: tuple[Path, ...] = ()
    """Folders of this machine that boxes see read-only beside /usr: a toolchain in /opt, say."""
    start_slots: int = 2
    memory_limit_mib: int = 0
    """Memory that all boxes together may be promised; 0: three quarters of the machine's."""
    max_boxes: int = 200
    lifetime_s: float = 86_400.0
    """Only recorded: a sweeper knows by it a box that its host surely forgot."""
    agent_binary: Path | None = None
    """The in-box agent to copy from; None: the one that the package's build compiled for this machine."""

    @property
    def own_dir(self) -> Path:
        """Below it lies everything that this backend writes but the agent's program."""
        return self.state_dir / "local"
