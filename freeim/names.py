"""Every Redis key and channel, the token, and the partition: pure functions.

The names are FreeIM's (docs/protocol.md, "Names"): a .NET node or helper on the same Redis uses the very same bytes.
"""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

IdKind = Literal["int", "guid"]
"""The two kinds of client id: int64 (FreeIM 2.x) and GUID (FreeIM 1.x)."""

ClientId = int | str
"""A client id as users see it: an ``int``, or a GUID in lower case with hyphens."""

INT64_MIN: Final = -(2**63)
INT64_MAX: Final = 2**63 - 1

SYSTEM_INT: Final = 0
SYSTEM_GUID: Final = "00000000-0000-0000-0000-000000000000"

_PREFIX_HEAD: Final[dict[IdKind, str]] = {"int": "im_v2", "guid": "wsim"}


def default_prefix(path: str, ids: IdKind) -> str:
    """Return the prefix that FreeIM derives from a path: ``/ws`` gives ``im_v2_ws``.

    Args:
        path: The path of the WebSocket endpoint, with its leading slash.
        ids: The kind of client id.
    """
    return _PREFIX_HEAD[ids] + path.replace("/", "_")


@dataclass(frozen=True, slots=True)
class Names:
    """The names that one prefix spans. The first group is FreeIM's, the second is our own."""

    prefix: str

    def token(self, token: str) -> str:
        return f"{self.prefix}Token{token}"

    @property
    def online(self) -> str:
        return f"{self.prefix}Online"

    def chan(self, channel: str) -> str:
        return f"{self.prefix}Chan{channel}"

    def client(self, client_id: ClientId) -> str:
        return f"{self.prefix}Client{client_id}"

    @property
    def list_chan(self) -> str:
        return f"{self.prefix}ListChan"

    def server(self, node: str) -> str:
        """The pub/sub channel that a node listens to."""
        return f"{self.prefix}Server{node}"

    @property
    def event_online(self) -> str:
        return f"evt_{self.prefix}Online"

    @property
    def event_offline(self) -> str:
        return f"evt_{self.prefix}Offline"

    @property
    def nodes(self) -> str:
        return f"{self.prefix}Nodes"

    @property
    def urls(self) -> str:
        return f"{self.prefix}Urls"

    def lease(self, node: str) -> str:
        return f"{self.prefix}Lease{node}"

    def alive(self, epoch: str) -> str:
        return f"{self.prefix}Alive{epoch}"

    @property
    def shares(self) -> str:
        return f"{self.prefix}Shares"

    def share(self, epoch: str) -> str:
        return f"{self.prefix}Share{epoch}"

    @property
    def bus(self) -> str:
        """The kind of bus, where it is not pub/sub."""
        return f"{self.prefix}Bus"

    def stream(self, node: str) -> str:
        """What was published to a node; only with ``--bus stream``, as the next three."""
        return f"{self.prefix}Stream{node}"

    def sent(self, node: str) -> str:
        """The running number of the last message of the node's stream."""
        return f"{self.prefix}Sent{node}"

    def position(self, node: str) -> str:
        """How far the node has come in its stream."""
        return f"{self.prefix}Position{node}"

    def away(self, node: str) -> str:
        """How far each client has come that the node has sent away while it stopped."""
        return f"{self.prefix}Away{node}"

    @property
    def gone(self) -> str:
        """Clients whose last connection was to an instance that drains, and that have not come back yet."""
        return f"{self.prefix}Gone"

    def group(self, group: str) -> str:
        """The lease of an event group, and the pub/sub channel of its marks."""
        return f"{self.prefix}Group{group}"

    @property
    def fences(self) -> str:
        return f"{self.prefix}Fences"


def new_token() -> str:
    """Return a fresh connection token: 128 lower-case hex characters, 512 random bits."""
    return secrets.token_hex(64)


def system_id(ids: IdKind) -> ClientId:
    """Return the id that stands for "the system": 0, or the empty GUID."""
    return SYSTEM_INT if ids == "int" else SYSTEM_GUID


def check_client_id(value: object, ids: IdKind) -> ClientId:
    """Return a client id in its canonical form, the system's id included.

    Args:
        value: An ``int``; or, for GUIDs, a ``uuid.UUID`` or any text that ``uuid.UUID`` reads.
        ids: The kind of id that this deployment uses.

    Raises:
        TypeError: The value is not of the right type (a bool is not an id).
        ValueError: The value is out of the range of int64, or no GUID.
    """
    if ids == "int":
        if type(value) is not int:
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"a client id must be an int, not {type(value).__name__} ({value!r})")
            value = int(value)
        if not INT64_MIN <= value <= INT64_MAX:
            raise ValueError(f"client id {value} is outside the range of a 64-bit integer")
        return value
    if isinstance(value, uuid.UUID):
        return str(value)
    if not isinstance(value, str):
        raise TypeError(f"a client id must be a GUID (uuid.UUID or str), not {type(value).__name__} ({value!r})")
    try:
        return str(uuid.UUID(value))
    except ValueError:
        raise ValueError(f"client id {value!r} is not a GUID") from None


def parse_client_id(text: str, ids: IdKind) -> ClientId | None:
    """Read a client id as Redis holds it; None for a field that is not one (FreeIM skips such fields too)."""
    if ids == "int" and ("_" in text or not text.isascii()):
        return None  # int() reads 1_000 and the digits of other scripts; .NET does not
    try:
        return check_client_id(int(text) if ids == "int" else text, ids)
    except ValueError:
        return None


def owners(client_id: ClientId, nodes: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the nodes that own a client. Nothing else in this project computes the partition.

    FreeIM 2.x takes ``id % len(nodes)``. .NET's remainder keeps the sign, so negative ids throw there unless the
    node count divides them; Python's floored modulo agrees with it wherever it works. FreeIM 1.x takes the last four
    hex digits of the GUID.

    Args:
        client_id: A canonical client id (see `check_client_id`).
        nodes: The ordered list of nodes, the same in every process.
    """
    key = client_id if isinstance(client_id, int) else int(client_id[-4:], 16)
    return (nodes[key % len(nodes)],)


def group_by_owner(client_ids: Sequence[ClientId], nodes: Sequence[str]) -> dict[str, Sequence[ClientId]]:
    """Return `owners` of many clients at once: each node that owns some of them, with those, in the order given.

    A loop of its own rather than a call of `owners` for each client: a message may go to thousands.

    Args:
        client_ids: Canonical client ids, all of one kind, without duplicates.
        nodes: The ordered list of nodes, the same in every process.
    """
    size = len(nodes)
    if size == 1:
        return {nodes[0]: client_ids} if client_ids else {}
    groups: list[list[ClientId]] = [[] for _ in nodes]
    for client_id in client_ids:
        groups[(client_id if isinstance(client_id, int) else int(client_id[-4:], 16)) % size].append(client_id)
    # In the order in which the nodes first come up among the receivers, as FreeIM groups them.
    filled = sorted((client_ids.index(group[0]), node) for node, group in enumerate(groups) if group)
    return {nodes[node]: groups[node] for _, node in filled}


def connect_url(node: str, public_url: str | None, path: str, token: str) -> str:
    """Return the URL that a terminal connects to.

    Args:
        node: The node's name, used as ``ws://<name>`` where the node registered no public URL (FreeIM's rule).
        public_url: Everything before the path, e.g. ``wss://im.example.com/n1``.
        path: The path of the WebSocket endpoint, e.g. ``/ws``.
        token: The connection token.
    """
    return f"{public_url or f'ws://{node}'}{path}?token={token}"
