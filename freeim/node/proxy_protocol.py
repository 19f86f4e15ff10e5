"""The PROXY protocol: what a proxy that looks into no bytes sends first, to say whose connection it hands on.

https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt, versions 1 (a line of text) and 2 (binary).
"""

from __future__ import annotations

import ipaddress
from typing import Final, NamedTuple

from freeim.node.http import Refusal

SIGNATURE: Final = b"\r\n\r\n\x00\r\nQUIT\n"
"""What a header of version 2 begins with."""

WORD: Final = b"PROXY "
"""What a header of version 1 begins with."""

MAX_LINE: Final = 107
"""Bytes of a header of version 1, line end included (section 2.1)."""

MAX_BLOCK: Final = 4096
"""Bytes of a header of version 2 that are read here; addresses take 52, the rest is for extensions."""

_HEAD: Final = len(SIGNATURE) + 4
_LOCAL, _PROXY = 0x20, 0x21
_SOURCES: Final = {0x11: (4, 12), 0x21: (16, 36)}
"""TCP over IPv4 and over IPv6: bytes of the source's address, which come first, and of all addresses and ports."""


class Header(NamedTuple):
    """What was found at the begin of a connection.

    Attributes:
        size: Bytes of the header; 0 where there is none.
        source: The terminal's address; None where the header names none, e.g. in a probe of the proxy's own.
    """

    size: int
    source: str | None


def read_header(data: bytes | bytearray) -> Header | None:
    """Look for a header at the begin of a connection.

    Args:
        data: What has come so far.

    Returns:
        The header, or None where more must come.

    Raises:
        Refusal: 400, it is malformed.
    """
    start = bytes(data[: len(SIGNATURE)])
    if start == SIGNATURE:
        return _read_block(data)
    if start.startswith(WORD):
        return _read_line(data)
    return None if SIGNATURE.startswith(start) or WORD.startswith(start) else Header(0, None)


def missing(data: bytes | bytearray) -> int:
    """Return how many bytes can be read without reading more than the header, when `read_header` wants more."""
    if not data.startswith(SIGNATURE):
        return 1
    if len(data) < _HEAD:
        return _HEAD - len(data)
    return _HEAD + int.from_bytes(data[_HEAD - 2 : _HEAD], "big") - len(data)


def _read_line(data: bytes | bytearray) -> Header | None:
    end = data.find(b"\r\n", 0, MAX_LINE)
    if end < 0:
        if len(data) >= MAX_LINE:
            raise _malformed()
        return None
    _, kind, *rest = bytes(data[:end]).split(b" ")
    if kind == b"UNKNOWN":
        return Header(end + 2, None)
    versions = {b"TCP4": 4, b"TCP6": 6}
    if kind not in versions or len(rest) != 4 or not all(_is_port(port) for port in rest[2:]):
        raise _malformed()
    try:
        source, target = (ipaddress.ip_address(text.decode("ascii")) for text in rest[:2])
    except ValueError:
        raise _malformed() from None
    if not source.version == target.version == versions[kind]:
        raise _malformed()
    return Header(end + 2, str(source))


def _read_block(data: bytes | bytearray) -> Header | None:
    if len(data) < _HEAD:
        return None
    command, family = data[len(SIGNATURE)], data[len(SIGNATURE) + 1]
    size = int.from_bytes(data[_HEAD - 2 : _HEAD], "big")
    if command not in (_LOCAL, _PROXY) or _HEAD + size > MAX_BLOCK:
        raise _malformed()
    if len(data) < _HEAD + size:
        return None
    if command == _LOCAL or family not in _SOURCES:
        return Header(_HEAD + size, None)
    length, least = _SOURCES[family]
    if size < least:
        raise _malformed()
    return Header(_HEAD + size, str(ipaddress.ip_address(bytes(data[_HEAD : _HEAD + length]))))


def _is_port(text: bytes) -> bool:
    return text.isdigit() and len(text) <= 5 and int(text) <= 65535


def _malformed() -> Refusal:
    return Refusal(400, "malformed PROXY header")
