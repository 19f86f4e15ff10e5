"""The stream from Redis: however the bytes are cut, the same calls come in the same order."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import hiredis
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from freeim._core import BadStream, RespStream

BLOBS = st.binary(max_size=40)
Call = tuple[str, Any]


def bulk(data: bytes) -> bytes:
    return b"$%d\r\n%s\r\n" % (len(data), data)


def array(head: bytes, items: list[bytes]) -> bytes:
    return head + b"%d\r\n" % len(items) + b"".join(items)


@st.composite
def replies(draw: st.DrawFn) -> tuple[bytes, Call]:
    """The bytes of a reply, and the call that it becomes."""
    kind = draw(st.sampled_from(["bulk", "int", "null", "ok", "error", "list", "message-like list", "map", "set"]))
    data, number = draw(BLOBS), draw(st.integers(-(2**63), 2**63 - 1))
    if kind == "bulk":
        return bulk(data), ("reply", data)
    if kind == "int":
        return b":%d\r\n" % number, ("reply", number)
    if kind == "null":
        return b"_\r\n", ("reply", None)
    if kind == "ok":
        return b"+OK\r\n", ("reply", b"OK")
    if kind == "error":
        return b"-ERR no\r\n", ("reply", "ERR no")
    if kind == "list":
        many = draw(st.lists(BLOBS, max_size=4))
        return array(b"*", [bulk(each) for each in many]), ("reply", many)
    if kind == "message-like list":  # a reply that looks like a push but is none
        return array(b"*", [bulk(b"message"), bulk(data)]), ("reply", [b"message", data])
    if kind == "map":
        return b"%1\r\n" + bulk(data) + b":1\r\n", ("reply", {data: 1})
    return b"~1\r\n" + bulk(data), ("reply", {data} if isinstance(_parse(b"~1\r\n:1\r\n"), set) else [data])


def _parse(data: bytes) -> Any:
    reader = hiredis.Reader()
    reader.feed(data)
    return reader.gets()


@st.composite
def pushes(draw: st.DrawFn) -> tuple[bytes, Call]:
    kind = draw(st.sampled_from(["message", "message", "invalidate", "forget all", "subscribe"]))
    data = draw(BLOBS)
    if kind == "message":
        return array(b">", [bulk(b"message"), bulk(b"channel"), bulk(data)]), ("message", data)
    if kind == "invalidate":
        keys = draw(st.lists(BLOBS, min_size=1, max_size=3))
        return array(b">", [bulk(b"invalidate"), array(b"*", [bulk(key) for key in keys])]), ("invalidate", keys)
    if kind == "forget all":
        return array(b">", [bulk(b"invalidate"), b"_\r\n"]), ("invalidate", None)
    return array(b">", [bulk(b"subscribe"), bulk(data), b":1\r\n"]), ("push", [b"subscribe", data, 1])


class Log:
    """A stream that writes down what it calls."""

    def __init__(self, push_type: type = hiredis.PushNotification, slice_ms: float = 1e9, **more: Any) -> None:
        self.calls: list[Call] = []
        self.stream = RespStream(
            hiredis.Reader(notEnoughData=RespStream.NOTHING),
            push_type,
            lambda payload: self.calls.append(("message", payload)),
            lambda keys: self.calls.append(("invalidate", keys)),
            lambda push: self.calls.append(("push", list(push))),
            slice_ms,
            **more,
        )

    def expect(self, count: int, ask_again: bool = False) -> None:
        for number in range(count):
            self.stream.waiting.append(partial(self.answered, number, ask_again))

    def answered(self, number: int, ask_again: bool, reply: Any) -> None:
        self.calls.append(("reply", str(reply) if isinstance(reply, Exception) else reply))
        self.calls.append(("to", number))
        if ask_again and number == 0:  # as a callback does that sends its next command
            self.stream.waiting.append(lambda _: self.calls.append(("to", "next")))


def cut(data: bytes, points: list[int]) -> list[bytes]:
    edges = [0, *sorted(point % (len(data) + 1) for point in points), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


@given(st.lists(st.one_of(replies(), pushes()), max_size=20), st.lists(st.integers(0, 10**6), max_size=12))
def test_however_the_stream_is_cut_the_same_calls_come_in_the_same_order(
    items: list[tuple[bytes, Call]], points: list[int]
) -> None:
    expected: list[Call] = []
    count = 0
    for _, call in items:
        expected.append(call)
        if call[0] == "reply":
            expected.append(("to", count))
            count += 1
    for chunks in (
        cut(b"".join(data for data, _ in items), points),
        [bytes([each]) for data, _ in items for each in data],
    ):
        log = Log()
        log.expect(count)
        for chunk in chunks:
            log.stream.receive(chunk)
        assert log.calls == expected
        assert not log.stream.waiting


# Much that waits and no room for it, which is rare among the others.
MESSAGES = [
    (array(b">", [bulk(b"message"), bulk(b"c"), bulk(each)]), ("message", each))
    for each in (b"%d" % n for n in range(20))
]


@example(MESSAGES, list(range(0, 400, 20)), [True], 1)
@given(
    st.lists(st.one_of(replies(), pushes()), max_size=30),
    st.lists(st.integers(0, 10**6), max_size=20),
    st.lists(st.booleans(), min_size=1, max_size=20),
    st.integers(1, 2000),
)
def test_of_what_waits_only_messages_are_dropped_the_oldest_first_and_each_is_counted(
    items: list[tuple[bytes, Call]], points: list[int], waits: list[bool], limit: int
) -> None:
    dropped: list[int] = []
    log = Log(queue_limit=limit, on_dropped=dropped.append, vital=(b"\0",))
    log.expect(sum(call[0] == "reply" for _, call in items))
    chunks = cut(b"".join(data for data, _ in items), points)
    latest = b""
    for number, chunk in enumerate(chunks):
        if waits[number % len(waits)]:
            log.stream.queue(chunk)
            latest = chunk or latest
            assert log.stream.queued <= max(limit, 64 + len(latest))
        else:
            log.stream.receive(chunk)
    log.stream.receive(b"")
    assert log.stream.queued == 0
    calls = iter(call for call in log.calls if call[0] != "to")
    lost = 0
    got = next(calls, None)
    for _, call in items:
        if call == got:
            got = next(calls, None)
        else:
            lost += 1
            assert call[0] == "message", "only messages may be missing, and all is in order"
            assert not call[1].startswith(b"\0"), "vital"
    assert got is None
    assert lost == sum(dropped)
    if 64 * len(chunks) + sum(map(len, chunks)) <= limit:
        assert not lost, "below the bound"


@given(st.lists(BLOBS, max_size=10), st.lists(st.integers(0, 10**6), max_size=8))
def test_on_a_resp2_connection_plain_arrays_are_the_messages(payloads: list[bytes], points: list[int]) -> None:
    data = array(b"*", [bulk(b"subscribe"), bulk(b"c"), b":1\r\n"])
    data += b"".join(array(b"*", [bulk(b"message"), bulk(b"c"), bulk(each)]) for each in payloads)
    log = Log(list)
    for chunk in cut(data, points):
        log.stream.receive(chunk)
    assert log.calls == [("push", [b"subscribe", b"c", 1]), *(("message", each) for each in payloads)]


def test_a_callback_may_send_its_next_command() -> None:
    log = Log()
    log.expect(2, ask_again=True)
    log.stream.receive(b":0\r\n:1\r\n:2\r\n")
    assert [call[1] for call in log.calls if call[0] == "to"] == [0, 1, "next"]


@pytest.mark.parametrize("garbage", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"$abc\r\n", b"\x00\x00\r\n"])
def test_what_is_not_resp_is_a_protocol_error(garbage: bytes) -> None:
    log = Log()
    log.expect(1)
    with pytest.raises(hiredis.ProtocolError):
        log.stream.receive(garbage)
    assert log.calls == []


@pytest.mark.parametrize("garbage", [b"%1\r\n%1\r\n+a\r\n:1\r\n:1\r\n", b"*4611686018427387904\r\n"])
def test_a_reply_that_no_object_can_be_made_of_is_a_bad_stream(garbage: bytes) -> None:
    log = Log()
    log.expect(1)
    with pytest.raises((BadStream, hiredis.ProtocolError)):
        log.stream.receive(garbage)
    assert log.calls == []


def test_an_error_of_a_callback_is_no_error_of_the_stream() -> None:
    def broken(_: object) -> None:
        raise TypeError("ours")

    log = Log()
    log.stream.waiting.append(broken)
    with pytest.raises(TypeError, match="ours"):
        log.stream.receive(b":1\r\n")


def test_what_one_slice_of_time_does_not_suffice_for_is_handed_on_by_the_next_calls_in_order() -> None:
    log = Log(slice_ms=0)
    log.expect(3)
    assert not log.stream.receive(b":0\r\n:1\r\n:")
    assert [call[1] for call in log.calls if call[0] == "to"] == [0]
    assert not log.stream.receive(b"2\r\n")  # what arrives meanwhile is behind it
    assert not log.stream.receive(b"")
    assert [call[1] for call in log.calls if call[0] == "to"] == [0, 1, 2]
    assert log.stream.receive(b"")
    assert Log().stream.receive(b":") is True, "half an item is no reason to come back soon"


class Bits:
    """Messages that are handled in two parts each, and a reply behind them."""

    def __init__(self) -> None:
        self.done: list[Any] = []
        self.stream = RespStream(
            hiredis.Reader(notEnoughData=RespStream.NOTHING),
            hiredis.PushNotification,
            self.begin,
            lambda _: None,
            lambda _: None,
            1e9,
        )
        self.stream.waiting.append(self.done.append)
        messages = [array(b">", [bulk(b"message"), bulk(b"c"), bulk(each)]) for each in (b"1", b"2")]
        self.data = b"".join(messages) + b":3\r\n"

    def begin(self, payload: bytes) -> Callable[[], Any]:
        def end() -> None:
            self.done.append(payload)

        def middle() -> Callable[[], Any]:
            return end

        return middle


def test_nothing_is_handed_on_before_all_is_done_that_a_message_asks_for() -> None:
    bits = Bits()
    assert not bits.stream.receive(bits.data)
    assert bits.done == []
    assert not bits.stream.receive(b"")
    assert bits.done == []
    assert not bits.stream.receive(b"")
    assert bits.done == [b"1"]
    assert not bits.stream.receive(b"")
    assert bits.stream.receive(b"")
    assert bits.done == [b"1", b"2", 3]


def test_a_stream_that_ends_finishes_the_message_that_it_has_begun_and_no_other() -> None:
    bits = Bits()
    bits.stream.receive(bits.data)
    bits.stream.finish()
    assert bits.done == [b"1"]
    bits.stream.finish()
    assert bits.done == [b"1"]
