"""Any bytes in place of what a proxy says: an address, a refusal, or more is waited for, never anything else."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from freeim.node.http import Refusal
from freeim.node.proxies import Proxies
from freeim.node.proxy_protocol import MAX_BLOCK, MAX_LINE, SIGNATURE, Header, missing, read_header
from tests.node.proxy_headers import block, line

addresses = st.ip_addresses()
ports = st.integers(0, 65535)


@st.composite
def headers(draw: st.DrawFn) -> tuple[bytes, str | None]:
    """Headers of both versions, and the address that each names."""
    kinds = draw(st.sampled_from([st.ip_addresses(v=4), st.ip_addresses(v=6)]))
    source, target = str(draw(kinds)), str(draw(kinds))
    kind = draw(st.sampled_from(["line", "unknown line", "block", "local block", "unspecified block"]))
    if kind == "line":
        return line(source, target, draw(ports), draw(ports)), source
    if kind == "unknown line":
        return draw(st.sampled_from([b"PROXY UNKNOWN\r\n", b"PROXY UNKNOWN ff:: ::1 1 2\r\n"])), None
    extensions = draw(st.binary(max_size=300))
    if kind == "block":
        return block(source, target, extensions=extensions), source
    if kind == "local block":
        return block(source, target, command=0x20, extensions=extensions), None
    return SIGNATURE + b"\x21\x00" + len(extensions).to_bytes(2, "big") + extensions, None


@given(headers(), st.binary(max_size=40))
def test_a_header_is_read_whole_and_nothing_behind_it(header: tuple[bytes, str | None], rest: bytes) -> None:
    data, source = header
    assert read_header(data + rest) == Header(len(data), source)
    for size in range(len(data)):
        assert read_header(data[:size]) is None, "more must come"


@given(headers(), st.binary(min_size=1, max_size=40))
def test_read_in_the_steps_that_are_missing_it_takes_nothing_of_what_follows(
    header: tuple[bytes, str | None], rest: bytes
) -> None:
    data, source = header
    taken = 0
    while (found := read_header(data[:taken])) is None:
        step = missing(data[:taken])
        assert step > 0
        taken += step
        assert taken <= len(data)
    assert found == Header(taken, source)


def outcome(data: bytes) -> Header | int | None:
    try:
        return read_header(data)
    except Refusal as refusal:
        assert refusal.reason == "malformed PROXY header"
        return refusal.status


@given(
    st.binary(max_size=200)
    | st.builds(lambda rest: b"PROXY " + rest, st.binary(max_size=120))
    | st.builds(lambda rest: SIGNATURE + rest, st.binary(max_size=80))
)
@example(b"PROXY TCP4 1.2.3.4 1.2.3.5 1 65536\r\n")
@example(b"PROXY TCP4 \xd9\xa1.2.3.4 1.2.3.5 1 2\r\n")
@example(SIGNATURE + b"\x21\x11\xff\xff")
def test_any_bytes_are_a_header_or_none_or_refused(data: bytes) -> None:
    found = outcome(data)
    if isinstance(found, Header):
        assert found.size <= len(data)
        if found.source is not None:
            ipaddress.ip_address(found.source)
    elif found is None:
        assert len(data) < MAX_BLOCK
    else:
        assert found == 400


MALFORMED = {
    "a line without an end": b"PROXY " + b"x" * MAX_LINE,
    "another protocol": b"PROXY UDP4 1.2.3.4 1.2.3.5 1 2\r\n",
    "an address of the other version": b"PROXY TCP4 ::1 1.2.3.5 1 2\r\n",
    "no address": b"PROXY TCP4 x 1.2.3.5 1 2\r\n",
    "a port too large": b"PROXY TCP4 1.2.3.4 1.2.3.5 1 65536\r\n",
    "a sign before a port": b"PROXY TCP4 1.2.3.4 1.2.3.5 +1 2\r\n",
    "one word too few": b"PROXY TCP4 1.2.3.4 1.2.3.5 1\r\n",
    "one word too many": b"PROXY TCP4 1.2.3.4 1.2.3.5 1 2 3\r\n",
    "two spaces": b"PROXY TCP4  1.2.3.4 1.2.3.5 1 2\r\n",
    "version 1 in a block": SIGNATURE + b"\x11\x11\x00\x0c" + bytes(12),
    "an unknown command": SIGNATURE + b"\x22\x11\x00\x0c" + bytes(12),
    "a block too short for its addresses": SIGNATURE + b"\x21\x11\x00\x0b" + bytes(11),
    "a block too short for IPv6": SIGNATURE + b"\x21\x21\x00\x0c" + bytes(12),
    "a block too long": SIGNATURE + b"\x21\x11\xff\xff",
}


@pytest.mark.parametrize("what", MALFORMED)
def test_a_malformed_header_is_refused(what: str) -> None:
    assert outcome(MALFORMED[what]) == 400


OURS = Proxies(("10.0.0.0/8", "fd00::/8", "192.0.2.1"))


@pytest.mark.parametrize(
    ("peer", "forwarded", "terminal"),
    [
        ("203.0.113.1", "198.51.100.1", "203.0.113.1"),
        ("10.0.0.1", "198.51.100.1", "198.51.100.1"),
        ("::ffff:10.0.0.1", "198.51.100.1", "198.51.100.1"),
        ("10.0.0.1", "6.6.6.6, 198.51.100.1", "198.51.100.1"),
        ("10.0.0.1", "6.6.6.6, 198.51.100.1, 10.1.1.1,192.0.2.1", "198.51.100.1"),
        ("fd00::1", "2001:db8::7", "2001:db8::7"),
        ("fd00::1", "[2001:db8::7]:443", "2001:db8::7"),
        ("10.0.0.1", "198.51.100.1:50000", "198.51.100.1"),
        ("10.0.0.1", "::ffff:198.51.100.1", "198.51.100.1"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "unknown", "10.0.0.1"),
        ("10.0.0.1", "198.51.100.1, garbage, 10.0.0.2", "10.0.0.2"),
        ("10.0.0.1", "198.51.100.1,", "10.0.0.1"),
        ("10.0.0.1", "10.0.0.2, 10.0.0.3", "10.0.0.2"),
    ],
)
def test_the_terminal_is_the_nearest_address_that_is_no_proxy(peer: str, forwarded: str, terminal: str) -> None:
    assert OURS.terminal_behind(peer, forwarded) == terminal


@given(addresses, st.text(max_size=40) | addresses.map(str))
def test_a_stranger_is_the_terminal_whatever_it_says(address: ipaddress.IPv4Address, said: str) -> None:
    if str(address) not in OURS:
        assert OURS.terminal_behind(str(address), said) == str(address)


@given(st.text(max_size=60), st.ip_addresses(network="198.51.100.0/24"))
def test_what_a_terminal_says_changes_nothing_of_what_the_proxy_adds(said: str, seen: ipaddress.IPv4Address) -> None:
    assert OURS.terminal_behind("10.0.0.1", f"{said}, {seen}") == str(seen)


@given(st.text(max_size=60) | st.from_regex(r"[0-9.:,\[\] %a-f]{0,60}", fullmatch=True))
def test_any_header_leads_to_an_address(said: str) -> None:
    ipaddress.ip_address(OURS.terminal_behind("10.0.0.1", said))
