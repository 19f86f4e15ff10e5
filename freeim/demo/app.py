"""The web app: its routes, and what lives as long as it."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import AsyncIterator, Collection
from importlib.resources import files as resources
from pathlib import Path
from typing import Any, Final

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from freeim import AsyncImHelper, FreeImError
from freeim.demo import checks, files, messages, people, rooms
from freeim.demo.web import HANDLERS, Headers, Hosts, logger

COOKIE: Final = "freeim-demo"
COOKIE_SECONDS: Final = 30 * 24 * 60 * 60

STATIC: Final = Path(str(resources("freeim.demo") / "static"))


async def index(_: Request) -> FileResponse:
    """Show the page."""
    return FileResponse(STATIC / "index.html")


ROUTES: Final = [
    Route("/", index),
    Mount("/static", StaticFiles(directory=STATIC)),
    # FreeIM's demo has these, with the same names and fields.
    Route("/ws/pre-connect", people.pre_connect, methods=["POST"]),
    Route("/ws/offline", people.offline, methods=["POST"]),
    Route("/ws/get-channels", rooms.get_channels, methods=["POST"]),
    Route("/ws/subscr-channel", rooms.subscr_channel, methods=["POST"]),
    Route("/ws/send-channelmsg", rooms.send_channelmsg, methods=["POST"]),
    Route("/ws/send-broadcast", messages.send_broadcast, methods=["POST"]),
    Route("/ws/send-msg", messages.send_msg, methods=["POST"]),
    # And these are ours.
    Route("/ws/leave-channel", rooms.leave_channel, methods=["POST"]),
    Route("/me", people.me),
    Route("/me/hello", people.hello, methods=["POST"]),
    Route("/me/name", people.rename, methods=["POST"]),
    Route("/files", files.upload, methods=["POST"]),
    Route("/files/{key}", files.download),
]


def create_app(secret: str, max_upload: int = checks.LARGEST_UPLOAD, hosts: Collection[str] | None = None) -> Starlette:
    """Make the app.

    Args:
        secret: What the cookies are signed with; the same after a restart, so that people stay who they are.
        max_upload: The largest file that is taken, in bytes.
        hosts: The names that it answers to; None for any.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[dict[str, Any]]:
        async with contextlib.AsyncExitStack() as stack:
            helper = await stack.enter_async_context(AsyncImHelper())
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="freeim-demo-")))
            room_list = rooms.Rooms(helper)
            await stack.enter_async_context(room_list.running())
            who = people.People(helper, room_list)
            await stack.enter_async_context(helper.event_bus(who.came, who.went, resync=who.start))
            try:
                await who.start()
            except FreeImError as error:  # no node yet, or no Redis; the bus calls again when Redis is back
                logger.warning("the chat waits: %s", error)
            yield {"helper": helper, "files": files.Files(folder, max_upload), "people": who, "rooms": room_list}

    middleware = [
        Middleware(Headers),
        *([Middleware(Hosts, names=hosts)] if hosts is not None else []),
        Middleware(SessionMiddleware, secret_key=secret, session_cookie=COOKIE, max_age=COOKIE_SECONDS),
    ]
    return Starlette(routes=ROUTES, middleware=middleware, exception_handlers=dict(HANDLERS), lifespan=lifespan)
