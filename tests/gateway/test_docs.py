"""docs/http-api.md says what the code does: every route, scope, reason, status, metric, limit."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator import errors
from orchestrator.errors import TiltyardError
from orchestrator.telemetry import AUTH_FAILURES, GRADES, OUTCOMES
from tests.gateway.test_auth import ROUTES
from tool_gateway import bodies, server
from tool_gateway.auth import Scope, load_tokens
from tool_gateway.responses import HTTP_REASONS
from tool_gateway.rollouts import MAX_LISTED

DOC = (Path(__file__).parents[2] / "docs" / "http-api.md").read_text()


def every_error(root: type[TiltyardError] = TiltyardError) -> Iterator[type[TiltyardError]]:
    yield root
    for kind in root.__subclasses__():
        if kind.__module__ == errors.__name__:
            yield from every_error(kind)


def section(title: str) -> str:
    return DOC.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_every_reason_stands_with_its_status_and_no_other_does() -> None:
    written = dict(re.findall(r"^\| `(\w+)` \| (\d{3}) \|", section("Errors"), re.MULTILINE))
    known = {kind.reason: str(kind.status) for kind in every_error()}
    routers = {reason: str(status) for status, reason in HTTP_REASONS.items()}
    assert written == known | routers | {"headers_too_large": "431"}


def test_every_route_stands_and_no_other_does() -> None:
    rows = re.findall(r"^\| `(GET|POST|DELETE) (/[^`]*)` \|", DOC, re.MULTILINE)
    assert set(rows) == set(ROUTES)


def test_every_scope_stands_and_no_other_does() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `?[A-Z/]", section("Tokens"), re.MULTILINE)
    assert set(rows) == {scope.value for scope in Scope}


@pytest.mark.parametrize(
    ("name", "values"), [("calls", OUTCOMES), ("grades", GRADES), ("auth_failures", AUTH_FAILURES)]
)
def test_the_labels_values_stand(name: str, values: tuple[str, ...]) -> None:
    (row,) = re.findall(rf"^\| `tiltyard_{name}_total` \|(.*)$", DOC, re.MULTILINE)
    assert tuple(re.findall(r"`(\w+)`", row)[1:]) == values


def test_the_limits_stand() -> None:
    for words in (
        f"within {bodies.BODY_DEADLINE_S:g} s",
        f"nested at most {bodies.MAX_DEPTH} deep",
        f"at most {server.MAX_HEAD_BYTES // 1024} KiB in {server.MAX_HEADERS} fields and {server.HEAD_DEADLINE_S:g} s",
        f"kept {server.KEEP_ALIVE_S} s",
        f"1 to {MAX_LISTED} (100)",
    ):
        assert words in " ".join(DOC.split())


def test_the_token_file_of_the_document_is_read(tmp_path: Path) -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", DOC, re.DOTALL)
    path = tmp_path / "tokens.toml"
    path.write_text(example.replace("<64 hex digits>", "0" * 64))
    path.chmod(0o600)
    load_tokens(path)
