"""Runs the node, as a process, and the app, in this one, until a signal or until one of them ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Iterator
from typing import Final, Literal

import uvicorn
from starlette.applications import Starlette

from freeim import worker
from freeim.config import Options
from freeim.demo.options import fail
from freeim.demo.secret import VARIABLE
from freeim.exits import Exit

STOP_SECONDS: Final = 20.0
"""How long the node may take to stop."""
GRACE_SECONDS: Final = 3
"""How long a request that is being answered may take once the app is to stop."""

ANNOUNCEMENT: Final = "The chat is at {page}\nOpen it in two windows, one of them private, so that you are two people."


class AppServer(uvicorn.Server):
    """uvicorn without its own handling of signals, which here are for the node too; it tells when it serves."""

    def __init__(self, config: uvicorn.Config, announcement: str) -> None:
        super().__init__(config)
        self._announcement = announcement

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and say so."""
        await super().startup(sockets)
        if self.started:
            print(self._announcement, flush=True)


async def run(listener: socket.socket, page: str, app: Starlette, node: Options | None) -> int:
    """Run the demo and return its exit code.

    Args:
        listener: The socket of the app.
        page: What to open in a browser.
        app: The app.
        node: The options of the node, or None where one runs already.
    """
    told = _watch_signals()
    stop = asyncio.create_task(told.wait())
    child = await _start_node(node) if node is not None else None
    try:
        if child is not None and not await _until_it_serves(child, stop):
            return Exit.STOPPED if stop.done() else await _ended(child)
        config = uvicorn.Config(
            app,
            log_level="warning",
            ws="none",
            server_header=False,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
        what = "the app and the node" if child is not None else "the app"
        server = AppServer(config, f"{ANNOUNCEMENT.format(page=page)} Ctrl-C ends {what}.")
        serving = asyncio.create_task(server.serve([listener]))
        ended = [asyncio.create_task(child.wait())] if child is not None else []
        await asyncio.wait([serving, stop, *ended], return_when=asyncio.FIRST_COMPLETED)
        server.should_exit = True
        await serving
        if child is not None and child.returncode is not None and not stop.done():
            return await _ended(child)
        return Exit.STOPPED if server.started else fail("the app did not start; its log is above", Exit.DEFECT)
    finally:
        if child is not None:
            await _stop(child)


async def _start_node(options: Options) -> asyncio.subprocess.Process:
    # A worker stops by itself when its standard input ends, so it never outlives us, however we end. The secret is none
    # of its business. A session of its own: a Ctrl-C of the terminal is for us, and the node ends after the app.
    environ = {name: value for name, value in os.environ.items() if name != VARIABLE}
    return await worker.start(options, environ, start_new_session=True)


async def _until_it_serves(child: asyncio.subprocess.Process, stop: asyncio.Task[Literal[True]]) -> bool:
    """Wait for the node's banner: only then has it a Redis, and has told Redis where it is."""
    assert child.stdout is not None
    banner = asyncio.create_task(child.stdout.readline())
    await asyncio.wait([banner, stop], return_when=asyncio.FIRST_COMPLETED)
    if not banner.done() or not banner.result():
        return False
    print(worker.unpack_banner(banner.result()), flush=True)
    return True


async def _stop(child: asyncio.subprocess.Process) -> None:
    """End the node, and do not wait for ever."""
    if child.returncode is None:
        child.terminate()
        try:
            await asyncio.wait_for(child.wait(), STOP_SECONDS)
        except TimeoutError:
            child.kill()
            await child.wait()


async def _ended(child: asyncio.subprocess.Process) -> int:
    code = await child.wait()
    how = f"with exit code {code}" if code >= 0 else f"by {signal.Signals(-code).name}"
    return fail(f"the node ended {how}; its log is above", code if code > 0 else Exit.DEFECT)


def _watch_signals() -> asyncio.Event:
    """Return an event that is set by Ctrl-C, SIGTERM, and the end of the terminal. A second Ctrl-C ends at once."""
    loop = asyncio.get_running_loop()
    told = asyncio.Event()

    def interrupt() -> None:
        if told.is_set():
            os._exit(Exit.INTERRUPTED)  # the node sees it, and stops
        told.set()
        print("Stopping; Ctrl-C once more to stop at once.", file=sys.stderr, flush=True)

    loop.add_signal_handler(signal.SIGINT, interrupt)
    for number in (signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, told.set)
    return told
