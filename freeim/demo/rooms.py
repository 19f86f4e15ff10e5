"""Rooms: FreeIM's channels, with their numbers of members."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse

from freeim import AsyncImHelper, FreeImError
from freeim.demo import checks
from freeim.demo.checks import Refused
from freeim.demo.web import done, logger, message, person, read_json

ROOMS_OF_ONE: Final = 30
"""How many rooms one person may be in."""
ROOMS_SHOWN: Final = 200
"""How many rooms the pages are told of, the fullest first."""
PAUSE_SECONDS: Final = 0.05
"""How long changes are gathered before the pages are told."""


class Rooms:
    """Tells the pages how many are in which room, whenever that has changed."""

    def __init__(self, helper: AsyncImHelper) -> None:
        self._helper = helper
        self._changed = asyncio.Event()

    async def counts(self) -> list[dict[str, Any]]:
        """Return the rooms and their numbers of members, the fullest first."""
        found = sorted((await self._helper.get_chan_list()).items(), key=lambda item: (-item[1], item[0]))
        return [{"channel": channel, "online": online} for channel, online in found[:ROOMS_SHOWN]]

    async def of(self, client: int) -> list[str]:
        """Return the rooms that somebody is in."""
        return await self._helper.get_chan_list_by_client_id(client)

    async def clear(self) -> None:
        """Take out the members who are not online, whom a crash may have left."""
        for channel in await self._helper.get_chan_list():
            await self._helper.clear_chan_client(channel)
        self.changed()

    def changed(self) -> None:
        """Tell the pages soon. Changes that come together are told once, so that a stampede is not a squared one."""
        self._changed.set()

    async def run(self) -> None:
        """Tell the pages of changes until cancelled."""
        while True:
            await self._changed.wait()
            await asyncio.sleep(PAUSE_SECONDS)
            self._changed.clear()
            try:
                await self._helper.send_broadcast_message({"type": "channels", "channels": await self.counts()})
            except FreeImError as error:  # the next change tells all again
                logger.warning("the numbers of members were not told: %s", error)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Tell the pages of changes while the block runs."""
        task = asyncio.create_task(self.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])


# The endpoints


async def get_channels(request: Request) -> JSONResponse:
    """List the rooms that have members."""
    await read_json(request)
    person(request)
    rooms: Rooms = request.state.rooms
    return done(channels=await rooms.counts())


async def subscr_channel(request: Request) -> JSONResponse:
    """Join a room, and tell those in it (unless the page only comes back after a drop)."""
    body = await read_json(request)
    who, channel = person(request), checks.room(body.get("channel"))
    helper: AsyncImHelper = request.state.helper
    rooms: Rooms = request.state.rooms
    # The close of the last connection ends a membership, so without a connection this one would not end.
    if not await helper.has_online(who.id):
        raise Refused(409, "not-connected", "connect first: a membership ends with the connection")
    mine = await rooms.of(who.id)
    if channel not in mine:
        if len(mine) >= ROOMS_OF_ONE:
            raise Refused(409, "too-many-rooms", f"nobody can be in more than {ROOMS_OF_ONE} rooms")
        await helper.join_chan(who.id, channel)
        rooms.changed()
        if body.get("again") is not True:
            await helper.send_chan_message(who.id, channel, message("joined", who, channel=channel))
    return done(channel=channel)


async def leave_channel(request: Request) -> JSONResponse:
    """Leave a room, and tell those who stay."""
    body = await read_json(request)
    who, channel = person(request), checks.room(body.get("channel"))
    helper: AsyncImHelper = request.state.helper
    rooms: Rooms = request.state.rooms
    if channel in await rooms.of(who.id):
        await helper.leave_chan(who.id, channel)
        rooms.changed()
        await helper.send_chan_message(who.id, channel, message("left", who, channel=channel))
    return done(channel=channel)


async def send_channelmsg(request: Request) -> JSONResponse:
    """Send a message to a room that the sender is in."""
    body = await read_json(request)
    who, channel = person(request), checks.room(body.get("channel"))
    letter = message("room", who, body, channel=channel, text=checks.text(body.get("message")))
    helper: AsyncImHelper = request.state.helper
    rooms: Rooms = request.state.rooms
    if channel not in await rooms.of(who.id):
        raise Refused(403, "not-in-room", "join the room first")
    await helper.send_chan_message(who.id, channel, letter)
    return done(at=letter["at"])
