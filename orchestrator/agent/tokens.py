"""Signed, short-lived tokens by which an agent that is reached over a network knows a host of its deployment."""

import base64
import json
import os
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from orchestrator.errors import Misconfigured
from orchestrator.models import SandboxId

LIFETIME_S = 300
"""The agent takes at most 900 s: clocks may differ, and a token that leaked is soon worth nothing."""
SEED_BYTES = 32
KEPT = 1024


class TokenSigner:
    """The private half stays with hosts; boxes are given the public one."""

    def __init__(self, seed: bytes, *, clock: Callable[[], float] = time.time) -> None:
        """`seed` is the private key's 32 bytes; `clock` gives wall-clock seconds."""
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self._clock = clock
        self._signed: dict[tuple[SandboxId, int], tuple[str, float]] = {}
        raw = self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self.public_key_b64 = base64.b64encode(raw).decode()

    def token(self, box: SandboxId, epoch: int) -> str:
        """For this box under this epoch; the same one for half of its life."""
        now = self._clock()
        text, expires = self._signed.get((box, epoch), ("", 0.0))
        if not LIFETIME_S / 2 <= expires - now <= LIFETIME_S:  # more: the clock was set back
            expires = now + LIFETIME_S
            text = self._sign({"box": box, "epoch": epoch, "exp": int(expires)})
            if len(self._signed) >= KEPT:
                self._signed.clear()
            self._signed[box, epoch] = (text, expires)
        return text

    def _sign(self, claims: dict[str, str | int]) -> str:
        payload = _unpadded(json.dumps(claims, separators=(",", ":")).encode())
        return f"{payload}.{_unpadded(self._key.sign(payload.encode()))}"


def _unpadded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def load_signer(path: Path) -> TokenSigner:
    """The deployment's, made on first use, readable by its owner only. Blocks. Raises Misconfigured for a damaged file."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not path.exists():
        _make_key(path)
    seed = path.read_bytes()
    if len(seed) != SEED_BYTES:
        raise Misconfigured(f"{path} is damaged: remove it; boxes that were made with the key in it are lost")
    return TokenSigner(seed)


def _make_key(path: Path) -> None:
    """Linked when it is whole: hosts of a deployment begin at once, and one may die here. The first one's stays."""
    making = path.with_name(f".making-{secrets.token_hex(8)}")
    descriptor = os.open(making, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(SEED_BYTES))
        with suppress(FileExistsError):
            os.link(making, path)
    finally:
        making.unlink()
