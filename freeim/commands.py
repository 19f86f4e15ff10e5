"""One helper call -> the Redis commands it means, and what their replies mean; no I/O, no redis-py.

A `Call` is made (every argument is checked then, and the message serialised), asked for its `commands` once the nodes
are known, and given the replies. `ImHelper`, `AsyncImHelper` and their batches only carry commands and replies.
"""

from __future__ import annotations

import contextlib
import logging
import re
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, Literal, NamedTuple, TypeVar
from uuid import UUID

from freeim import envelope
from freeim.names import (
    ClientId,
    IdKind,
    Names,
    check_client_id,
    connect_url,
    group_by_owner,
    new_token,
    owners,
    parse_client_id,
    system_id,
)
from freeim.node_list import NodeView
from freeim.notices import Notices
from freeim.scripts import load_script

T_co = TypeVar("T_co", covariant=True)

AnyId = int | str | UUID
"""A client id as callers may write it: an int64; or a GUID, as text or as a ``uuid.UUID``."""

Command = tuple[str | bytes | int, ...]
"""One Redis command: its name and its arguments."""

logger: Final = logging.getLogger("freeim")

_GUIDS: Final = re.compile(r"(?:[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}(?:,|\Z))+")
_GUID_AND_COMMA: Final = 37


class Published(NamedTuple):
    """What became of a message on its way to the nodes.

    Attributes:
        addressed: How many nodes it was published to.
        heard: How many processes heard it. Less than `addressed` where nodes are down, and more where two processes
            run under one node's name.
        silent: The names of the nodes that nobody runs: their clients, if they had any, did not get it; with
            ``bus="stream"``, not before the node is there.
        offline: With ``report_offline``, the receivers that had no connection, in the order given; else None.
    """

    addressed: int
    heard: int
    silent: tuple[str, ...]
    offline: tuple[ClientId, ...] | None = None


@dataclass(frozen=True, slots=True)
class SendEvent:
    """What `on_send` is told after a message has been published.

    Attributes:
        kind: Which call it was.
        sender: Who sent it; the system's id (0, or the empty GUID) for nobody.
        receivers: The clients it is for, without duplicates; empty for channel messages and broadcasts.
        channel: The channel, where it is a channel message.
        message: The JSON text that terminals receive; None for a forced offline.
        published: What the call returned.
    """

    kind: Literal["direct", "channel", "broadcast", "force_offline"]
    sender: ClientId
    receivers: tuple[ClientId, ...]
    channel: str | None
    message: str | None
    published: Published


class Call(Generic[T_co]):
    """One call of the helper, its arguments checked.

    Attributes:
        needs_nodes: Whether `commands` must be given the list of nodes.
    """

    __slots__ = ("needs_nodes",)
    needs_nodes: bool

    def commands(self, view: NodeView | None) -> list[Command]:
        """Return the commands, in order; none at all where there is nothing to do."""
        raise NotImplementedError

    def read(self, replies: Sequence[Any]) -> T_co:
        """Return what the call returns, from one reply for each command."""
        raise NotImplementedError

    def event(self, result: Any) -> SendEvent | None:  # noqa: ARG002 - most calls send nothing
        """Return what `on_send` is told about this call."""
        return None


class Query(Call[T_co]):
    """A call that is at most one command, whatever the nodes are.

    Args:
        command: The command, None where there is nothing to ask.
        read: Turns the reply (None where there was no command) into the result.
    """

    __slots__ = ("_command", "_read")

    def __init__(self, command: Command | None, read: Callable[[Any], T_co]) -> None:
        self.needs_nodes = False
        self._command = command
        self._read = read

    def commands(self, view: NodeView | None) -> list[Command]:  # noqa: ARG002 - it needs none
        """Return the one command, if any."""
        return [] if self._command is None else [self._command]

    def read(self, replies: Sequence[Any]) -> T_co:
        """Return what `read` makes of the reply."""
        return self._read(replies[0] if replies else None)


class Connect(Call[str]):
    """`prev_connect_server`."""

    __slots__ = ("_client_id", "_key", "_path", "_ttl", "_url", "_token", "_value")

    def __init__(self, names: Names, client_id: ClientId, value: bytes, ttl: tuple[str, int], path: str) -> None:
        self.needs_nodes = True
        self._token = new_token()
        self._key = names.token(self._token)
        self._client_id = client_id
        self._value = value
        self._ttl = ttl
        self._path = path

    def commands(self, view: NodeView | None) -> list[Command]:
        """Return the SET of the token."""
        assert view is not None
        node = owners(self._client_id, view.nodes)[0]
        self._url = connect_url(node, view.urls.get(node), self._path, self._token)
        return [("SET", self._key, self._value, *self._ttl)]

    def read(self, replies: Sequence[Any]) -> str:  # noqa: ARG002 - an error would have been raised
        """Return the URL."""
        return self._url


class Send(Call[Published]):
    """Anything that is published to nodes."""

    __slots__ = ("_kept", "_notices", "_to")

    def __init__(self, notices: Notices) -> None:
        self.needs_nodes = True
        self._notices = notices
        self._to: Sequence[str] = ()
        self._kept: int | None = None

    def read(self, replies: Sequence[Any]) -> Published:
        """Count who heard; the replies beyond the nodes are not looked at."""
        to = self._to
        if len(to) == 1 and replies[0] == 1:
            return _ONE_HEARD
        heard = 0
        silent: tuple[str, ...] = ()
        for node, count in zip(to, replies, strict=False):
            heard += count
            if count == 0:
                silent += (node,)
            elif count > 1 and self._notices.due("crowded"):
                logger.warning(
                    "%d subscribers hear what is published to node %s: do two processes run under one node name?",
                    count,
                    node,
                )
        if silent and self._notices.due("silent"):
            if self._kept is None:
                outcome = "clients that it should hold miss their messages"
            else:
                outcome = f"its messages wait in its stream until it is, the last {self._kept} at least"
            logger.warning(
                "nobody hears what is published to %s: no such node is running, so %s", ", ".join(silent), outcome
            )
        return Published(len(to), heard, silent)


_ONE_HEARD: Final = Published(1, 1, ())


class SendDirect(Send):
    """`send_message`."""

    __slots__ = ("_message", "_online_key", "_receivers", "_receipt", "_sender")

    def __init__(
        self,
        notices: Notices,
        sender: ClientId,
        receivers: Sequence[ClientId],
        message: str,
        receipt: bool,
        online_key: str | None,
    ) -> None:
        super().__init__(notices)
        self.needs_nodes = bool(receivers)
        self._sender = sender
        self._receivers = receivers
        self._message = message
        self._receipt = receipt
        self._online_key = online_key

    def commands(self, view: NodeView | None) -> list[Command]:
        """Return a PUBLISH for each node that owns receivers, then the look-up of who is offline, if asked for."""
        if not self._receivers:
            return []
        assert view is not None
        tail = envelope.direct_tail(self._message, self._receipt)
        groups = group_by_owner(self._receivers, view.nodes)
        self._to = tuple(groups)
        self._kept = view.stream
        found: list[Command] = [
            (*view.publish[node], envelope.direct(self._sender, ids, tail)) for node, ids in groups.items()
        ]
        if self._online_key is not None:
            found.append(("HMGET", self._online_key, *self._receivers))
        return found

    def read(self, replies: Sequence[Any]) -> Published:
        """Count who heard, and who had no connection."""
        published = super().read(replies)
        if self._online_key is None:
            return published
        counts = replies[-1] if self._receivers else ()
        offline = tuple(
            client_id for client_id, count in zip(self._receivers, counts, strict=True) if to_count(count) <= 0
        )
        return published._replace(offline=offline)

    def event(self, result: Any) -> SendEvent | None:
        """Tell of a message that had receivers."""
        if not self._receivers:
            return None
        return SendEvent("direct", self._sender, tuple(self._receivers), None, self._message, result)


class SendToAllNodes(Send):
    """`send_chan_message` and `send_broadcast_message`."""

    __slots__ = ("_channel", "_message", "_sender")

    def __init__(self, notices: Notices, sender: ClientId, channel: str | None, message: str) -> None:
        super().__init__(notices)
        self._sender = sender
        self._channel = channel
        self._message = message

    def commands(self, view: NodeView | None) -> list[Command]:
        """Return a PUBLISH for each node."""
        assert view is not None
        payload = envelope.channel(self._sender, self._channel, self._message)
        self._to = view.nodes
        self._kept = view.stream
        return [(*view.publish[node], payload) for node in view.nodes]

    def event(self, result: Any) -> SendEvent:
        """Tell of the message."""
        kind: Literal["broadcast", "channel"] = "broadcast" if self._channel is None else "channel"
        return SendEvent(kind, self._sender, (), self._channel, self._message, result)


class ForceOffline(Send):
    """`force_offline`."""

    __slots__ = ("_client_id", "_system")

    def __init__(self, notices: Notices, client_id: ClientId, system: ClientId) -> None:
        super().__init__(notices)
        self._client_id = client_id
        self._system = system

    def commands(self, view: NodeView | None) -> list[Command]:
        """Return a PUBLISH for each node that may hold the client."""
        assert view is not None
        self._to = owners(self._client_id, view.nodes)
        self._kept = view.stream
        payload = envelope.force_offline(self._client_id)
        return [(*view.publish[node], payload) for node in self._to]

    def event(self, result: Any) -> SendEvent:
        """Tell of the forced offline."""
        return SendEvent("force_offline", self._system, (self._client_id,), None, None, result)


class Commands:
    """What each method of the helper means. The arguments and errors are described at `ImHelper`'s methods.

    Args:
        names: The names of this deployment.
        ids: Its kind of client id.
        path: The path of its WebSocket endpoint.
        token_ttl: How long a connection token lives, in seconds.
        json_dumps: Turns messages into JSON; None for FreeIM's way.
        notices: Where oddities are reported.
    """

    def __init__(
        self,
        names: Names,
        ids: IdKind,
        path: str,
        token_ttl: float,
        json_dumps: Callable[[Any], str | bytes] | None,
        notices: Notices,
    ) -> None:
        self.names = names
        self.ids: IdKind = ids
        self._system = system_id(ids)
        self._path = path
        self._ttl = ("EX", int(token_ttl)) if token_ttl == int(token_ttl) else ("PX", max(1, int(token_ttl * 1000)))
        self._dumps = json_dumps
        self._notices = notices
        # Read here once: the scripts travel with every call, so that a pipeline is never half done for want of one.
        self._join = load_script("join").text
        self._leave = load_script("leave").text
        self._clear = load_script("clear").text

    # -- arguments ----------------------------------------------------------------------------------------------

    def _client(self, value: object) -> ClientId:
        client_id = check_client_id(value, self.ids)
        if client_id == self._system:
            raise ValueError(f"client id {value!r} stands for the system; it can neither connect nor receive")
        return client_id

    def _sender(self, value: object) -> ClientId:
        return self._system if value is None else check_client_id(value, self.ids)

    def _clients(self, values: object) -> list[ClientId]:
        """Check many ids at once; the order stays, and so do duplicates."""
        if isinstance(values, (str, bytes, bytearray)) or not isinstance(values, Iterable):
            raise TypeError(f"client ids must come as an iterable, not as {type(values).__name__} ({values!r:.80})")
        found = list(values)
        if not found:
            return found
        # Thousands of ids in a call are common, so the usual kinds are looked at without a loop in Python. Types come
        # first: True and 1.0 equal 1.
        kinds = set(map(type, found))
        if kinds == {int} and self.ids == "int":
            # An array of int64 takes just what is in range.
            with contextlib.suppress(OverflowError):
                array("q", found)
                if 0 not in found:
                    return found
        elif kinds == {str} and self.ids == "guid":
            # Every 37th character is a comma and there is no other: each id is one GUID in its canonical form.
            joined = ",".join(found)
            canonical = len(joined) + 1 == _GUID_AND_COMMA * len(found) and _GUIDS.fullmatch(joined)
            if canonical and self._system not in found:
                return found
        return [self._client(value) for value in found]

    def _channel(self, value: object) -> str:
        if not isinstance(value, str):
            raise TypeError(f"a channel must be a str, not {type(value).__name__} ({value!r:.80})")
        if not value:
            raise ValueError("a channel's name must not be empty")
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise ValueError(f"channel {value!r} holds a lone surrogate, which UTF-8 cannot carry") from None
        return value

    # -- calls --------------------------------------------------------------------------------------------------

    def prev_connect_server(self, client_id: object, metadata: object = "") -> Call[str]:
        """SET a fresh token."""
        checked = self._client(client_id)
        if metadata is not None and not isinstance(metadata, str):
            raise TypeError(f"metadata must be a str or None, not {type(metadata).__name__}")
        return Connect(self.names, checked, envelope.token_value(checked, metadata), self._ttl, self._path)

    def send_message(
        self, sender: object, receivers: object, message: object, receipt: bool, report_offline: bool
    ) -> Call[Published]:
        """PUBLISH to the nodes of the receivers."""
        from_ = self._sender(sender)
        one = isinstance(receivers, int) if self.ids == "int" else isinstance(receivers, (str, UUID))
        to: Sequence[ClientId]
        if one:
            to = (self._client(receivers),)
        else:
            to = self._clients(receivers)
            if len(set(to)) != len(to):
                to = list(dict.fromkeys(to))
        text = envelope.message_json(message, self._dumps)
        online = self.names.online if report_offline else None
        return SendDirect(self._notices, from_, to, text, bool(receipt), online)

    def send_chan_message(self, sender: object, channel: object, message: object) -> Call[Published]:
        """PUBLISH to every node."""
        return SendToAllNodes(
            self._notices, self._sender(sender), self._channel(channel), envelope.message_json(message, self._dumps)
        )

    def send_broadcast_message(self, message: object) -> Call[Published]:
        """PUBLISH to every node."""
        return SendToAllNodes(self._notices, self._system, None, envelope.message_json(message, self._dumps))

    def force_offline(self, client_id: object) -> Call[Published]:
        """PUBLISH to the node of the client."""
        return ForceOffline(self._notices, self._client(client_id), self._system)

    def get_client_list_by_online(self) -> Call[list[ClientId]]:
        """HKEYS of the presence hash."""
        return Query(("HKEYS", self.names.online), self._read_clients)

    def has_online(self, client_id: object) -> Call[bool]:
        """HGET of the presence hash."""
        return Query(("HGET", self.names.online, self._client(client_id)), lambda reply: to_count(reply) > 0)

    def has_online_many(self, client_ids: object) -> Call[list[bool]]:
        """HMGET of the presence hash."""
        checked = self._clients(client_ids)
        command = ("HMGET", self.names.online, *checked) if checked else None
        return Query(command, lambda reply: [to_count(count) > 0 for count in reply or ()])

    def _pairs(self, script: str, pairs: list[tuple[ClientId, str]]) -> Call[None]:
        if not pairs:
            return Query(None, _nothing)
        names = self.names
        keys = [names.list_chan]
        values: list[str | int] = []
        for client_id, channel in pairs:
            keys += (names.chan(channel), names.client(client_id))
            values += (client_id, channel)
        return Query(("EVAL", script, len(keys), *keys, *values), _nothing)

    def join_chan(self, client_id: object, channels: Iterable[object]) -> Call[None]:
        """Run the join script."""
        checked = self._client(client_id)
        return self._pairs(self._join, [(checked, name) for name in dict.fromkeys(map(self._channel, channels))])

    def leave_chan(self, client_id: object, channels: Iterable[object]) -> Call[None]:
        """Run the leave script."""
        checked = self._client(client_id)
        return self._pairs(self._leave, [(checked, name) for name in dict.fromkeys(map(self._channel, channels))])

    def leave_chan_clients(self, channel: object, client_ids: object) -> Call[None]:
        """Run the leave script."""
        name = self._channel(channel)
        return self._pairs(self._leave, [(checked, name) for checked in dict.fromkeys(self._clients(client_ids))])

    def clear_chan_client(self, channel: object) -> Call[None]:
        """Run the clear script."""
        name, names = self._channel(channel), self.names
        keys = (names.chan(name), names.list_chan, names.online)
        return Query(("EVAL", self._clear, len(keys), *keys, name, names.client("")), _nothing)

    def get_chan_client_list(self, channel: object) -> Call[list[ClientId]]:
        """HKEYS of the channel."""
        return Query(("HKEYS", self.names.chan(self._channel(channel))), self._read_clients)

    def get_chan_list(self) -> Call[dict[str, int]]:
        """HGETALL of the channels' counts."""
        return Query(("HGETALL", self.names.list_chan), _read_counts)

    def get_chan_list_by_client_id(self, client_id: object) -> Call[list[str]]:
        """HKEYS of the client's channels."""
        return Query(("HKEYS", self.names.client(self._client(client_id))), lambda reply: [to_text(x) for x in reply])

    def get_chan_online(self, channel: object) -> Call[int]:
        """HGET of the channel's count."""
        return Query(("HGET", self.names.list_chan, self._channel(channel)), to_count)

    def _read_clients(self, reply: Any) -> list[ClientId]:
        """Read the fields that are client ids; FreeIM skips what is none, and the system's id."""
        found = (parse_client_id(to_text(field), self.ids) for field in reply)
        return [client_id for client_id in found if client_id is not None and client_id != self._system]


def to_text(value: object) -> str:
    """Return a reply as text, whether the connection decodes replies or not."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def to_count(value: Any) -> int:
    """Return a reply as a number; 0 for a missing field, and for one that is no number."""
    try:
        return int(value) if value is not None else 0
    except ValueError:
        return 0


def _read_counts(reply: Any) -> dict[str, int]:
    """Read HGETALL: redis-py makes a dict of it, and a plain connection a flat list."""
    items = reply.items() if isinstance(reply, dict) else zip(reply[::2], reply[1::2], strict=True)
    return {to_text(name): to_count(count) for name, count in items}


def _nothing(reply: Any) -> None:
    """Read the reply of a call that returns nothing."""
