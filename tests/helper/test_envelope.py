"""The payloads, and the JSON in them."""

from __future__ import annotations

import json
import math
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freeim import NotSerializable, Raw, envelope

any_text = st.text(st.characters())
"""Every code point, lone surrogates included: `st.text()` leaves those out."""
plain_text = st.text()
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | plain_text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(plain_text, inner, max_size=4),
    max_leaves=10,
)
surrogate_text = st.text(st.sampled_from('\ud800\udbff\udc00\udfffa\\"\x85\u2028\u2029\x00\x1f\x7f😀'))


def joined(text: str) -> str:
    """Return text with each high and low surrogate in a row made the one character that JSON reads them as."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


def carried(message: object) -> str:
    """Return the text frame that a node makes of a message: Item3 of the payload, decoded."""
    text = envelope.message_json(message)
    payload = envelope.direct(1, [2], envelope.direct_tail(text, False))
    document = json.loads(payload.decode("utf-8"))
    assert document == {"Item1": 1, "Item2": [2], "Item3": document["Item3"], "Item4": False}
    assert document["Item3"] == text
    frame: str = document["Item3"]
    return frame


@given(any_text | surrogate_text)
def test_any_text_arrives_as_the_json_that_was_made_of_it(text: str) -> None:
    frame = carried(text)
    assert frame.encode("utf-8")  # a text frame is UTF-8, whatever the message held
    assert json.loads(frame) == joined(text)


@given(json_values)
def test_any_json_value_arrives_unchanged(value: Any) -> None:
    assert json.loads(carried(value)) == value


@given(any_text | surrogate_text)
def test_a_json_string_holds_nothing_that_newtonsoft_would_escape(text: str) -> None:
    encoded = envelope.json_string(text)
    assert not set(encoded) & {"\x85", "\u2028", "\u2029", *map(chr, range(32))}
    assert json.loads(encoded) == text  # no surrogate is touched here, so none is joined


@given(any_text.filter(bool) | surrogate_text)
def test_a_channel_message_carries_any_channel_and_any_message(text: str) -> None:
    payload = envelope.channel(7, text, envelope.message_json(text)).decode("utf-8")
    assert payload.startswith(envelope.CHAN_MESSAGE_HEAD)
    document = json.loads(payload.removeprefix(envelope.CHAN_MESSAGE_HEAD))
    assert document["Item2"] == joined(text)
    assert json.loads(document["Item3"]) == joined(text)


def test_the_three_characters_of_newtonsoft_are_escaped_on_both_levels() -> None:
    tail = envelope.direct_tail(envelope.message_json("\x85\u2028\u2029"), True)
    assert tail == b'],"Item3":"\\"\\\\u0085\\\\u2028\\\\u2029\\"","Item4":true}'


def test_raw_json_arrives_to_the_letter() -> None:
    text = '{ "a" : "\u2028" }'
    assert carried(Raw(text)) == text


def test_raw_takes_text_only() -> None:
    with pytest.raises(TypeError, match="str"):
        Raw(b"{}")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "message",
    [b"bytes", bytearray(b"x"), math.nan, math.inf, -math.inf, {"a": [math.nan]}, object(), {1, 2}, {(1,): 2}],
)
def test_what_json_cannot_carry_is_not_serializable(message: object) -> None:
    with pytest.raises(NotSerializable) as caught:
        envelope.message_json(message)
    assert isinstance(caught.value, TypeError)
    assert caught.value.__cause__ is not None


def test_a_message_that_contains_itself_is_not_serializable() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(NotSerializable):
        envelope.message_json(loop)


def test_json_dumps_may_return_text_or_utf8() -> None:
    assert envelope.message_json({"a": 1}, lambda value: json.dumps(value)) == '{"a": 1}'
    assert envelope.message_json("é", lambda value: json.dumps(value, ensure_ascii=False).encode()) == '"é"'
    assert envelope.message_json(Raw("[]"), lambda value: "never") == "[]"


def test_json_dumps_that_returns_neither_is_not_serializable() -> None:
    with pytest.raises(NotSerializable, match="must return a str or bytes, not int"):
        envelope.message_json(1, lambda value: 5)  # type: ignore[arg-type,return-value]


def test_what_json_dumps_raises_is_the_cause() -> None:
    def dumps(value: object) -> str:
        raise KeyError("mine")

    with pytest.raises(NotSerializable) as caught:
        envelope.message_json(1, dumps)
    assert isinstance(caught.value.__cause__, KeyError)


def test_guids_are_quoted_and_numbers_are_not() -> None:
    guid = str(uuid.UUID(int=7))
    assert envelope.direct(guid, [guid, guid], b"").decode() == f'{{"Item1":"{guid}","Item2":["{guid}","{guid}"'
    assert envelope.direct(0, [-1, 2**63 - 1], b"") == b'{"Item1":0,"Item2":[-1,9223372036854775807'
    assert envelope.token_value(guid, None).decode() == f'{{"Item1":"{guid}","Item2":null}}'


def test_receipts_read_as_freeim_writes_them() -> None:
    assert envelope.receipt_text('"hi"', True) == '{"content":"\\"hi\\"","receipt":"发送成功"}'
    assert envelope.receipt_text("7", False) == '{"content":"7","receipt":"用户不在线"}'
