"""Names of images, read as engines read them."""

import pytest

from orchestrator.backends.kubernetes.registry.references import Reference, parse_reference, parse_repository
from orchestrator.errors import Misconfigured


@pytest.mark.parametrize(
    ("text", "host", "repository", "tag", "digest"),
    [
        ("registry.example:5000/team/name:v1", "registry.example:5000", "team/name", "v1", ""),
        ("registry.example:5000/team/name", "registry.example:5000", "team/name", "latest", ""),
        (f"r.example/a@sha256:{'0' * 64}", "r.example", "a", "", f"sha256:{'0' * 64}"),
        (f"r.example/a:t@sha256:{'0' * 64}", "r.example", "a", "t", f"sha256:{'0' * 64}"),
        ("localhost/a", "localhost", "a", "latest", ""),
        ("[::1]:5000/a:b", "[::1]:5000", "a", "b", ""),
        ("python:3.11", "docker.io", "library/python", "3.11", ""),
        ("docker.io/python", "docker.io", "library/python", "latest", ""),
        ("tiltyard/python:3.11", "docker.io", "tiltyard/python", "3.11", ""),
    ],
)
def test_references_are_read_as_engines_do(text: str, host: str, repository: str, tag: str, digest: str) -> None:
    assert parse_reference(text) == Reference(host=host, repository=repository, tag=tag, digest=digest)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "A/B",
        "r.example/a:",
        "r.example/a@",
        "r.example/a@sha256:12",
        "r.example/../a",
        "https://r.example/a",
        "a b",
        "r.example/",
    ],
)
def test_what_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises(Misconfigured, match="no image reference"):
        parse_reference(text)


def test_a_password_in_a_reference_is_not_told() -> None:
    with pytest.raises(Misconfigured) as caught:
        parse_reference("me:hunter2@r.example/a")
    assert "hunter2" not in caught.value.message
    with pytest.raises(Misconfigured, match="without tag"):
        parse_repository("r.example/a:tag")
