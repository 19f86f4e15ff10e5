"""socketify: uWebSockets behind Python, whose topics do the fanout in C++."""

from __future__ import annotations

from bench.peers.base import PythonPeer


class SocketifyPeer(PythonPeer):
    """One process; a task in its loop reads Redis and publishes to topics."""

    name = "socketify"
    modules = ("socketify", "redis.asyncio", "hiredis")
    packages = ("socketify", "redis", "hiredis")
    program = "serve_socketify.py"
