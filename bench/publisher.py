"""What is published, made beforehand; and a connection to Redis that does nothing but publish it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

import redis

from freeim import envelope
from freeim.names import Names

CHUNK = 65536
"""Bytes that are written at once; Redis and the node may begin while the next are on their way."""


def text(stream: int, sequence: int, size: int, to: int = 0, at: int | None = None) -> str:
    """Return a message as the load generator verifies it (verify.h): JSON text of `size` bytes."""
    head = f'"{stream} {sequence} {time.monotonic_ns() if at is None else at} {to} '
    if len(head) + 1 > size:
        raise ValueError(f"messages of {size} bytes are too small: the numbers in them take {len(head) + 1}")
    return head + "x" * (size - len(head) - 1) + '"'


class Publisher:
    """Publishes to one node.

    Args:
        url: Redis.
        names: The names of this run.
        node: The node's name.
    """

    def __init__(self, url: str, names: Names, node: str) -> None:
        self._client = redis.Redis.from_url(url, protocol=2)
        self._connection: Any = self._client.connection_pool.get_connection()
        self._channel = names.server(node)

    def to_channel(self, channel: str, message: str) -> bytes:
        """Return the command that sends a message to the members of a channel."""
        return self.pack(envelope.channel(0, channel, message))

    def to_clients(self, clients: Sequence[int], message: str) -> bytes:
        """Return the command that sends a message to clients."""
        return self.pack(envelope.direct(0, clients, envelope.direct_tail(message, False)))

    def pack(self, payload: bytes) -> bytes:
        """Return the command that publishes this."""
        return b"".join(self._connection.pack_command("PUBLISH", self._channel, payload))

    def send(self, commands: Iterable[bytes]) -> None:
        """Send commands one after another without waiting, then read all replies."""
        waiting, size, count = [], 0, 0
        for command in commands:
            waiting.append(command)
            size += len(command)
            count += 1
            if size >= CHUNK:
                self._connection.send_packed_command([b"".join(waiting)])
                waiting, size = [], 0
        if waiting:
            self._connection.send_packed_command([b"".join(waiting)])
        for _ in range(count):
            if self._connection.read_response() != 1:
                raise RuntimeError("a message was published that no node heard")

    def close(self) -> None:
        """Close the connection."""
        self._connection.disconnect()
        self._client.close()
