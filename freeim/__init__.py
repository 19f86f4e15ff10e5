"""Push messages to WebSocket clients through Redis: a helper for business apps, and the node that holds connections.

Importing this loads neither redis-py nor anything compiled: those come when a helper or a node is made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from freeim.commands import Published, SendEvent
from freeim.config import Options
from freeim.envelope import Raw
from freeim.errors import (
    CloseCode,
    ConfigError,
    FreeImError,
    NodeReplaced,
    NodesMismatch,
    NoNodes,
    NotSerializable,
    RedisUnavailable,
)
from freeim.event_bus import Event, EventBus
from freeim.event_bus_async import AsyncEventBus
from freeim.helper import ImHelper
from freeim.helper_async import AsyncImHelper

if TYPE_CHECKING:
    from freeim.node import Node as Node

# Without Node: `from freeim import *` is to work where no node can run.
__all__ = [
    "AsyncEventBus",
    "AsyncImHelper",
    "CloseCode",
    "ConfigError",
    "Event",
    "EventBus",
    "FreeImError",
    "ImHelper",
    "NoNodes",
    "NodeReplaced",
    "NodesMismatch",
    "NotSerializable",
    "Options",
    "Published",
    "Raw",
    "RedisUnavailable",
    "SendEvent",
]


def __getattr__(name: str) -> Any:
    if name == "Node":  # needs the compiled core, uvloop, picows and hiredis, which a business app does without
        from freeim.node import Node

        return Node
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
