"""The options that both helpers share, checked; no I/O, no redis-py."""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from freeim.bus_mode import BusMode, read_bus
from freeim.commands import Call, Command, Commands, SendEvent
from freeim.config_checks import check_path, check_prefix
from freeim.names import IdKind, Names, default_prefix
from freeim.node_list import NodeView, agreed_stream, check_nodes, make_view, registered_nodes
from freeim.notices import Notices

logger: Final = logging.getLogger("freeim")


def _seconds(name: str, value: object, least: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number of seconds, not {type(value).__name__}")
    if not least <= value < float("inf"):
        raise ValueError(f"{name} must be at least {least} seconds and finite, not {value}")
    return float(value)


def _check(name: str, check: Callable[[str], None], value: str) -> None:
    try:
        check(value)
    except ValueError as error:
        raise ValueError(f"{name} {error}") from None


class HelperCore:
    """What both helpers are made of: options, commands, the list of nodes. The arguments are `ImHelper`'s."""

    def __init__(
        self,
        nodes: Sequence[str] | None,
        ids: IdKind,
        path: str,
        prefix: str | None,
        token_ttl: float,
        timeout: float,
        node_list_ttl: float,
        json_dumps: Callable[[Any], str | bytes] | None,
        on_send: Callable[[SendEvent], None] | None,
        bus: BusMode | None,
    ) -> None:
        if ids not in ("int", "guid"):
            raise ValueError(f"ids must be 'int' or 'guid', not {ids!r}")
        if bus not in ("pubsub", "stream", None):
            raise ValueError(f"bus must be 'pubsub', 'stream' or None, not {bus!r}")
        if not isinstance(path, str):
            raise TypeError(f"path must be a str, not {type(path).__name__}")
        _check("path", check_path, path)
        if prefix is not None:
            if not isinstance(prefix, str):
                raise TypeError(f"prefix must be a str or None, not {type(prefix).__name__}")
            _check("prefix", check_prefix, prefix)
        for name, function in (("json_dumps", json_dumps), ("on_send", on_send)):
            if function is not None and not callable(function):
                raise TypeError(f"{name} must be callable, not {type(function).__name__}")
        if inspect.iscoroutinefunction(on_send):
            raise TypeError("on_send must be a plain function, not a coroutine function")
        self.given_nodes = check_nodes(nodes)
        self.names = Names(prefix if prefix is not None else default_prefix(path, ids))
        self.timeout = _seconds("timeout", timeout, 0.001)
        self.notices = Notices()
        self.commands = Commands(
            self.names, ids, path, _seconds("token_ttl", token_ttl, 0.001), json_dumps, self.notices
        )
        self.ids: IdKind = ids
        self.on_send = on_send
        self.given_bus = bus
        self._node_list_ttl = _seconds("node_list_ttl", node_list_ttl, 0.0)
        self._view: NodeView | None = None

    def fresh_view(self) -> NodeView | None:
        """Return what is known about the nodes; None when it must be read (again) from Redis."""
        view = self._view
        return view if view is not None and time.monotonic() < view.until else None

    @property
    def unchecked(self) -> bool:
        """Whether this helper was given a list of nodes that was not compared with the registered one yet."""
        return self.given_nodes is not None and self._view is None

    def view_commands(self) -> list[Command]:
        """Return the commands that read what the nodes registered."""
        return [("GET", self.names.nodes), ("GET", self.names.bus), ("HGETALL", self.names.urls)]

    def read_view(self, replies: Sequence[Any]) -> NodeView:
        """Take in what the nodes registered.

        Raises:
            NodesMismatch, NoNodes, ConfigError, FreeImError: See `make_view`, `registered_nodes`, `agreed_stream` and
                `read_bus`.
        """
        raw, bus, urls = replies
        items = urls.items() if isinstance(urls, dict) else zip(urls[::2], urls[1::2], strict=True)
        texts = {_text(name): _text(url) for name, url in items}
        registered = registered_nodes(self.names, raw)
        stream = agreed_stream(self.names, self.given_bus, registered, read_bus(self.names, bus))
        until = time.monotonic() + self._node_list_ttl
        self._view = make_view(self.names, self.given_nodes, registered, texts, stream, until)
        return self._view

    def tell(self, call: Call[Any], result: Any) -> None:
        """Tell `on_send` about a call that was carried out. What it raises is logged: the message is out already."""
        if self.on_send is None:
            return
        event = call.event(result)
        if event is None:
            return
        try:
            self.on_send(event)
        except Exception:
            logger.exception("on_send raised; the message was sent all the same")


def _text(value: bytes | str) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
