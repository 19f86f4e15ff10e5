"""A proxy that kills the app with SIGKILL in the middle of what it says to Redis."""

from __future__ import annotations

import os
import signal
import socket
import threading

from tests.recording import RecordingRedis
from tests.servers import RedisServer


class KillingRedis(RecordingRedis):
    """Lets so many commands through, and half of the next one; then it kills the process that sent them.

    Args:
        server: The real Redis.
        commands: How many commands arrive whole, all connections together, those that set a connection up not counted.
    """

    def __init__(self, server: RedisServer, commands: int) -> None:
        super().__init__(server)
        self._left = commands
        self._lock = threading.Lock()
        self._armed = threading.Event()
        self._victim = 0

    def arm(self, process_id: int) -> None:
        """Say whom to kill; nothing is let through before that."""
        self._victim = process_id
        self._armed.set()

    def pass_on(self, args: list[str], raw: bytes, upstream: socket.socket) -> None:
        """Let a command through, or kill."""
        self._armed.wait(10)
        with self._lock:
            if self._left > 0:
                self._left -= 1
                super().pass_on(args, raw, upstream)
                return
            upstream.sendall(raw[: len(raw) // 2])
            os.kill(self._victim, signal.SIGKILL)
        raise ConnectionError("the app is dead")
