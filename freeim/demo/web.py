"""What all endpoints share: who asks, what they ask, and the headers of every answer."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from freeim import FreeImError
from freeim.demo import checks
from freeim.demo.checks import Refused

LARGEST_BODY: Final = 64 * 1024
"""The longest JSON that a page may send, in bytes."""

logger: Final = logging.getLogger("freeim.demo")

_HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'self'; connect-src 'self' ws: wss:; object-src 'none'; base-uri 'none'; form-action 'self'; "
        "frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


@dataclass(frozen=True, slots=True)
class Person:
    """Who asks, as the signed cookie says."""

    id: int
    name: str


def known(request: Request) -> Person | None:
    """Return who asks, or None for a browser that has no identity yet (or a forged one)."""
    found, name = request.session.get("id"), request.session.get("name")
    if isinstance(found, int) and isinstance(name, str):
        return Person(found, name)
    return None


def person(request: Request) -> Person:
    """Return who asks, and refuse a browser that has no identity."""
    found = known(request)
    if found is None:
        raise Refused(401, "no-identity", "choose a nickname first (POST /ws/pre-connect)")
    return found


async def read_json(request: Request) -> dict[str, Any]:
    """Return the JSON object that was posted.

    A form of another site can post only text/plain and the two kinds of form; the content type that is asked for keeps
    it out.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refused(415, "content-type", "the content type must be application/json")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > LARGEST_BODY:
            raise Refused(413, "too-large", f"the request is longer than {LARGEST_BODY} bytes")
    try:
        value = json.loads(bytes(body))
    except (ValueError, RecursionError):
        raise Refused(400, "json", "the request is not JSON") from None
    if not isinstance(value, dict):
        raise Refused(400, "json", "the request must be a JSON object")
    return value


def message(kind: str, sender: Person, body: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    """Return a message from a person to the pages, with the key that came with the request."""
    head = {"type": kind, "from": sender.id, "name": sender.name, "at": int(time.time() * 1000)}
    return head | ({"key": checks.key(body.get("key"))} if body is not None else {}) | fields


def done(**fields: Any) -> JSONResponse:
    """Return an answer in FreeIM's form, where the code 0 is success."""
    return JSONResponse({"code": 0, **fields})


# What went wrong is answered in one form, too.


async def refused(_: Request, error: Exception) -> Response:
    """Answer a `Refused`."""
    assert isinstance(error, Refused)
    return _failure(error.status, error.reason, error.sentence)


async def unavailable(_: Request, error: Exception) -> Response:
    """Answer where the helper could not reach Redis, or no node runs."""
    assert isinstance(error, FreeImError)
    logger.warning("%s", error)
    return _failure(503, "unavailable", f"nothing can be sent at the moment: {type(error).__name__}")


async def http_error(_: Request, error: Exception) -> Response:
    """Answer a wrong method or an unknown address."""
    assert isinstance(error, HTTPException)
    return _failure(error.status_code, "http", error.detail, dict(error.headers or {}))


async def gone(_: Request, error: Exception) -> Response:
    """Answer nobody: the browser left in the middle of its request."""
    assert isinstance(error, ClientDisconnect)
    return Response(status_code=400)


def _failure(status: int, reason: str, sentence: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"code": status, "reason": reason, "error": sentence}, status, headers)


HANDLERS: Final = {Refused: refused, FreeImError: unavailable, HTTPException: http_error, ClientDisconnect: gone}


class Hosts:
    """Refuses a request for a host that is none of ours: a page of another site that has its name point here.

    Starlette's TrustedHostMiddleware is not enough: before 1.0 it cannot read the Host of an IPv6 address.

    Args:
        app: What is behind it.
        names: The hosts, without port and brackets, in lower case.
    """

    def __init__(self, app: ASGIApp, names: Collection[str]) -> None:
        self.app = app
        self.names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self.app
        if scope["type"] == "http" and _host(scope) not in self.names:
            app = _failure(421, "host", "this app has another name; open it by the address that it announced")
        await app(scope, receive, send)


def _host(scope: Scope) -> str | None:
    try:
        parts = urlsplit("//" + Request(scope).headers.get("host", ""))
    except ValueError:
        return None
    return None if "@" in parts.netloc else parts.hostname


class Headers:
    """Adds the headers that a browser shall see in every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(event: Message) -> None:
            if event["type"] == "http.response.start":
                headers = MutableHeaders(scope=event)
                headers.update(_HEADERS)
                headers.setdefault("Cache-Control", "no-cache" if scope["path"].startswith("/static/") else "no-store")
            await send(event)

        await self.app(scope, receive, send_with_headers if scope["type"] == "http" else send)
