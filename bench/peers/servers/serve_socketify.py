"""Push through Redis with socketify: ``python serve_socketify.py REDIS_URL PORT PREFIX``."""

from __future__ import annotations

import sys
from typing import Any

import redis.asyncio
from socketify import App, CompressOptions, OpCode

url, port, prefix = sys.argv[1], int(sys.argv[2]), sys.argv[3]


def upgrade(response: Any, request: Any, context: Any) -> None:
    """Read the client's number off the token, as the node does with Redis."""
    response.upgrade(
        request.get_header("sec-websocket-key"),
        request.get_header("sec-websocket-protocol"),
        request.get_header("sec-websocket-extensions"),
        context,
        int(request.get_query("token")),
    )


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
app.ws(
    "/ws",
    {"compression": CompressOptions.DISABLED, "idle_timeout": 0, "upgrade": upgrade, "open": opened},
)
app.listen(port, lambda _: None)
# Not create_background_task(): that keeps no reference to the task, and the garbage collector ends the reader for good
# as soon as some thousands have connected.
reader = app.loop.create_task(read())
app.run()
