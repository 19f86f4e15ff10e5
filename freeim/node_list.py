"""The list of nodes as the helper sees it: given, or registered in Redis by the nodes; no I/O."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from freeim.bus_mode import STREAM_LENGTH, BusMode, PublishHead, mode_of, publish_head
from freeim.errors import ConfigError, FreeImError, NodesMismatch, NoNodes
from freeim.names import Names


@dataclass(frozen=True, slots=True)
class NodeView:
    """What is known about the nodes for a while.

    Attributes:
        nodes: Their names, in the order that the partition goes by.
        urls: The public URLs that they registered, by name.
        publish: How to publish to each, by name: the command without its last argument, the payload.
        stream: Messages that the stream of each keeps at least; None where messages go by pub/sub alone.
        until: The time, on the caller's clock, from which on it must be read again.
    """

    nodes: tuple[str, ...]
    urls: Mapping[str, str]
    publish: Mapping[str, PublishHead]
    stream: int | None
    until: float


def check_nodes(nodes: object) -> tuple[str, ...] | None:
    """Return the option ``nodes`` in its canonical form.

    Raises:
        TypeError: It is no sequence of names.
        ValueError: It is empty, or a name is empty or comes twice.
    """
    if nodes is None:
        return None
    if isinstance(nodes, (str, bytes)) or not isinstance(nodes, Sequence):
        raise TypeError(f"nodes must be a list of node names, not {type(nodes).__name__} ({nodes!r:.80})")
    for node in nodes:
        if not isinstance(node, str):
            raise TypeError(f"a node's name must be a str, not {type(node).__name__} ({node!r:.80})")
        if not node:
            raise ValueError("a node's name must not be empty")
    if not nodes:
        raise ValueError("nodes must not be empty; leave it out to use the list that the nodes registered in Redis")
    if len(set(nodes)) != len(nodes):
        raise ValueError(f"nodes names a node twice: {', '.join(nodes)}")
    return tuple(nodes)


def registered_nodes(names: Names, raw: bytes | str | None) -> tuple[str, ...] | None:
    """Read the list that the nodes registered; None where none has.

    Raises:
        FreeImError: What is registered is nothing that this version can read.
    """
    if raw is None:
        return None
    try:
        document: Any = json.loads(raw)
        nodes = document["nodes"]
        if document["by"] != "mod" or not nodes or not all(isinstance(node, str) and node for node in nodes):
            raise ValueError("an unknown form")
    except (ValueError, TypeError, KeyError) as error:
        raise FreeImError(
            f"the list of nodes in the Redis key {names.nodes} cannot be read ({error}): "
            "do the nodes run a newer freeim than this helper?"
        ) from error
    return tuple(nodes)


def agreed_stream(
    names: Names, given: BusMode | None, registered: tuple[str, ...] | None, found: int | None
) -> int | None:
    """Decide how to publish; return it as `NodeView.stream`.

    Args:
        names: The names of this deployment.
        given: The kind of bus that the helper was given, if it was.
        registered: The list of nodes that is registered, if one is.
        found: What is registered of the bus.

    Raises:
        ConfigError: The nodes have registered another kind than was given.
    """
    if given is None or given == mode_of(found):
        return found
    if registered is None and found is None:
        return STREAM_LENGTH  # no node of ours has ever run here: what is said counts
    raise ConfigError(
        f"this helper was given bus={given!r}, but the nodes in Redis run with --bus {mode_of(found)} (key "
        f"{names.bus}): messages would not be kept, or not be heard. Give both the same, or leave out the helper's.",
        "bus",
    )


def make_view(
    names: Names,
    given: tuple[str, ...] | None,
    registered: tuple[str, ...] | None,
    urls: Mapping[str, str],
    stream: int | None,
    until: float,
) -> NodeView:
    """Decide which nodes there are.

    Args:
        names: The names of this deployment.
        given: The helper's own list, if it has one.
        registered: What the nodes registered, if they did; .NET nodes register nothing.
        urls: The public URLs that they registered.
        stream: See `NodeView`.
        until: See `NodeView`.

    Raises:
        NodesMismatch: Both lists exist and differ.
        NoNodes: There is none.
    """
    if given is not None and registered is not None and given != registered:
        raise NodesMismatch(
            f"this helper was given the nodes [{', '.join(given)}], but those in Redis registered "
            f"[{', '.join(registered)}] (key {names.nodes}): messages would go astray. Give both the same list in the "
            "same order, or leave out the helper's."
        )
    nodes = given if given is not None else registered
    if nodes is None:
        raise NoNodes(
            f"no node has registered in Redis (key {names.nodes}): start freeim-server on this Redis with the same "
            "path, ids and prefix as this helper; or, where the nodes are FreeIM's .NET ones, which do not register, "
            "give the helper their names as nodes=[...]"
        )
    return NodeView(nodes, urls, {node: publish_head(names, node, stream) for node in nodes}, stream, until)
