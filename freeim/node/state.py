"""What ``/health`` and ``/ready`` answer."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from freeim.node.handshake import Handshake
from freeim.node.http import Refusal, Request
from freeim.node.session import Session

READY_TIMEOUT: Final = 1.0
"""Seconds that Redis has to answer for ``/ready``: as long as a probe of Kubernetes waits by default."""


def tell_state(handshake: Handshake, request: Request, session: Session, *, draining: bool) -> None:
    """Answer a request for ``/health`` or ``/ready``.

    Args:
        handshake: Whose request it is.
        request: The request.
        session: The node's connections to Redis.
        draining: Whether the node stops.

    Raises:
        Refusal: The method is neither GET nor HEAD.
    """
    if request.method not in ("GET", "HEAD"):
        raise Refusal(405, "only GET is served here", "Allow: GET, HEAD")
    if request.path == "/health":
        handshake.answer(request, 200, "alive")
    elif draining:
        handshake.answer(request, 503, "draining: this node stops")
    elif not session.up:
        handshake.answer(request, 503, "the bus is lost: no connection to Redis")
    elif session.refused:
        handshake.answer(request, 503, f"Redis refuses to write: {session.refused}")
    else:
        _ask_redis(handshake, request, session)


def _ask_redis(handshake: Handshake, request: Request, session: Session) -> None:
    """Answer by what Redis does at this moment: the beats notice its silence only in a while."""

    def answered(reply: Any) -> None:
        timer.cancel()
        if handshake.finished or handshake.transport is None:
            return
        if isinstance(reply, Exception):
            handshake.answer(request, 503, f"Redis does not answer: {reply}")
        elif not session.tracking:
            handshake.answer(request, 200, "ready, without CLIENT TRACKING: channel messages cost a look-up each")
        else:
            handshake.answer(request, 200, "ready")

    silent = TimeoutError(f"nothing within {READY_TIMEOUT:.0f} s")
    timer = asyncio.get_running_loop().call_later(READY_TIMEOUT, lambda: answered(silent))
    session.send(answered, "PING")
