"""Messages to everybody and to one person."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse

from freeim import AsyncImHelper
from freeim.demo import checks
from freeim.demo.checks import Refused
from freeim.demo.web import done, message, person, read_json


async def send_broadcast(request: Request) -> JSONResponse:
    """Send a message to everybody who is connected."""
    body = await read_json(request)
    letter = message("everyone", person(request), body, text=checks.text(body.get("message")))
    helper: AsyncImHelper = request.state.helper
    await helper.send_broadcast_message(letter)
    return done(at=letter["at"])


async def send_msg(request: Request) -> JSONResponse:
    """Send a message to one person, with a receipt if one is asked for."""
    body = await read_json(request)
    who, to = person(request), receiver(request, body.get("receiveWebsocketId"))
    letter = message("direct", who, body, to=to, text=checks.text(body.get("message")))
    helper: AsyncImHelper = request.state.helper
    # The sender is a receiver too, for other windows of the same person: a node skips the only connection of a sender.
    await helper.send_message(who.id, [to, who.id], letter, receipt=body.get("isReceipt") is True)
    return done(at=letter["at"])


def receiver(request: Request, value: object) -> int:
    """Return the receiver of a message, who must be somebody else than its sender."""
    to = checks.client_id(value)
    if to == person(request).id:
        raise Refused(400, "client", "nobody can write to themselves")
    return to
