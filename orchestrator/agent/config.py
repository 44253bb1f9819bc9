"""The file that tells an in-box agent where and for whom it serves."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from orchestrator.errors import Misconfigured

RUN_DIR = "/run/tiltyard"
OVER_A_NETWORK = ("listen", "box", "public_key_b64", "allow_loopback")
"""Not written, as `rlimits`, where they say nothing: an agent from before them knows none."""
RLIMITS = frozenset({"nofile", "nproc", "fsize_bytes"})


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConfig:
    """Paths are those inside the box. Principal k is uid = gid = `uid_base` + k. Nothing here is secret.

    `mode` "one_uid": agent and commands share the agent's own uid, and `uid_base` and `uid_count` say nothing.
    """

    uid_base: int
    uid_count: int = 1
    socket: str = f"{RUN_DIR}/agent.sock"
    state_dir: str = f"{RUN_DIR}/state"
    trusted_dir: str = f"{RUN_DIR}/trusted"
    workspace: str = "/workspace"
    home: str = "/home/agent"
    tmp: str = "/tmp"  # noqa: S108  (of the box)
    mode: Literal["split", "one_uid"] = "split"
    allow_root_exec: bool = False
    env: Mapping[str, str] = field(default_factory=dict)
    journal_limit_bytes: int = 256 * 1024 * 1024
    spare_threads: int = 16
    listen: str = ""
    """Address and port; empty: the unix socket. The three below go with it."""
    box: str = ""
    public_key_b64: str = ""
    """Ed25519, raw: the agent hears those alone whose tokens the private half signed."""
    allow_loopback: bool = False
    """Take connections from the box's own addresses, too, as a port forwarded through the cluster makes them."""
    rlimits: Mapping[str, int] = field(default_factory=dict)
    """Of the agent and all commands, where the box's maker can set none: nofile, nproc, fsize_bytes; 0: left."""

    def __post_init__(self) -> None:
        """Raises Misconfigured for what the agent would refuse at its start."""
        if self.mode == "split" and self.uid_base < 1:
            raise Misconfigured("uid_base must be a uid for the box's commands, above 0")
        if not 1 <= self.uid_count <= 65_536:
            raise Misconfigured("uid_count must lie between 1 and 65,536")
        if self.journal_limit_bytes < 4 * 1024 * 1024:
            raise Misconfigured("journal_limit_bytes must be at least 4 MiB")
        if bool(self.listen) != bool(self.box and self.public_key_b64) or bool(self.box) != bool(self.public_key_b64):
            raise Misconfigured(
                "an agent that listens needs the box's name and a public key, and no other one has them"
            )
        if self.allow_loopback and not self.listen:
            raise Misconfigured("allow_loopback says something only of an agent that listens")
        if unknown := self.rlimits.keys() - RLIMITS:
            raise Misconfigured(f"the agent sets no limit {sorted(unknown)[0]!r}")

    def to_json(self) -> bytes:
        """What the agent reads."""
        names = self.__dataclass_fields__
        values = {name: getattr(self, name) for name in names} | {"env": dict(self.env), "rlimits": dict(self.rlimits)}
        unsaid = {*(() if self.listen else OVER_A_NETWORK), *(() if self.rlimits else ("rlimits",))}
        values = {name: value for name, value in values.items() if name not in unsaid}
        return json.dumps(values, indent=1, sort_keys=True).encode()
