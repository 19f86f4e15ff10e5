"""The exceptions of the helper, and the close codes of the node."""

from __future__ import annotations

from enum import IntEnum


class FreeImError(Exception):
    """The base of everything that freeim raises on purpose, except TypeError and ValueError for wrong arguments."""


class RedisUnavailable(FreeImError):
    """Redis could not be reached, did not answer in time, or refused the command.

    Attributes:
        maybe_sent: True where the command may have reached Redis before the connection failed, so that sending it
            again could deliver twice. False where it certainly was not sent.
    """

    def __init__(self, message: str, *, maybe_sent: bool) -> None:
        super().__init__(message)
        self.maybe_sent = maybe_sent


class NodesMismatch(FreeImError):
    """The list of nodes given here differs from the one that the nodes registered in Redis."""


class NoNodes(FreeImError):
    """No node has registered in Redis yet, and the helper was given no list of nodes either."""


class NotSerializable(FreeImError, TypeError):
    """A message could not be turned into JSON."""


class ConfigError(FreeImError, ValueError):
    """An option of the node is missing, malformed, out of range, or contradicts another.

    Attributes:
        fields: The names of the options that the sentence is about, for whoever knows where each value came from.
    """

    def __init__(self, message: str, *fields: str) -> None:
        super().__init__(message)
        self.fields = fields


class NodeReplaced(FreeImError):
    """Another process took this node's name; this node has stopped serving."""


class HandedOver(FreeImError):
    """Another process serves in this node's place already."""


class CloseCode(IntEnum):
    """The codes of the Close frames that a node sends (RFC 6455, section 7.4; 4000 and above are our own)."""

    NORMAL = 1000
    """The answer to a Close frame without a code."""
    GOING_AWAY = 1001
    """Forced offline, with the reason ``disconnect``, as FreeIM sends it."""
    PROTOCOL_ERROR = 1002
    """The terminal broke the WebSocket protocol."""
    MESSAGE_TOO_BIG = 1009
    """The terminal sent more than the node reads."""
    SERVICE_RESTART = 1012
    """The node stops; connect again with a fresh token."""
    REPLACED = 4001
    """A newer login of the same client took this one's place."""
    TOO_SLOW = 4002
    """The terminal did not read fast enough: its queue is full, or all queues of the node together are."""
    NO_PONG = 4003
    """The terminal did not answer a ping."""
