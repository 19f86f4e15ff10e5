"""The frames of terminals that are known at sight."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from freeim._core import small_frame, unmask

MASK = b"\x11\x22\x33\x44"
USUAL = (1, 2, 8, 9, 10)


def masked(first: int, payload: bytes, mask: bytes = MASK) -> bytes:
    body = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
    return bytes([first, 0x80 | len(payload)]) + mask + body


@given(st.sampled_from(USUAL), st.binary(max_size=125), st.binary(min_size=4, max_size=4))
def test_a_whole_small_frame_is_known_with_its_payload(opcode: int, payload: bytes, mask: bytes) -> None:
    data = masked(0x80 | opcode, payload, mask)
    assert small_frame(data) == opcode
    assert unmask(data) == payload


@pytest.mark.parametrize("payload", [b"", b"x", b"\x00", b"\xff"])
def test_bytes_that_the_interpreter_shares_stay_what_they_are(payload: bytes) -> None:
    unmask(masked(0x89, payload, b"abcd"))
    assert [bytes([number]) for number in range(256)] == [number.to_bytes(1, "big") for number in range(256)]
    assert bytes(bytearray(b"a")) == b"\x61"


OTHER = {
    "nothing": b"",
    "a piece of a head": b"\x8a",
    "no payload yet": masked(0x8A, b"abc")[:-1],
    "more than one frame": masked(0x8A, b"") * 2,
    "not masked": b"\x8a\x04abcd",
    "not final": masked(0x01, b"abc"),
    "a continuation": masked(0x80, b"abc"),
    "a reserved bit": masked(0xC1, b"abc"),
    "a reserved opcode": masked(0x83, b"abc"),
    "a long payload": b"\x81\xfe\x00\x7e" + MASK + bytes(126),
    "a long payload's head alone": b"\x81\xfe\x00\x7e" + MASK + bytes(124),
}


@pytest.mark.parametrize("what", OTHER)
def test_anything_else_is_left_to_picows(what: str) -> None:
    assert small_frame(OTHER[what]) == 0


@given(st.binary(max_size=140))
@example(b"\x8a\xff" + bytes(131))
def test_any_bytes_are_looked_at_without_harm(data: bytes) -> None:
    opcode = small_frame(data)
    assert opcode in (0, *USUAL)
    if opcode:
        assert len(unmask(data)) == len(data) - 6 == data[1] & 0x7F <= 125


def test_what_is_too_short_for_a_frame_has_no_payload() -> None:
    with pytest.raises(ValueError, match="no masked frame"):
        unmask(b"\x8a\x80")
