"""Push through Redis with Starlette and broadcaster: ``python serve_broadcaster.py REDIS_URL PORT PREFIX``."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator

import redis.asyncio
import uvicorn
from broadcaster import Broadcast
from broadcaster._backends.redis import RedisBackend
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

url, port, prefix = sys.argv[1], int(sys.argv[2]), sys.argv[3]
# A pool that lets its users wait: the usual one raises an error where a hundred ask at once.
client_of = redis.asyncio.Redis.from_pool(redis.asyncio.BlockingConnectionPool.from_url(url, max_connections=50))
broadcast = Broadcast(backend=RedisBackend(url))  # by its URL, Broadcast takes no socket of Unix


async def forward(websocket: WebSocket, channel: str) -> None:
    """Send to a client what is published to a channel."""
    async with broadcast.subscribe(channel) as subscriber:
        async for event in subscriber:
            await websocket.send_text(event.message)


async def push(websocket: WebSocket) -> None:
    """Take a token out of Redis, as the node does; subscribe its client to everybody's channel and to its own."""
    client = await client_of.getdel(f"{prefix}:token:{websocket.query_params.get('token')}")
    if client is None:
        await websocket.close()  # a 403, before the 101
        return
    await websocket.accept()
    tasks = [asyncio.ensure_future(forward(websocket, f"{prefix}:push:{name}")) for name in ("everybody", int(client))]
    try:
        while True:
            await websocket.receive_text()
    except WebSocketDisconnect:
        pass
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[None]:
    """Hold the connection to Redis, and everybody's channel.

    broadcaster 0.3 forgets subscribers of a channel that is subscribed to for the first time by several at once; this
    way it is never the first time.
    """
    async with broadcast, broadcast.subscribe(f"{prefix}:push:everybody") as subscriber:

        async def drain() -> None:
            async for _ in subscriber:
                pass

        task = asyncio.create_task(drain())
        yield
        task.cancel()


app = Starlette(routes=[WebSocketRoute("/ws", push)], lifespan=lifespan)

if __name__ == "__main__":
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=port,
        loop="uvloop",
        http="httptools",
        ws="websockets-sansio",
        ws_ping_interval=None,
        ws_per_message_deflate=False,
        log_level="warning",
        access_log=False,
        backlog=4096,
        timeout_graceful_shutdown=1,
    )
