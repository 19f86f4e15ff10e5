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

from freeim.demo.app import create_app
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


async def run(listener: socket.socket, page: str, secret: str, max_upload: int, node: list[str] | None) -> int:
    """Run the demo and return its exit code.

    Args:
        listener: The socket of the app.
        page: What to open in a browser.
        secret: What the cookies are signed with.
        max_upload: The largest file that is taken, in bytes.
        node: The command line of freeim-server, or None where a node runs already.
    """
    told = _watch_signals()
    stop = asyncio.create_task(told.wait())
    child = await _start_node(node) if node is not None else None
    try:
        if child is not None and not await _until_it_serves(child, stop):
            return Exit.STOPPED if stop.done() else await _ended(child)
        config = uvicorn.Config(
            create_app(secret, max_upload),
            log_level="warning",
            ws="none",
            server_header=False,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
        what = "the app and the node" if child is not None else "the app"
        app = AppServer(config, f"{ANNOUNCEMENT.format(page=page)} Ctrl-C ends {what}.")
        serving = asyncio.create_task(app.serve([listener]))
        ended = [asyncio.create_task(child.wait())] if child is not None else []
        await asyncio.wait([serving, stop, *ended], return_when=asyncio.FIRST_COMPLETED)
        app.should_exit = True
        await serving
        if child is not None and child.returncode is not None and not stop.done():
            return await _ended(child)
        return Exit.STOPPED if app.started else _fail("the app did not start; its log is above")
    finally:
        if child is not None:
            await _stop(child)


async def _start_node(arguments: list[str]) -> asyncio.subprocess.Process:
    # -P: freeim, and not a folder of that name where we happen to be. A session of its own: a Ctrl-C of the terminal is
    # for us, and the node ends after the app.
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "freeim.cli", *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        env={name: value for name, value in os.environ.items() if name != VARIABLE},  # none of its business, or options
        start_new_session=True,
    )


async def _until_it_serves(child: asyncio.subprocess.Process, stop: asyncio.Task[Literal[True]]) -> bool:
    """Wait for the node's banner: only then has it a Redis, and has told Redis where it is."""
    assert child.stdout is not None
    banner = asyncio.create_task(child.stdout.read(65536))  # written at once
    await asyncio.wait([banner, stop], return_when=asyncio.FIRST_COMPLETED)
    if not banner.done() or not banner.result():
        return False
    print(banner.result().decode().rstrip(), flush=True)
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
    _fail(f"the node (freeim-server) ended {how}; its log is above")
    return code if code > 0 else Exit.DEFECT


def _fail(sentence: str) -> int:
    print(f"python -m freeim.demo: {sentence}", file=sys.stderr, flush=True)
    return Exit.DEFECT


def _watch_signals() -> asyncio.Event:
    """Return an event that is set by Ctrl-C, SIGTERM, and the end of the terminal."""
    loop = asyncio.get_running_loop()
    told = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, told.set)
    return told
