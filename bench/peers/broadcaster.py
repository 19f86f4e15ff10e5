"""Starlette with broadcaster under uvicorn: what its documentation shows for pushing through Redis."""

from __future__ import annotations

from bench.peers.base import PythonPeer, RedisSender, Sender, Server


class BroadcasterPeer(PythonPeer):
    """One process of uvicorn on uvloop, httptools and websockets; each client listens to two channels."""

    name = "broadcaster"
    modules = ("broadcaster", "starlette", "uvicorn", "uvloop", "httptools", "websockets", "redis.asyncio", "hiredis")
    packages = ("broadcaster[redis]", "starlette", "uvicorn", "uvloop", "httptools", "websockets", "redis", "hiredis")
    program = "serve_broadcaster.py"

    def sender(self, server: Server) -> Sender:
        """Publish to the channels of the clients."""
        return _ChannelSender(server.run.url, f"{server.run.prefix}:push")


class _ChannelSender(RedisSender):
    def pack(self, text: str, client: int = 0) -> bytes:
        return self.publish(f"{self.channel}:{client or 'everybody'}", text)
