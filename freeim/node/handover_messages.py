"""What two instances of a node say to each other over the socket of ``--handover``: JSON, one object a line; no I/O.

```
successor                                       predecessor
  Ask     who I am, and what I would serve  ──►
          ◄──  Offer, with the listening sockets; or Refused
          ◄──  Clients, of each client that is connected; then Complete
  (takes the name)
  Serving  I accept connections             ──►
  Clients  whose connections change         ◄─►
          ◄──  Left, before a client's last connection gets its Close frame (with --bus stream)
          ◄──  Done, behind the last connection
```

The end of the connection before `Serving` means that all stays as it was; after it, that the other one is dead.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from typing import Any, Final

VERSION: Final = 1
"""Of this protocol. It is said with `Ask`, `Offer` and `Refused`; the last must never change its form."""

MAX_LINE: Final = 2**20
"""Bytes of a line."""

CLIENTS_PER_LINE: Final = 1000
"""Clients of one message: half a millisecond's work."""


class BadMessage(ValueError):
    """A line that is none of these messages; the text says why."""


@dataclass(frozen=True, slots=True)
class Ask:
    """Asks for the listening sockets.

    Attributes:
        epoch: The successor's epoch.
        pid: Its process id.
        release: Its version of freeim.
        node: Its name.
        bind: The address that it would listen on.
        prefix: The beginning of its keys in Redis.
        path: The path of its endpoint.
        ids: Its kind of client id.
        nodes: The list of nodes that it was given; empty for none.
        version: Of the protocol.
    """

    epoch: str
    pid: int
    release: str
    node: str
    bind: str
    prefix: str
    path: str
    ids: str
    nodes: tuple[str, ...]
    version: int = VERSION


@dataclass(frozen=True, slots=True)
class Offer:
    """Comes with the listening socket, and that of the metrics where there is one.

    Attributes:
        epoch: The predecessor's epoch.
        pid: Its process id.
        admin: The address of its metrics; "" where it has none.
        version: Of the protocol.
    """

    epoch: str
    pid: int
    admin: str
    version: int = VERSION


@dataclass(frozen=True, slots=True)
class Refused:
    """There will be no hand-over; the reason is a sentence for people."""

    reason: str
    version: int = VERSION


@dataclass(frozen=True, slots=True)
class Clients:
    """How many connections some clients have at the sender from now on; 0 where the last one has closed."""

    counts: dict[str, int]


@dataclass(frozen=True, slots=True)
class Left:
    """Clients whose last connection at the sender begins to close.

    Attributes:
        places: Of each the id of the last message of the node's stream that it was given.
    """

    places: dict[str, str]


@dataclass(frozen=True, slots=True)
class Complete:
    """All clients have been told."""


@dataclass(frozen=True, slots=True)
class Serving:
    """The successor has the name, and accepts connections."""


@dataclass(frozen=True, slots=True)
class Done:
    """The predecessor has closed its last connection, and ends."""


Message = Ask | Offer | Refused | Clients | Left | Complete | Serving | Done

_KINDS: Final[dict[str, type[Any]]] = {
    kind.__name__.lower(): kind for kind in (Ask, Offer, Refused, Clients, Left, Complete, Serving, Done)
}
_EPOCH: Final = re.compile("[0-9a-f]{1,64}")
_PLACE: Final = re.compile("[0-9]{1,20}-[0-9]{1,20}")
_INT_MAX: Final = 2**31 - 1


def encode(message: Message) -> bytes:
    """Return a message as a line."""
    return json.dumps({"type": type(message).__name__.lower(), **asdict(message)}).encode() + b"\n"


def decode(line: bytes) -> Message:
    """Read a line, its end included or not.

    Raises:
        BadMessage: It is no message of this version.
    """
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        raise BadMessage("a line is not JSON") from None
    if not isinstance(value, dict):
        raise BadMessage("a line is no JSON object")
    kind = _KINDS.get(value.pop("type", None)) if isinstance(value.get("type"), str) else None
    version = value.get("version", VERSION)
    if kind is not Refused and version != VERSION:
        raise BadMessage(f"it speaks version {version!r} of the hand-over, and this is version {VERSION}")
    if kind is None:
        raise BadMessage("a line is of an unknown type")
    fields = kind.__annotations__
    if kind is Refused:
        value = {"reason": value.get("reason"), "version": VERSION}
    if value.keys() | {"version"} != fields.keys() | {"version"}:
        raise BadMessage(f"a message of the type {kind.__name__.lower()} has not the right fields")
    for name, annotation in fields.items():
        if name in value:
            value[name] = _check(f"{kind.__name__.lower()}.{name}", annotation, value[name])
    return kind(**value)  # type: ignore[no-any-return]


def _check(name: str, annotation: str, value: object) -> object:
    if annotation == "str" and isinstance(value, str):
        # An epoch becomes a part of the names of keys.
        if name.endswith(".epoch") and not _EPOCH.fullmatch(value):
            raise BadMessage(f"{name} is no epoch")
        return value
    if annotation == "int" and _is_count(value):
        return value
    if annotation == "tuple[str, ...]" and isinstance(value, list) and all(isinstance(each, str) for each in value):
        return tuple(value)
    if annotation == "dict[str, int]" and isinstance(value, dict) and all(_is_count(each) for each in value.values()):
        return value
    if annotation == "dict[str, str]" and isinstance(value, dict) and all(map(_is_place, value.values())):
        return value
    raise BadMessage(f"{name} is not what it must be")


def _is_place(value: object) -> bool:
    return isinstance(value, str) and _PLACE.fullmatch(value) is not None


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= _INT_MAX


class Lines:
    """Cuts what comes into lines."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Message]:
        """Take bytes, and return the messages that are complete.

        Raises:
            BadMessage: See `decode`; or a line is longer than `MAX_LINE`.
        """
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_LINE:
            raise BadMessage(f"a line is longer than {MAX_LINE} bytes")
        return [decode(line) for line in lines]
