"""Log lines: JSON, one a line, without a secret in any of the places a secret can get to. Metrics: closed label sets."""

import io
import json
import logging
from collections.abc import Callable, Iterator

import pytest
import structlog

from orchestrator.errors import StoreError
from orchestrator.interfaces import HostLoad
from orchestrator.telemetry import (
    AUTH_FAILURES,
    GRADES,
    MAX_FIELD_CHARS,
    OUTCOMES,
    REDACTED,
    Metrics,
    SecretRegistry,
    configure_logging,
)

CANARY = "canary-5f3a9c71"
Lines = Callable[[], list[dict[str, object]]]


@pytest.fixture
def lines() -> Iterator[Lines]:
    """What was logged since, parsed; the process's logging is put back afterwards."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    stream = io.StringIO()
    configure_logging(SecretRegistry([CANARY]), stream=stream)

    def read() -> list[dict[str, object]]:
        assert CANARY not in stream.getvalue()
        return [json.loads(line) for line in stream.getvalue().splitlines()]

    yield read
    root.handlers[:] = before
    root.setLevel(level)
    structlog.reset_defaults()


def test_a_line_is_an_event_with_fields(lines: Lines) -> None:
    structlog.get_logger("x").info("box_started", box="b1", took_s=0.25, tries=2, ok=True, nothing=None)
    (line,) = lines()
    assert line.pop("timestamp")
    assert line == {
        "event": "box_started",
        "level": "info",
        "box": "b1",
        "took_s": 0.25,
        "tries": 2,
        "ok": True,
        "nothing": None,
    }


def test_a_secret_is_masked_wherever_it_stands(lines: Lines) -> None:
    log = structlog.get_logger("x")
    log.info(f"event {CANARY}", plain=CANARY, within=f"a {CANARY} b", many=[CANARY, {"deep": (CANARY,)}])
    log.info("mapping", fields={CANARY: 1, "inner": {"x": CANARY}}, raw=CANARY.encode())
    log.info("object", error=ValueError(CANARY))
    assert len(lines()) == 3
    assert lines()[0]["within"] == f"a {REDACTED} b"


def test_a_secret_is_masked_in_tracebacks_and_in_other_libraries_lines(lines: Lines) -> None:
    try:
        raise ValueError(f"bad token {CANARY}")
    except ValueError:
        structlog.get_logger("x").exception("failed")
        logging.getLogger("uvicorn.error").exception("failed with %s", CANARY)
    ours, theirs = lines()
    assert "Traceback" in str(ours["exception"])
    assert "Traceback" in str(theirs["exception"])
    assert theirs["event"] == f"failed with {REDACTED}"


@pytest.mark.parametrize(
    "name", ["authorization", "Authorization", "Cookie", "db_password", "api_key", "apiKey", "token", "handle_secret"]
)
def test_a_field_that_speaks_of_credentials_is_masked_whatever_it_holds(lines: Lines, name: str) -> None:
    structlog.get_logger("x").info("request", **{name: "anything"}, headers={name: "anything", "accept": "json"})
    (line,) = lines()
    assert line[name] == REDACTED
    assert line["headers"] == {name: REDACTED, "accept": "json"}


def test_an_unknown_bearer_token_is_masked_too(lines: Lines) -> None:
    structlog.get_logger("x").info("request", header="Bearer ty_never-registered")
    assert lines()[0]["header"] == f"Bearer {REDACTED}"


def test_what_a_box_says_cannot_forge_lines_or_fill_the_disk(lines: Lines) -> None:
    structlog.get_logger("x").info("output", text='x"}\n{"event": "forged"}\u2028' + "y" * 100_000)
    (line,) = lines()
    assert line["event"] == "output"
    assert len(str(line["text"])) < MAX_FIELD_CHARS + 100


def test_the_level_is_kept_for_both_kinds_of_loggers(lines: Lines) -> None:
    structlog.get_logger("x").debug("hidden")
    logging.getLogger("y").debug("hidden")
    structlog.get_logger("x").warning("shown")
    assert [line["event"] for line in lines()] == ["shown"]


def test_short_values_are_not_registered_and_long_ones_win() -> None:
    registry = SecretRegistry(["a", "secret-part", "secret-part-and-more"])
    assert registry.mask("a banana") == "a banana"
    assert registry.mask("secret-part-and-more") == REDACTED
    registry.add("added-later")
    assert registry.mask("added-later") == REDACTED


def test_metrics_start_from_nothing_in_each_process() -> None:
    metrics = Metrics()
    metrics.call("ok", 0.01)
    assert 'tiltyard_calls_total{outcome="ok"} 1.0' in metrics.text().decode()
    assert 'tiltyard_calls_total{outcome="ok"} 0.0' in Metrics().text().decode()


def test_labels_are_closed() -> None:
    metrics = Metrics()
    for record in (metrics.call, metrics.grade):
        with pytest.raises(KeyError):
            record("made-up", 0.1)
    with pytest.raises(KeyError):
        metrics.auth_failure("made-up")
    text = metrics.text().decode()
    for outcome in OUTCOMES:
        assert f'tiltyard_calls_total{{outcome="{outcome}"}} 0.0' in text
    for outcome in GRADES:
        assert f'tiltyard_grades_total{{outcome="{outcome}"}} 0.0' in text
    for kind in AUTH_FAILURES:
        assert f'tiltyard_auth_failures_total{{kind="{kind}"}} 0.0' in text


def test_hosts_add_up() -> None:
    metrics = Metrics()
    load = HostLoad(live=2, queued=3, grading=1, draining=False, free_memory_mib=1)
    metrics.hosts([load, HostLoad(live=1, queued=0, grading=0, draining=True, free_memory_mib=1)], unreachable=1)
    text = metrics.text().decode()
    assert "tiltyard_rollouts_live 3.0" in text
    for state in ("serving", "draining", "unreachable"):
        assert f'tiltyard_hosts{{state="{state}"}} 1.0' in text


def test_an_error_of_ours_is_logged_by_its_message(lines: Lines) -> None:
    structlog.get_logger("x").warning("failed", error=StoreError("the disk is full"))
    assert lines()[0]["error"] == "the disk is full"
