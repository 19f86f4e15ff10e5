"""Checks of single values. Each raises ValueError with the end of a sentence: "must ..., not ..."."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

_PLACEHOLDER: Final = re.compile(r"\{([^{}]*)\}")
PLACEHOLDERS: Final = ("index", "port", "hostname")

OFF: Final = "off"
"""What stands for no address."""

MAX_SOCKET_PATH: Final = 96
"""Bytes of a socket's path. It is made under a longer name beside it, and sockaddr_un holds 104 bytes on macOS and 108
on Linux, a final NUL included."""

RESERVED_PATHS: Final = ("/health", "/ready")
"""Paths that the node itself answers."""


def split_bind(text: str) -> tuple[str, int]:
    """Split ``HOST:PORT`` or ``[IPv6]:PORT``; the brackets are not part of the host.

    Raises:
        ValueError: It is not of this form.
    """
    wanted = f"must be HOST:PORT (127.0.0.1:6001, [::1]:6001, 0.0.0.0:6001 for every address), not {text!r}"
    host, colon, port = text.rpartition(":")
    if not colon or not host or not _plain(host) or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise ValueError(wanted)
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise ValueError(wanted) from None
    elif re.search(r"[][:/@]", host):
        raise ValueError(wanted)
    return host, int(port)


def check_admin_bind(text: str) -> None:
    """Check where the metrics are served."""
    if text != OFF:
        try:
            split_bind(text)
        except ValueError:
            raise ValueError(f"must be HOST:PORT (127.0.0.1:7001, [::1]:7001) or '{OFF}', not {text!r}") from None


def join_bind(host: str, port: int) -> str:
    """The reverse of `split_bind`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_wildcard(host: str) -> bool:
    """Whether a host (without brackets) means every address of the machine."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def is_loopback(host: str) -> bool:
    """Whether a host (without brackets) can be reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_template(text: str) -> None:
    """Check that the braces in a text hold known placeholders only."""
    rest = _PLACEHOLDER.sub("", text)
    unknown = [name for name in _PLACEHOLDER.findall(text) if name not in PLACEHOLDERS]
    if unknown or "{" in rest or "}" in rest:
        raise ValueError(
            f"may hold the placeholders {{index}}, {{port}} and {{hostname}} and no other braces, not {text!r}"
        )


def expand(template: str, values: Mapping[str, str]) -> str:
    """Fill the placeholders of a template that `check_template` let pass."""
    return _PLACEHOLDER.sub(lambda match: values[match[1]], template)


def check_node_name(name: str) -> None:
    """Check a node's name after its placeholders were filled."""
    if not name or not _plain(name) or "," in name:
        raise ValueError(f"must be a name without spaces, commas and control characters, not {name!r}")
    if any(is_wildcard(host.strip("[]")) for host in (name, name.rpartition(":")[0])):
        raise ValueError(
            f"must not be a wildcard address ({name!r}): terminals connect to ws://<name>. Use this machine's name or "
            "address, or {hostname}:{port}"
        )


def check_public_url(url: str) -> None:
    """Check a public base URL, placeholders filled or not: everything before the path."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # reading it checks it
        good = parts.scheme in ("ws", "wss") and bool(parts.hostname) and "@" not in parts.netloc
    except ValueError:
        good = False
    if not good or not _plain(url):
        raise ValueError(f"must be a base such as wss://im.example.com/n1 (ws:// or wss://, then a host), not {url!r}")
    if "?" in url or "#" in url:
        raise ValueError(f"must not have a query or a fragment: the path and the token are added to it, not {url!r}")
    if url.endswith("/"):
        raise ValueError(f"must not end with a slash: the path is added to it, not {url!r}")


def check_path(path: str) -> None:
    """Check the path of the WebSocket endpoint."""
    if not path.startswith("/") or not path.isascii() or not _plain(path) or "?" in path or "#" in path:
        raise ValueError(f"must begin with a slash and hold neither spaces, '?' nor '#' (/ws), not {path!r}")
    if path in RESERVED_PATHS:
        raise ValueError(f"must not be {path!r}: the node answers its own state there")


def check_network(text: str) -> None:
    """Check an address or a network."""
    try:
        ipaddress.ip_network(text)
    except ValueError:
        try:
            meant = f"; did you mean {ipaddress.ip_network(text, strict=False)}?"
        except ValueError:
            meant = ""
        raise ValueError(
            f"must hold addresses and networks such as 127.0.0.1, 10.0.0.0/8 or fd00::/8, not {text!r}{meant}"
        ) from None


def check_prefix(prefix: str) -> None:
    """Check the beginning of every Redis key."""
    if not prefix or not _plain(prefix):
        raise ValueError(f"must be a text without spaces and control characters, not {prefix!r}")


def check_socket_path(path: str) -> None:
    """Check where a socket is to be, placeholders filled."""
    if not os.path.isabs(path) or path.endswith("/") or "\0" in path:
        raise ValueError(f"must be the full path of a socket (/run/freeim/node.sock), not {path!r}")
    if len(os.fsencode(path)) > MAX_SOCKET_PATH:
        raise ValueError(f"must not be longer than {MAX_SOCKET_PATH} bytes, not {path!r}")


def _plain(text: str) -> bool:
    return text.isprintable() and not any(char.isspace() for char in text)
