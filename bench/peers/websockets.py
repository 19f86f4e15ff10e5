"""The websockets library: a reader of Redis that calls its broadcast()."""

from __future__ import annotations

from bench.peers.base import PythonPeer


class WebsocketsPeer(PythonPeer):
    """One process of asyncio, on uvloop as the node is."""

    name = "websockets"
    modules = ("websockets.asyncio.server", "redis.asyncio", "hiredis", "uvloop")
    packages = ("websockets", "uvloop", "redis", "hiredis")
    program = "serve_websockets.py"
