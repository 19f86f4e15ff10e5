"""Push through Redis with the websockets library: ``python serve_websockets.py REDIS_URL PORT PREFIX``."""

from __future__ import annotations

import sys
from http import HTTPStatus
from urllib.parse import parse_qs, urlsplit

import redis.asyncio
import uvloop
from websockets.asyncio.server import ServerConnection, broadcast, serve
from websockets.http11 import Request, Response

url, port, prefix = sys.argv[1], int(sys.argv[2]), sys.argv[3]
# A pool that lets its users wait: the usual one raises an error where a hundred ask at once.
client_of = redis.asyncio.Redis.from_pool(redis.asyncio.BlockingConnectionPool.from_url(url, max_connections=50))
clients: dict[int, ServerConnection] = {}


async def check(connection: ServerConnection, request: Request) -> Response | None:
    """Take the token out of Redis, as the node does."""
    token = parse_qs(urlsplit(request.path).query).get("token", [""])[0]
    client = await client_of.getdel(f"{prefix}:token:{token}")
    if client is None:
        return connection.respond(HTTPStatus.UNAUTHORIZED, "no such token\n")
    connection.client = int(client)  # type: ignore[attr-defined]
    return None


async def handle(connection: ServerConnection) -> None:
    """Keep a connection until it closes."""
    client: int = connection.client  # type: ignore[attr-defined]
    clients[client] = connection
    try:
        await connection.wait_closed()
    finally:
        del clients[client]


async def main() -> None:
    """Serve, and hand on what Redis says."""
    pubsub = redis.asyncio.Redis.from_url(url).pubsub()
    await pubsub.subscribe(f"{prefix}:push")
    # No compression, no pings, no queue for what clients say: the node of the comparison has none of them either.
    async with serve(
        handle, "127.0.0.1", port, process_request=check, compression=None, ping_interval=None, backlog=4096
    ):
        async for message in pubsub.listen():
            if message["type"] != "message":
                continue
            number, _, text = message["data"].decode().partition(" ")
            if number == "0":
                broadcast(clients.values(), text)
            elif connection := clients.get(int(number)):
                broadcast((connection,), text)


if __name__ == "__main__":
    uvloop.run(main())
