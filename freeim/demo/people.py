"""Who is online, and what they are called."""

from __future__ import annotations

import json
import secrets
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse

from freeim import AsyncImHelper, Event
from freeim.demo import checks
from freeim.demo.rooms import Rooms
from freeim.demo.web import Person, done, known, person, read_json


class People:
    """The names of those who are online, and the news of who comes and goes.

    Who is online is known to Redis. Names are not: each is in the signed cookie of its browser, and in the metadata of
    its connection, with which the Online event tells it to an app that runs at that moment. An app that has just been
    started (or lost Redis for a while) knows no names, so it broadcasts ``who``, and every page introduces itself again
    (`hello`) with its cookie, which the app itself has signed. So there is nothing to store.

    With several processes of this app each would hear each event and broadcast it, and a `hello` would tell the name to
    one of them only. The pages take the repetition; for a demo that is enough.
    """

    def __init__(self, helper: AsyncImHelper, rooms: Rooms) -> None:
        self._helper = helper
        self._rooms = rooms
        self._names: dict[int, str] = {}

    async def start(self) -> None:
        """Take over those who are online already; also after a time in which events may have been missed."""
        online = set(await self._helper.get_client_list_by_online())
        self._names = {each: name for each, name in self._names.items() if each in online}
        await self._rooms.clear()
        await self._helper.send_broadcast_message({"type": "who"})

    async def came(self, event: Event) -> None:
        """Tell everybody about a client's first connection."""
        if event.connections in (None, 1):
            name = self._names[int(event.client_id)] = _name_in(event.metadata)
            await self._helper.send_broadcast_message({"type": "online", "id": event.client_id, "name": name})

    async def went(self, event: Event) -> None:
        """Tell everybody about the end of a client's last connection, which was the end of its memberships too."""
        if event.connections is None and await self._helper.has_online(event.client_id):
            return  # of a .NET node, which does not count
        if not event.connections:
            name = self._names.pop(int(event.client_id), None) or _name_in(event.metadata)
            await self._helper.send_broadcast_message({"type": "offline", "id": event.client_id, "name": name})
            self._rooms.changed()

    async def introduce(self, who: Person) -> list[dict[str, Any]]:
        """Learn somebody's name, tell it to all if it is new, and return everybody who is online."""
        online = [int(each) for each in await self._helper.get_client_list_by_online()]
        if who.id in online and self._names.get(who.id) != who.name:
            self._names[who.id] = who.name
            await self._helper.send_broadcast_message({"type": "name", "id": who.id, "name": who.name})
        return [{"id": each, "name": self._names.get(each)} for each in online]


def _name_in(metadata: str | None) -> str:
    try:
        return checks.name(json.loads(metadata or "")["name"])
    except (ValueError, TypeError, KeyError, checks.Refused):
        return "?"  # somebody who was not authorised by this app


# The endpoints


async def me(request: Request) -> JSONResponse:
    """Tell a page who it is, and how much it may send."""
    who = known(request)
    limits = {
        "name": checks.NAME_LENGTH,
        "room": checks.ROOM_LENGTH,
        "text": checks.TEXT_LENGTH,
        "upload": request.state.files.largest,
    }
    return done(me=who and {"id": who.id, "name": who.name}, limits=limits)


async def pre_connect(request: Request) -> JSONResponse:
    """Authorise one connection, under the identity of the cookie or a new one; may set the nickname."""
    body = await read_json(request)
    who = known(request)
    if who is None or body.get("name") is not None:
        who = Person(who.id if who else secrets.randbelow(checks.LARGEST_ID) + 1, checks.name(body.get("name")))
    request.session.update(id=who.id, name=who.name)  # the cookie lives on from now
    helper: AsyncImHelper = request.state.helper
    server = await helper.prev_connect_server(who.id, json.dumps({"name": who.name}))
    return done(server=server, websocketId=who.id, name=who.name)


async def hello(request: Request) -> JSONResponse:
    """Take the introduction of a page that is connected, and tell it all that it cannot have heard."""
    await read_json(request)
    who = person(request)
    people: People = request.state.people
    rooms: Rooms = request.state.rooms
    return done(people=await people.introduce(who), channels=await rooms.counts(), joined=await rooms.of(who.id))


async def rename(request: Request) -> JSONResponse:
    """Change the nickname."""
    name = checks.name((await read_json(request)).get("name"))
    who = Person(person(request).id, name)
    request.session.update(name=name)
    people: People = request.state.people
    await people.introduce(who)
    return done(name=name)


async def offline(request: Request) -> JSONResponse:
    """Close all connections of the one who asks; FreeIM's demo lets anybody name anybody."""
    await read_json(request)
    helper: AsyncImHelper = request.state.helper
    await helper.force_offline(person(request).id)
    return done()
