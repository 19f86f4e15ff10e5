"""A terminal for the command line: prints what a client receives, and connects again by itself."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Sequence
from typing import Final

from picows import WSError, WSFrame, WSInvalidStatusError, WSListener, WSMsgType, WSTransport, ws_connect

from freeim.commands import AnyId
from freeim.errors import CloseCode, FreeImError
from freeim.helper_async import AsyncImHelper
from freeim.printable import printable
from freeim.refused import why_refused

FIRST_PAUSE: Final = 0.5
LONGEST_PAUSE: Final = 5.0
"""Seconds between two attempts to connect: at most double the last pause, some at random, up to the longest."""

MAX_MESSAGE: Final = 2**30


class _Printer(WSListener):
    """Prints text messages, and remembers how the connection ended."""

    def __init__(self) -> None:
        super().__init__()
        self.code = 0
        self.reason = "no Close frame"
        self.unread = False
        """Whoever read the output has gone."""

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.TEXT:
            try:
                print(frame.get_payload_as_utf8_text(), flush=True)
            except BrokenPipeError:
                self.unread = True
                transport.disconnect()
        elif frame.msg_type == WSMsgType.CLOSE:
            self.code = frame.get_close_code().value
            self.reason = (frame.get_close_message() or b"").decode("utf-8", "replace")
            transport.send_close(frame.get_close_code())
            transport.disconnect()


async def listen(helper: AsyncImHelper, client: AnyId, channels: Sequence[str]) -> None:
    """Connect and print until the client is forced offline, or replaced by a newer login.

    Args:
        helper: What authorises the client. It is closed at the end.
        client: The client id.
        channels: Channels to join, after each connect: a membership ends with the last connection.

    Raises:
        FreeImError, ValueError, TypeError: The very first attempt failed.
        BrokenPipeError: Nobody reads what is printed.
    """
    async with helper:
        pause = FIRST_PAUSE
        first = True
        problem = ""
        while True:
            printer = None
            try:
                printer = await _connect(helper, client, channels)
                first, pause, problem = False, FIRST_PAUSE, ""
                if printer.code == CloseCode.GOING_AWAY and printer.reason == "disconnect":
                    _say("forced offline")
                    return
                if printer.code == CloseCode.REPLACED:  # to come back would throw the newer one out
                    _say("replaced by a newer login")
                    return
                _say(f"the connection ended with {printer.code or 'no code'} ({printer.reason}); connecting again")
            except (OSError, WSError, FreeImError) as error:
                if first and isinstance(error, FreeImError):
                    raise
                why = why_refused(error) if isinstance(error, WSInvalidStatusError) else str(error)
                if why != problem:  # said once, however long it lasts
                    problem = why
                    _say(f"not connected: {why}; trying again")
            if printer is not None and printer.unread:
                raise BrokenPipeError
            await asyncio.sleep(random.uniform(pause / 2, pause))
            pause = min(LONGEST_PAUSE, 2 * pause)


async def _connect(helper: AsyncImHelper, client: AnyId, channels: Sequence[str]) -> _Printer:
    """Connect once, and return when the connection has ended."""
    url = await helper.prev_connect_server(client, "python -m freeim listen")
    transport, printer = await ws_connect(_Printer, url, max_frame_size=MAX_MESSAGE)
    try:
        if channels:
            await helper.join_chan(client, *channels)
        where = f", in {', '.join(channels)}" if channels else ""
        _say(f"connected as {client} to {url.partition('?')[0]}{where}")
        await transport.wait_disconnected()
    finally:
        transport.disconnect()
    assert isinstance(printer, _Printer)
    return printer


def _say(text: str) -> None:
    """Tell what happens, apart from what arrives. Some of it is the other side's words."""
    print(f"* {printable(text)}", file=sys.stderr, flush=True)
