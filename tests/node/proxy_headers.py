"""Headers of the PROXY protocol, as proxies write them."""

from __future__ import annotations

import ipaddress
import struct

from freeim.node.proxy_protocol import SIGNATURE


def line(source: str, target: str = "127.0.0.1", source_port: int = 50000, target_port: int = 6001) -> bytes:
    """Return a header of version 1."""
    version = ipaddress.ip_address(source).version
    return f"PROXY TCP{version} {source} {target} {source_port} {target_port}\r\n".encode()


def block(source: str, target: str = "127.0.0.1", *, command: int = 0x21, extensions: bytes = b"") -> bytes:
    """Return a header of version 2."""
    one, other = ipaddress.ip_address(source), ipaddress.ip_address(target)
    body = one.packed + other.packed + struct.pack("!HH", 50000, 6001) + extensions
    family = 0x11 if one.version == 4 else 0x21
    return SIGNATURE + bytes([command, family]) + struct.pack("!H", len(body)) + body
