"""What comes over the socket of a hand-over may be anything: it is a message, or it is refused with a sentence."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freeim.node.handover_messages import (
    MAX_LINE,
    Ask,
    BadMessage,
    Clients,
    Complete,
    Done,
    Left,
    Lines,
    Message,
    Offer,
    Refused,
    Serving,
    decode,
    encode,
)

TEXTS = st.text(max_size=20)
EPOCHS = st.text("0123456789abcdef", min_size=1, max_size=32)
COUNTS = st.integers(0, 2**31 - 1)
MESSAGES: st.SearchStrategy[Message] = st.one_of(
    st.builds(
        Ask,
        epoch=EPOCHS,
        pid=COUNTS,
        release=TEXTS,
        node=TEXTS,
        bind=TEXTS,
        prefix=TEXTS,
        path=TEXTS,
        ids=TEXTS,
        nodes=st.lists(TEXTS).map(tuple),
        version=st.just(1),
    ),
    st.builds(Offer, epoch=EPOCHS, pid=COUNTS, admin=TEXTS, version=st.just(1)),
    st.builds(Refused, reason=TEXTS, version=st.just(1)),
    st.builds(Clients, st.dictionaries(TEXTS, COUNTS)),
    st.builds(Left, st.dictionaries(TEXTS, st.tuples(COUNTS, COUNTS).map("{0[0]}-{0[1]}".format))),
    st.sampled_from([Complete(), Serving(), Done()]),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


@given(MESSAGES)
def test_each_message_is_one_line_and_comes_back_as_it_was(message: Message) -> None:
    line = encode(message)
    assert line.count(b"\n") == 1
    assert decode(line) == message


@given(st.lists(MESSAGES, max_size=4), st.lists(st.integers(1, 400), min_size=1, max_size=5))
def test_lines_are_the_same_however_they_are_cut(messages: list[Message], sizes: list[int]) -> None:
    data, lines, found = b"".join(map(encode, messages)), Lines(), []
    while data:
        size = sizes[len(data) % len(sizes)]
        found += lines.feed(data[:size])
        data = data[size:]
    assert found == messages


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_refused(data: bytes) -> None:
    with contextlib.suppress(BadMessage):
        Lines().feed(data + b"\n")


@given(MESSAGES, st.data())
def test_a_message_with_one_field_changed_is_a_message_or_refused(message: Message, data: st.DataObject) -> None:
    value = json.loads(encode(message))
    name = data.draw(st.sampled_from(sorted(value)) | TEXTS)
    value[name] = data.draw(JSON)
    try:
        again = decode(json.dumps(value).encode())
    except BadMessage:
        return
    assert decode(encode(again)) == again


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"type": "serving", "version": 2}, "it speaks version 2 of the hand-over, and this is version 1"),
        ({"type": "something new", "version": 2}, "it speaks version 2 of the hand-over"),
        ({"type": "offer", "epoch": "x y", "pid": 1, "admin": "", "version": 1}, "offer.epoch is no epoch"),
        ({"type": "clients", "counts": {"1": -1}}, "clients.counts is not what it must be"),
        ({"type": "clients", "counts": {"1": True}}, "clients.counts is not what it must be"),
        ({"type": "left", "places": {"1": "2"}}, "left.places is not what it must be"),
        ({"type": "left", "places": {"1": 2}}, "left.places is not what it must be"),
        ({"type": "clients"}, "a message of the type clients has not the right fields"),
        ({"type": "done", "more": 1}, "a message of the type done has not the right fields"),
        ({"type": "walk"}, "a line is of an unknown type"),
        ({"type": ["done"]}, "a line is of an unknown type"),
        ({}, "a line is of an unknown type"),
        ([], "a line is no JSON object"),
    ],
)
def test_what_is_wrong_is_told(value: Any, reason: str) -> None:
    with pytest.raises(BadMessage, match=reason.replace("(", r"\(")):
        decode(json.dumps(value).encode())


def test_a_refusal_of_another_version_is_understood() -> None:
    line = b'{"type":"refused","version":7,"reason":"too old","hint":"..."}'
    assert decode(line) == Refused("too old")


def test_a_line_without_end_is_not_kept_for_ever() -> None:
    lines = Lines()
    lines.feed(b"x" * MAX_LINE)
    with pytest.raises(BadMessage, match="longer"):
        lines.feed(b"x")


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(BadMessage):
        decode(b"[" * 100_000)
