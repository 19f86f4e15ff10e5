"""The HTTP request that opens every connection: pure functions over bytes (RFC 9112, RFC 6455 section 4.2.1)."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final
from urllib.parse import unquote

MAX_HEADERS: Final = 100
"""Header lines of one request; browsers send about fifteen."""

_WEBSOCKET_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

_TOKEN: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
# The possessive quantifiers (++) keep a malformed head from being tried in every possible way.
_HEADER_LINES: Final = re.compile(rb"(?:\r\n[!#$%&'*+\-.^_`|~0-9A-Za-z]++:[\t\x20-\x7e\x80-\xff]*+)*+")
_TARGET: Final = re.compile(rb"/[\x21-\x7e]*")
_ABSOLUTE: Final = re.compile(rb"\Ahttps?://[\x21-\x2e\x30-\x7e]+(?=/)", re.IGNORECASE)
_HOST: Final = re.compile(rb"[\x21-\x7e]+")
_VERSION: Final = re.compile(rb"HTTP/(\d)\.(\d)")
_CONNECTION_TOKEN: Final = re.compile(r"[0-9A-Za-z_-]{1,256}")


class Refusal(Exception):
    """A request that is answered with an error status.

    Attributes:
        status: The HTTP status.
        reason: One line for the body and the log; never holds the token.
        headers: Header lines that the status wants, without the line ends.
    """

    def __init__(self, status: int, reason: str, *headers: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.headers = headers


@dataclass(slots=True)
class Request:
    """A well-formed request head.

    Attributes:
        method: As it was sent.
        path: The target before the question mark, as it was sent.
        query: What follows it.
        version: Major and minor.
        headers: Lower-case name to value; several lines of one name are joined with ``, ``.
    """

    method: str
    path: str
    query: str = field(repr=False)  # it holds the token
    version: tuple[int, int]
    headers: dict[str, str] = field(repr=False)


def parse_head(head: bytes) -> Request:
    """Parse a request head, without the empty line that ends it.

    Raises:
        Refusal: 400 for a malformed head, 431 for too many header lines.
    """
    request_line, line_end, rest = head.partition(b"\r\n")
    parts = request_line.split(b" ")
    if len(parts) == 3:
        parts[1] = _ABSOLUTE.sub(b"", parts[1])  # the form for proxies (RFC 9112, section 3.2.2)
    if len(parts) != 3 or not _TOKEN.fullmatch(parts[0]) or not _TARGET.fullmatch(parts[1]):
        raise Refusal(400, "malformed request line")
    version = _VERSION.fullmatch(parts[2])
    if version is None:
        raise Refusal(400, "malformed HTTP version")
    if version[1] != b"1":
        raise Refusal(505, "this server speaks HTTP/1.1")
    lines = rest.decode("latin-1").split("\r\n") if line_end else []
    if len(lines) > MAX_HEADERS:
        raise Refusal(431, f"more than {MAX_HEADERS} header lines")
    if not _HEADER_LINES.fullmatch(line_end + rest):
        raise Refusal(400, "malformed header line")
    headers: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        key = name.lower()
        if key == "host" and key in headers:
            raise Refusal(400, "more than one Host header")
        text = value.strip(" \t")
        headers[key] = f"{headers[key]}, {text}" if key in headers else text
    minor = int(version[2])
    if minor >= 1 and not _HOST.fullmatch(headers.get("host", "").encode("latin-1")):
        raise Refusal(400, "missing or malformed Host header")
    if "transfer-encoding" in headers or headers.get("content-length", "0").strip("0"):
        raise Refusal(400, "a request body is not accepted")
    path, _, query = parts[1].decode().partition("?")
    return Request(parts[0].decode(), path, query, (1, minor), headers)


def websocket_key(request: Request) -> str:
    """Check the headers of an upgrade and return the Sec-WebSocket-Key.

    Raises:
        Refusal: 405 for a method other than GET, 426 where this is no upgrade to WebSocket version 13, 400 for a
            malformed key.
    """
    if request.method != "GET":
        raise Refusal(405, "only GET is served here", "Allow: GET")
    headers = request.headers
    if (
        request.version < (1, 1)
        or "websocket" not in _tokens(headers.get("upgrade", ""))
        or "upgrade" not in _tokens(headers.get("connection", ""))
    ):
        raise Refusal(426, "connect with a WebSocket client", "Upgrade: websocket", "Sec-WebSocket-Version: 13")
    if headers.get("sec-websocket-version") != "13":
        raise Refusal(426, "only WebSocket version 13 is served", "Upgrade: websocket", "Sec-WebSocket-Version: 13")
    key = headers.get("sec-websocket-key", "")
    try:
        valid = len(base64.b64decode(key, validate=True)) == 16
    except (binascii.Error, ValueError):
        valid = False
    if not valid:
        raise Refusal(400, "malformed Sec-WebSocket-Key header")
    return key


def switching_protocols(key: str) -> bytes:
    """Return the 101 that opens a WebSocket.

    Args:
        key: The request's Sec-WebSocket-Key.
    """
    accept = base64.b64encode(hashlib.sha1(key.encode() + _WEBSOCKET_GUID, usedforsecurity=False).digest())
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: "
        + accept
        + b"\r\n\r\n"
    )


def token_of(request: Request) -> str:
    """Return the connection token out of the query.

    Raises:
        Refusal: 401 where there is none, or none that could be one.
    """
    for pair in request.query.split("&"):
        name, _, value = pair.partition("=")
        if name == "token":
            token = unquote(value)
            if _CONNECTION_TOKEN.fullmatch(token):
                return token
            break
    raise Refusal(401, "no token, or a malformed one")


def response(
    status: int,
    body: str | bytes,
    *headers: str,
    head_only: bool = False,
    content_type: str = "text/plain; charset=utf-8",
) -> bytes:
    """Return a whole response that closes the connection.

    Args:
        status: The HTTP status.
        body: One line of text without its end, or any bytes.
        headers: More header lines.
        head_only: Leave the body out, for HEAD.
        content_type: What the body is.
    """
    content = body if isinstance(body, bytes) else f"{body}\n".encode()
    lines = [
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(content)}",
        "Cache-Control: no-store",
        "Connection: close" if status != 426 else "Connection: close, Upgrade",
        *headers,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + (b"" if head_only else content)


def _tokens(value: str) -> list[str]:
    return [token.strip().lower() for token in value.split(",")]
