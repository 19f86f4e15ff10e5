"""How messages reach the nodes: by pub/sub alone, or through a stream for each node as well; no I/O.

All nodes and helpers of a deployment must do it the same way, so the nodes register it in Redis (`Names.bus`).
"""

from __future__ import annotations

import re
from functools import cache
from typing import Final, Literal

from freeim.errors import FreeImError
from freeim.names import Names
from freeim.scripts import load_script

BusMode = Literal["pubsub", "stream"]

STREAM_LENGTH: Final = 100_000
"""Messages that a node's stream keeps at least, unless an option says otherwise."""

_REGISTERED: Final = re.compile(r"stream ([1-9][0-9]{0,9})")

PublishHead = tuple[str | bytes | int, ...]
"""A command that publishes to a node, but for its last argument, which is the payload."""


def bus_text(length: int | None) -> str:
    """Return what nodes register: the empty text for pub/sub, which is not registered.

    Args:
        length: Messages that each node's stream keeps at least; None for pub/sub.
    """
    return "" if length is None else f"stream {length}"


def read_bus(names: Names, raw: bytes | str | None) -> int | None:
    """Read what nodes registered; return it as `bus_text` takes it.

    Raises:
        FreeImError: It is nothing that this version can read.
    """
    if raw is None:
        return None
    text = raw.decode("utf-8", "replace") if isinstance(raw, bytes) else raw
    found = _REGISTERED.fullmatch(text)
    if found is None:
        raise FreeImError(
            f"the kind of bus in the Redis key {names.bus} cannot be read ({text!r:.80}): do the nodes run a newer "
            "freeim than this helper?"
        )
    return int(found[1])


def mode_of(length: int | None) -> BusMode:
    """Return the kind of bus that a length stands for."""
    return "pubsub" if length is None else "stream"


@cache
def publish_script() -> str:
    """Return the script that publishes to a stream. It travels with every message, so its comments stay behind."""
    return "".join(line + "\n" for line in load_script("publish").text.splitlines() if line and line[:2] != "--")


def publish_head(names: Names, node: str, length: int | None) -> PublishHead:
    """Return the command that publishes to a node, without the payload.

    Args:
        names: The names of this deployment.
        node: The node's name.
        length: See `bus_text`.
    """
    channel = names.server(node).encode()
    if length is None:
        return "PUBLISH", channel
    return "EVAL", publish_script(), 2, names.stream(node), names.sent(node), length, channel
