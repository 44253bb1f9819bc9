"""Whatever a model writes as arguments ends as values that fit the schema, or as words it can mend."""

import json
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.models import ToolReply
from orchestrator.tools.arguments import parse
from orchestrator.tools.registry import TABLE, tool

NUL = "\\u0000"


@pytest.mark.parametrize(
    ("name", "text", "arguments"),
    [
        ("shell", '{"command":"ls"}', {"command": "ls"}),
        ("shell", ' {"command" : "ls", "timeout_s": 3 } ', {"command": "ls", "timeout_s": 3.0}),
        ("shell", '{"command":"ls","timeout_s":"30"}', {"command": "ls", "timeout_s": 30.0}),
        ("shell", '{"command":"ls","timeout_s":null}', {"command": "ls"}),
        ("list_dir", "", {}),
        ("list_dir", " \n", {}),
        ("list_dir", '{"depth":2.0}', {"depth": 2}),
        ("list_dir", '{"depth":"2"}', {"depth": 2}),
        (
            "edit_file",
            '{"path":"a","old":"x","new":"","all":"true"}',
            {"path": "a", "old": "x", "new": "", "all": True},
        ),
        ("submit", '{"files":["a","b"]}', {"files": ["a", "b"]}),
        ("write_file", f'{{"path":"a","content":"{NUL}"}}', {"path": "a", "content": "\x00"}),
    ],
)
def test_what_has_one_reading_is_accepted(name: str, text: str, arguments: Mapping[str, object]) -> None:
    assert parse(tool(name), text) == arguments


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("shell", "ls -la", "not valid JSON: Expecting value at line 1, column 1"),
        ("shell", '{"command":"ls"', "not valid JSON"),
        ("shell", '{"command":"ls"}}', "not valid JSON: Extra data"),
        ("shell", "[]", "must be a JSON object, not an array"),
        ("shell", "null", "must be a JSON object, not null"),
        ("shell", "7", "must be a JSON object, not a number"),
        ("shell", '"ls"', 'not the string "ls"'),
        ("shell", "{}", '"command" is missing'),
        ("shell", '{"command":null}', '"command" is missing'),
        ("shell", '{"cmd":"ls"}', 'no argument "cmd"'),
        ("shell", '{"command":["ls"]}', '"command" must be a string, not an array'),
        ("shell", '{"command":""}', '"command" must not be empty'),
        ("shell", '{"command":"ls","timeout_s":NaN}', "NaN, which is not JSON"),
        ("shell", '{"command":"ls","timeout_s":-Infinity}', "-Infinity, which is not JSON"),
        ("shell", '{"command":"ls","timeout_s":1e999}', "too large a number"),
        ("shell", '{"command":"ls","timeout_s":"nan"}', 'must be a number, not the string "nan"'),
        ("shell", '{"command":"ls","timeout_s":"\\uff13"}', "must be a number"),
        ("shell", '{"command":"ls","timeout_s":true}', "must be a number, not a boolean"),
        ("shell", '{"command":"ls","timeout_s":0}', "must be above 0"),
        ("shell", '{"command":"ls","timeout_s":' + "9" * 5000 + "}", "number that is too long"),
        ("shell", '{"command":"\\ud800"}', "surrogate"),
        ("shell", "[" * 100_000, "nested too deeply"),
        ("list_dir", '{"depth":1.5}', "must be a whole number"),
        ("list_dir", '{"depth":99}', "must be at most 5"),
        ("list_dir", '{"depth":0}', "must be at least 1"),
        ("edit_file", '{"path":"a","old":"x","new":"y","all":1}', "must be true or false"),
        ("submit", '{"files":"a.py"}', 'must be an array, not the string "a.py"'),
        ("submit", '{"files":["a",3]}', "item 1 that must be a string"),
        ("submit", json.dumps({"files": ["a"] * 1001}), "at most 1000 items"),
    ],
)
def test_a_mistake_is_told_with_what_the_tool_takes(name: str, text: str, told: str) -> None:
    reply = parse(tool(name), text)
    assert isinstance(reply, ToolReply)
    assert reply.is_error
    assert reply.text.startswith("Error: ")
    assert told in reply.text
    assert f"{name} takes {{" in reply.text
    assert len(reply.text) < 1000


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(["path", "command", "timeout_s", "old", "new", "all", "files", "answer", "depth", "pattern"])


@given(st.sampled_from(sorted(TABLE)), st.dictionaries(NAMES, JSON, max_size=5) | JSON)
def test_any_json_fits_the_schema_or_is_told(name: str, value: object) -> None:
    check(name, json.dumps(value))


@given(st.sampled_from(sorted(TABLE)), st.text(st.characters(), max_size=60))
def test_any_text_fits_the_schema_or_is_told(name: str, text: str) -> None:
    check(name, text)


def check(name: str, text: str) -> None:
    types = {"string": str, "number": float, "integer": int, "boolean": bool, "array": list}
    schema = json.loads(json.dumps(tool(name).schema))
    done = parse(tool(name), text)
    assert done == parse(tool(name), text)
    if isinstance(done, ToolReply):
        assert done.is_error
        done.text.encode("utf-8")
        return
    assert set(schema.get("required", [])) <= set(done) <= set(schema["properties"])
    for argument, value in done.items():
        assert type(value) is types[schema["properties"][argument]["type"]]
