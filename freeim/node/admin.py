"""What is served to operators, on a listening socket of its own: ``GET /metrics``, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable
from typing import Final

from freeim.node.http import Refusal, Request, parse_head, response

log = logging.getLogger("freeim")

MAX_CONNECTIONS: Final = 8
"""Those that are open at the same time; a scrape takes milliseconds."""
MAX_HEAD: Final = 8192
"""Bytes of a request head."""
ANSWER_SECONDS: Final = 5.0
"""How long a connection may last."""


class Admin:
    """Answers scrapes in the node's loop: the counters are read by the thread that writes them.

    Args:
        sock: The listening socket; it is closed with this.
        metrics: Gets the Accept header, and returns the page and its content type.
    """

    def __init__(self, sock: socket.socket, metrics: Callable[[str], tuple[bytes, str]]) -> None:
        self.sock = sock
        self._metrics = metrics
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Begin to answer."""
        self._server = await asyncio.start_server(self._connected, sock=self.sock, limit=MAX_HEAD)

    def retire(self) -> None:
        """Accept no more; another process does, on the same socket. Who has come is answered."""
        if self._server is not None:
            self._server.close()
        self.sock.close()

    async def settled(self) -> None:
        """Wait until everybody who has come has got an answer."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def close(self) -> None:
        """Stop answering, and cut who is still connected."""
        if self._server is not None:
            self._server.close()
        self.sock.close()
        for task in self._tasks:
            task.cancel()

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._tasks) >= MAX_CONNECTIONS:
            writer.transport.abort()
            return
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                    writer.write(await self._answer(reader))
                    writer.close()
                    await writer.wait_closed()
        except TimeoutError:
            pass
        finally:
            writer.transport.abort()  # nothing more where it was closed in peace

    async def _answer(self, reader: asyncio.StreamReader) -> bytes:
        try:
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except asyncio.LimitOverrunError:
                raise Refusal(431, f"the request head is longer than {MAX_HEAD} bytes") from None
            request = parse_head(head[:-4])
            if request.path != "/metrics":
                raise Refusal(404, "only /metrics is served here")
            if request.method not in ("GET", "HEAD"):
                raise Refusal(405, "only GET is served here", "Allow: GET, HEAD")
            return self._page(request)
        except Refusal as refusal:
            return response(refusal.status, refusal.reason, *refusal.headers)

    def _page(self, request: Request) -> bytes:
        try:
            page, content_type = self._metrics(request.headers.get("accept", ""))
        except Exception:
            log.exception("internal error: the metrics could not be read")
            raise Refusal(500, "the metrics could not be read; the log says why") from None
        return response(200, page, head_only=request.method == "HEAD", content_type=content_type)
