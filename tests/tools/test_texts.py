"""Texts for the model: printable, bounded, and honest about what is missing."""

import re

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.models import Limits
from orchestrator.operations import Failure, FailureCode, Output
from orchestrator.tools.texts import bounded, decoded, printable, refused, reply, shown, size_bytes

CUT = re.compile(r"\[\.\.\. (\d+) bytes cut \.\.\.\]")
BYTES = st.binary(max_size=300) | st.text(max_size=100).map(str.encode)


def stream(data: bytes, keep: int) -> Output:
    """As the in-box agent keeps it, but for character boundaries."""
    if len(data) <= keep:
        return Output(head=data, total_bytes=len(data))
    head, tail = data[: keep // 2], data[len(data) - keep // 2 :]
    return Output(head=head, tail=tail, cut_bytes=len(data) - len(head) - len(tail), total_bytes=len(data))


@given(st.binary())
def test_any_bytes_become_printable_text(data: bytes) -> None:
    text = printable(decoded(data))
    text.encode("utf-8")
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", text)


def test_escapes_are_those_of_the_bytes() -> None:
    assert (
        printable(decoded(b"a\x00\xff\x1b[31m\t\r\n\xc3\xa9\xed\xa0\x80"))
        == "a\\x00\\xff\\x1b[31m\t\r\n\u00e9\\xed\\xa0\\x80"
    )
    assert printable("\x85\ud800") == "\\u0085\\ud800"


@given(BYTES, st.integers(2, 200), st.integers(200, 400))
def test_a_stream_fits_and_says_how_many_bytes_are_missing(data: bytes, keep: int, limit: int) -> None:
    text = shown(stream(data, keep), limit)
    assert size_bytes(text) <= limit
    found = CUT.search(text)
    if found is None:
        assert text == printable(decoded(data))
        return
    missing = int(found[1])
    head, tail = text[: found.start() - 1], text[found.end() + 1 :]
    assert printable(decoded(data)).startswith(head) or keep < len(data)
    if head.isascii() and tail.isascii() and "\\" not in head + tail:
        assert len(head) + len(tail) + missing == len(data)


def test_nothing_is_cut_that_fits() -> None:
    assert shown(stream(b"x" * 400, 1000), 400) == "x" * 400
    assert CUT.search(shown(stream(b"x" * 401, 1000), 400))


def test_the_cut_counts_what_the_agent_and_the_text_left_out() -> None:
    text = shown(Output(head=b"\x00" * 200, tail=b"z" * 200, cut_bytes=1000, total_bytes=1400), 320)
    assert text == "\\x00" * 25 + f"\n[... {1000 + 175 + 100} bytes cut ...]\n" + "z" * 100


@given(st.text(max_size=3000), st.integers(1024, 2000))
def test_a_reply_fits_its_task(text: str, limit: int) -> None:
    limits = Limits(output_bytes=limit)
    assert size_bytes(reply(text, limits).text) <= limit
    if size_bytes(printable(text)) <= limit:
        assert bounded(printable(text), limits) == printable(text)


def test_a_refusal_says_what_to_do() -> None:
    told = refused(Failure(code=FailureCode.NOT_FOUND, message="no such file: a\x00b"), Limits())
    assert told.is_error
    assert told.text == "Error: no such file: a\\x00b (check the path with list_dir)"
    for code in FailureCode:
        assert refused(Failure(code=code, message="why"), Limits()).text.startswith("Error: why")
