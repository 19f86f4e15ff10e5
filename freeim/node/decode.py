"""The tolerant decoder: payloads that are valid but not written as FreeIM's helper writes them.

FreeIM reads with Newtonsoft.Json: names in any case and any order, unknown ones skipped, missing ones null or 0, ids as
numbers or as text. The usual form never comes here (see _core_decode.pxi).
"""

from __future__ import annotations

import json
from typing import Any

from freeim._core import Message
from freeim.envelope import CHAN_MESSAGE_HEAD, FORCE_OFFLINE_HEAD
from freeim.names import ClientId, IdKind, check_client_id, system_id

_CHAN_HEAD = CHAN_MESSAGE_HEAD.encode()
_FORCE_HEAD = FORCE_OFFLINE_HEAD.encode()


class BadPayload(ValueError):
    """A payload that is no message; the text says why, without its content."""


def decode_tolerantly(payload: bytes, ids: IdKind) -> Message:
    """Decode a payload in the forms that JSON writers other than FreeIM's and ours may give it.

    Args:
        payload: What was published on the node's channel.
        ids: The kind of client id.

    Raises:
        BadPayload: It is no message.
    """
    if payload.startswith(_FORCE_HEAD):
        return Message.force_offline(_encode(_read_id(_utf8(payload[len(_FORCE_HEAD) :]).strip(), ids)))
    if payload.startswith(_CHAN_HEAD):
        items = _read_items(payload[len(_CHAN_HEAD) :])
        channel = _read_text(items, "item2")
        return Message.channel_message(_encode(_read_sender(items, ids)), channel, _read_text(items, "item3"))
    items = _read_items(payload)
    receivers = items.get("item2")
    if not isinstance(receivers, list):
        raise BadPayload("its Item2 is no list of receivers")
    return Message.direct(
        _encode(_read_sender(items, ids)),
        [_encode(_read_id(receiver, ids)) for receiver in receivers],
        _read_text(items, "item3"),
        _read_bool(items.get("item4")),
    )


def decode_token(value: bytes, ids: IdKind) -> tuple[str, ClientId]:
    """Return a token's JSON as text, and whom it authorises.

    Raises:
        BadPayload: It is no token of this kind of id.
    """
    text = _utf8(value)
    return text, _read_id(_read_items(value).get("item1"), ids)


def _utf8(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise BadPayload("it is not UTF-8") from None


def _read_items(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(_utf8(data))
    except (ValueError, RecursionError) as error:
        if isinstance(error, BadPayload):
            raise
        raise BadPayload("it is not JSON") from None
    if not isinstance(value, dict):
        raise BadPayload("it is no JSON object")
    return {name.lower(): item for name, item in value.items()}


def _read_sender(items: dict[str, Any], ids: IdKind) -> ClientId:
    sender = items.get("item1")
    return system_id(ids) if sender is None else _read_id(sender, ids)


def _read_id(value: object, ids: IdKind) -> ClientId:
    try:
        if ids == "int" and isinstance(value, str):
            # int() also takes underscores and other scripts' digits; .NET does not.
            if not (value.removeprefix("-").isascii() and value.removeprefix("-").isdigit()):
                raise ValueError
            value = int(value)
        return check_client_id(value, ids)
    except (TypeError, ValueError):
        raise BadPayload(f"it holds something that is no client id of the kind '{ids}'") from None


def _encode(client_id: ClientId) -> bytes:
    return str(client_id).encode()


def _read_text(items: dict[str, Any], name: str) -> bytes | None:
    value = items.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        raise BadPayload(f"its {name.capitalize()} is no text")
    # Half a surrogate pair cannot be UTF-8; U+FFFD takes its place, as in .NET.
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


def _read_bool(value: object) -> bool:
    if value is None or isinstance(value, bool):
        return bool(value)
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    raise BadPayload("its Item4 is neither true nor false")
