"""A node: holds WebSocket connections and pushes to them. It contains no business logic."""

from freeim.node.node import Node

__all__ = ["Node"]
