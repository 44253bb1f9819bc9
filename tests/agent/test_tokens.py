"""Tokens that hosts sign, and the key that they share."""

import base64
import json
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from orchestrator.agent.tokens import LIFETIME_S, TokenSigner, load_signer
from orchestrator.errors import Misconfigured
from orchestrator.models import SandboxId

BOX = SandboxId("pod-1")


def decoded(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


def test_a_token_says_which_box_which_epoch_and_until_when() -> None:
    signer = TokenSigner(bytes(32), clock=lambda: 1000.9)
    payload, _, signature = signer.token(BOX, 7).partition(".")
    assert "=" not in payload + signature
    assert json.loads(decoded(payload)) == {"box": BOX, "epoch": 7, "exp": 1000 + LIFETIME_S}
    key = Ed25519PublicKey.from_public_bytes(base64.b64decode(signer.public_key_b64))
    key.verify(decoded(signature), payload.encode())


def test_a_token_is_kept_for_half_of_its_life() -> None:
    now = [1000.0]
    signer = TokenSigner(bytes(32), clock=lambda: now[0])
    first = signer.token(BOX, 1)
    now[0] += LIFETIME_S / 2
    assert signer.token(BOX, 1) == first
    assert signer.token(BOX, 2) != first
    assert signer.token(SandboxId("pod-2"), 1) != first
    now[0] += 1
    assert signer.token(BOX, 1) != first


def test_a_clock_that_was_set_back_makes_no_token_that_is_good_for_too_long() -> None:
    """The agent takes none that is good for over 900 s."""
    now = [10_000.0]
    signer = TokenSigner(bytes(32), clock=lambda: now[0])
    signer.token(BOX, 1)
    now[0] -= 5000
    assert json.loads(decoded(signer.token(BOX, 1).partition(".")[0]))["exp"] == now[0] + LIFETIME_S


def test_no_more_tokens_are_kept_than_boxes_live() -> None:
    signer = TokenSigner(bytes(32), clock=lambda: 0.0)
    for epoch in range(3000):
        signer.token(BOX, epoch)
    assert len(signer._signed) <= 1024


def test_the_key_is_made_once_and_is_its_owners(tmp_path: Path) -> None:
    path = tmp_path / "deployment" / "agent.key"
    first = load_signer(path)
    assert load_signer(path).public_key_b64 == first.public_key_b64
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["agent.key"]


def test_hosts_that_begin_at_once_have_one_key(tmp_path: Path) -> None:
    path, together = tmp_path / "agent.key", threading.Barrier(8)

    def load() -> str:
        together.wait()
        return load_signer(path).public_key_b64

    with ThreadPoolExecutor(8) as pool:
        for _ in range(50):
            assert len({done.result() for done in [pool.submit(load) for _ in range(8)]}) == 1
            path.unlink()


@pytest.mark.parametrize("content", [b"", b"short", bytes(33)])
def test_a_damaged_key_is_told(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "agent.key"
    path.write_bytes(content)
    with pytest.raises(Misconfigured, match="damaged"):
        load_signer(path)
