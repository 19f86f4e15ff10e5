"""Push through Redis with socketify: ``python serve_socketify.py REDIS_URL PORT PREFIX``."""

from __future__ import annotations

import sys
from typing import Any

import redis.asyncio
from socketify import App, CompressOptions, OpCode

url, port, prefix = sys.argv[1], int(sys.argv[2]), sys.argv[3]


def upgrade(response: Any, request: Any, context: Any) -> None:
    """Read what the answer takes: the request is gone when Redis has said whose the token is."""
    names = ("sec-websocket-key", "sec-websocket-protocol", "sec-websocket-extensions")
    headers = [request.get_header(name) for name in names]
    response.run_async(admit(response, headers, context, request.get_query("token")))


async def admit(response: Any, headers: list[str], context: Any, token: str) -> None:
    """Take a token out of Redis, as the node does."""
    client = await client_of.getdel(f"{prefix}:token:{token}")
    if client is None:
        response.write_status(401).end("no such token\n")
    else:
        response.upgrade(*headers, context, int(client))


def opened(websocket: Any) -> None:
    """Subscribe a client to everybody's topic and to its own."""
    websocket.subscribe("0")
    websocket.subscribe(str(websocket.get_user_data()))


async def read() -> None:
    """Hand on what Redis says."""
    pubsub = redis.asyncio.Redis.from_url(url).pubsub()
    await pubsub.subscribe(f"{prefix}:push")
    async for message in pubsub.listen():
        if message["type"] == "message":
            number, _, text = message["data"].decode().partition(" ")
            app.publish(number, text, OpCode.TEXT)


app = App()
# A pool that lets its users wait: the usual one raises an error where a hundred ask at once.
client_of = redis.asyncio.Redis.from_pool(redis.asyncio.BlockingConnectionPool.from_url(url, max_connections=50))
app.ws(
    "/ws",
    {"compression": CompressOptions.DISABLED, "idle_timeout": 0, "upgrade": upgrade, "open": opened},
)
app.listen(port, lambda _: None)
# Not create_background_task(): that keeps no reference to the task, and the garbage collector ends the reader for good
# as soon as some thousands have connected.
reader = app.loop.create_task(read())
app.run()
