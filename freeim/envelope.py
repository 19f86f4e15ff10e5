"""What is published: the payloads and the JSON in them, byte for byte as FreeIM writes them; pure functions.

FreeIM serialises with Newtonsoft.Json, whose strings are those of `json` with ``ensure_ascii=False``, and U+0085,
U+2028 and U+2029 escaped. A message is JSON inside of JSON: its text is carried as the JSON string ``Item3``, and that
text is what the terminal receives.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from json.encoder import encode_basestring
from typing import Any, Final, cast

from freeim.errors import NotSerializable
from freeim.names import ClientId

CHAN_MESSAGE_HEAD: Final = "__FreeIM__(ChanMessage)"
"""Opens the payload of a channel message or a broadcast."""
FORCE_OFFLINE_HEAD: Final = "__FreeIM__(ForceOffline)"
"""Opens the payload that closes all connections of a client; the client id follows."""
PROBE_HEAD: Final = "__FreeIM__(Probe)"
"""Opens what a node publishes to itself to see that its bus is alive; a number follows."""
HANDOVER_HEAD: Final = "__FreeIM__(Handover)"
"""Opens what is published when a node's name passes to another instance, whose epoch follows."""
GONE_HEAD: Final = "__FreeIM__(Gone)"
"""Opens what an instance that drains publishes: the epoch of the one that has the name now, and the ids of clients
whose last connection has closed, with a space before each."""

STREAM_HEAD: Final = "__FreeIM__(Stream)"
"""Opens what a node hears of a message in its stream: the id there, the running number and the payload follow."""

RECEIPT_DELIVERED: Final = "发送成功"
RECEIPT_OFFLINE: Final = "用户不在线"

_NEWTONSOFT_ESCAPES: Final = {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}
_SURROGATE: Final = re.compile("[\ud800-\udfff]")

_encode_json: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


class Raw:
    """A message that is JSON text already; it is sent as it is, without a look at it.

    Args:
        text: The JSON text, e.g. ``'{"a":1}'``; it becomes the text frame that terminals receive.

    Raises:
        TypeError: The text is no str.
    """

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        if not isinstance(text, str):
            raise TypeError(f"Raw takes JSON text as a str, not {type(text).__name__}")
        self.text = text

    def __repr__(self) -> str:
        return f"Raw({self.text!r})"


def _escape(text: str) -> str:
    """Escape in JSON text what Newtonsoft escapes and `json` does not; only strings can hold such characters."""
    if "\x85" in text or "\u2028" in text or "\u2029" in text:
        return text.translate(_NEWTONSOFT_ESCAPES)
    return text


def json_string(text: str) -> str:
    """Return text as a JSON string, quotes included."""
    encoded = encode_basestring(text)
    return encoded if encoded.isascii() else _escape(encoded)


def utf8(text: str) -> bytes:
    """Encode JSON text. A lone surrogate, which UTF-8 cannot carry, becomes its JSON escape."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return _SURROGATE.sub(lambda match: f"\\u{ord(match[0]):04x}", text).encode()


def message_json(message: object, dumps: Callable[[Any], str | bytes] | None = None) -> str:
    """Return the JSON text of a message, which is what terminals receive.

    Args:
        message: A `Raw`, or whatever `dumps` takes.
        dumps: Turns the message into JSON text (bytes are read as UTF-8); by default `json` with FreeIM's escapes.

    Raises:
        NotSerializable: `dumps` cannot, or the message holds a NaN or an infinite number.
    """
    if isinstance(message, Raw):
        text: object = message.text
    else:
        try:
            if dumps is None:
                text = _encode_json(message)
                if not text.isascii():
                    text = _escape(text)
            else:
                text = dumps(message)
                if isinstance(text, (bytes, bytearray)):
                    text = text.decode()
        except Exception as error:
            raise NotSerializable(f"a message of type {type(message).__name__} is no JSON: {error}") from error
        if not isinstance(text, str):
            raise NotSerializable(f"json_dumps must return a str or bytes, not {type(text).__name__}")
    assert isinstance(text, str)
    if not text.isascii() and _SURROGATE.search(text):
        # As its JSON escape the surrogate survives both levels of JSON and the UTF-8 between them.
        text = _SURROGATE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
    return text


def id_json(client_id: ClientId) -> str:
    """Return a client id as JSON: a number, or a quoted GUID."""
    return str(client_id) if isinstance(client_id, int) else f'"{client_id}"'


def ids_json(client_ids: Sequence[ClientId]) -> str:
    """Return client ids as JSON values with commas between them, without the brackets."""
    if client_ids and isinstance(client_ids[0], str):
        return '"' + '","'.join(cast("Sequence[str]", client_ids)) + '"'
    # One format for all of them: half the time of str() on each, and messages to thousands are common.
    return (("%d," * len(client_ids)) % tuple(client_ids))[:-1]


def token_value(client_id: ClientId, metadata: str | None) -> bytes:
    """Return what a connection token stands for: who connects, and the text that events carry."""
    text = "null" if metadata is None else json_string(metadata)
    return utf8(f'{{"Item1":{id_json(client_id)},"Item2":{text}}}')


def direct_tail(message: str, receipt: bool) -> bytes:
    """Return the end of a direct message's payload, the same for every node: all that follows the receivers.

    Args:
        message: The JSON text of the message.
        receipt: Whether the sender wants to be told what became of it.
    """
    return utf8('],"Item3":' + json_string(message) + (',"Item4":true}' if receipt else ',"Item4":false}'))


def direct(sender: ClientId, receivers: Sequence[ClientId], tail: bytes) -> bytes:
    """Return the payload of a direct message to one node.

    Args:
        sender: Who sends; the system's id for nobody.
        receivers: Clients of that node, without duplicates.
        tail: What `direct_tail` made of the message.
    """
    return f'{{"Item1":{id_json(sender)},"Item2":[{ids_json(receivers)}'.encode() + tail


def channel(sender: ClientId, channel_name: str | None, message: str) -> bytes:
    """Return the payload of a channel message; None for the channel makes it a broadcast to every client.

    Args:
        sender: Who sends; the system's id for nobody.
        channel_name: The channel.
        message: The JSON text of the message.
    """
    name = "null" if channel_name is None else json_string(channel_name)
    return utf8(f'{CHAN_MESSAGE_HEAD}{{"Item1":{id_json(sender)},"Item2":{name},"Item3":{json_string(message)}}}')


def force_offline(client_id: ClientId) -> bytes:
    """Return the payload that closes all connections of a client."""
    return f"{FORCE_OFFLINE_HEAD}{client_id}".encode()


def receipt_text(message: str, delivered: bool) -> str:
    """Return the JSON text of the receipt for a message: itself a message, from the receiver to the sender.

    Args:
        message: The JSON text of the message that the receipt is for.
        delivered: Whether the receiver had a connection.
    """
    outcome = RECEIPT_DELIVERED if delivered else RECEIPT_OFFLINE
    return f'{{"content":{json_string(message)},"receipt":"{outcome}"}}'
