"""Any bytes in place of a request: an answer or a refusal, never anything else."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from tests.fuzz.targets import STATUSES, outcome
from tests.node.harness import head

VALID = head("/ws?token=abc")[:-4]

names = st.sampled_from(
    [b"Host", b"host", b"Upgrade", b"Connection", b"Sec-WebSocket-Key", b"Sec-WebSocket-Version", b"Content-Length"]
) | st.binary(max_size=8)
values = st.sampled_from([b"websocket", b"Upgrade", b"13", b"keep-alive, upgrade", b"x", b"0", b"\xff", b"a\x00b"])
lines = st.builds(
    lambda name, colon, value: name + colon + value, names, st.sampled_from([b":", b": ", b"", b" :"]), values
)
starts = st.builds(
    lambda method, target, version: b" ".join([method, target, version]),
    st.sampled_from([b"GET", b"POST", b"HEAD", b"", b"G\tT"]),
    st.sampled_from(
        [b"/ws", b"/ws?token=", b"/ws?token=%00", b"*", b"http://x/ws", b"/\x7f", b"/ws?token=abc&resume=%"]
    )
    | st.binary(max_size=20),
    st.sampled_from([b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/9.9", b"http/1.1", b""]),
)
heads = st.builds(lambda start, rest: b"\r\n".join([start, *rest]), starts, st.lists(lines, max_size=12))


def mutated(draw: st.DrawFn) -> bytes:
    data = bytearray(VALID)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=4))
    return bytes(data)


def test_the_unchanged_request_is_accepted() -> None:
    assert outcome(VALID) == 101


@given(st.binary(max_size=300) | heads | st.composite(mutated)())
@example(b"")
@example(b"GET  HTTP/1.1")
@example(b"GET /ws?token=abc HTTP/1.1\r\nHost: x\r\nHost: y")
@example(b"GET /ws?token=abc HTTP/1.1\r\nHost: x\r\n folded: y")
def test_any_head_is_accepted_or_refused_with_a_status_of_ours(data: bytes) -> None:
    assert outcome(data) in STATUSES
