"""Many calls in one round trip: what the sync and the asyncio batch share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Generic, TypeVar

from freeim.commands import AnyId, Call, Command, Commands, Published
from freeim.names import ClientId
from freeim.node_list import NodeView

T = TypeVar("T")


class Pending(Generic[T]):
    """Stands for the result of a call in a batch, until the batch has been sent."""

    __slots__ = ("_done", "_result")

    def __init__(self) -> None:
        self._done = False

    @property
    def result(self) -> T:
        """What the call returned.

        Raises:
            RuntimeError: The batch has not been sent.
        """
        if not self._done:
            raise RuntimeError("the batch has not been sent: the result is there after its with block")
        return self._result

    def resolve(self, result: T) -> None:
        """Set the result."""
        self._result = result
        self._done = True

    def __repr__(self) -> str:
        return f"Pending({self._result!r})" if self._done else "Pending(not sent)"


class Batch:
    """Queues calls; they have the helper's names and arguments, and each returns a `Pending`.

    Arguments are checked at once. An exception inside the with block sends nothing.
    """

    def __init__(self, commands: Commands) -> None:
        self._commands = commands
        self._calls: list[Call[Any]] = []
        self._pending: list[Pending[Any]] = []
        self._results: list[Any] | None = None
        self._state = "new"

    @property
    def results(self) -> list[Any]:
        """What the calls returned, in their order.

        Raises:
            RuntimeError: The batch has not been sent.
        """
        if self._results is None:
            raise RuntimeError(_NO_RESULTS.get(self._state, "the batch has not been sent: results are there after it"))
        return self._results

    def __len__(self) -> int:
        return len(self._calls)

    def open(self) -> None:
        """Begin to queue."""
        if self._state != "new":
            raise RuntimeError("a batch can be used once: call batch() again for another")
        self._state = "open"

    def drop(self) -> None:
        """Give up: nothing is sent."""
        self._state = "dropped"

    def take(self) -> tuple[list[Call[Any]], bool]:
        """End the queueing; return the calls, and whether any of them needs the list of nodes."""
        self._state = "failed"  # until `resolve`
        return self._calls, any(call.needs_nodes for call in self._calls)

    def resolve(self, slices: list[slice], replies: list[Any]) -> list[Any]:
        """Set every result from the replies, and return all of them."""
        self._results = [call.read(replies[where]) for call, where in zip(self._calls, slices, strict=True)]
        for pending, result in zip(self._pending, self._results, strict=True):
            pending.resolve(result)
        self._state = "sent"
        return self._results

    def _add(self, call: Call[T]) -> Pending[T]:
        if self._state != "open":
            raise RuntimeError("calls are queued inside the batch's with block only")
        pending: Pending[T] = Pending()
        self._calls.append(call)
        self._pending.append(pending)
        return pending

    def prev_connect_server(self, client_id: AnyId, metadata: str | None = "") -> Pending[str]:
        """Queue the helper's call of this name."""
        return self._add(self._commands.prev_connect_server(client_id, metadata))

    def send_message(
        self,
        sender: AnyId | None,
        receivers: AnyId | Iterable[AnyId],
        message: Any,
        *,
        receipt: bool = False,
        report_offline: bool = False,
    ) -> Pending[Published]:
        """Queue the helper's call of this name."""
        return self._add(self._commands.send_message(sender, receivers, message, receipt, report_offline))

    def send_chan_message(self, sender: AnyId | None, channel: str, message: Any) -> Pending[Published]:
        """Queue the helper's call of this name."""
        return self._add(self._commands.send_chan_message(sender, channel, message))

    def send_broadcast_message(self, message: Any) -> Pending[Published]:
        """Queue the helper's call of this name."""
        return self._add(self._commands.send_broadcast_message(message))

    def force_offline(self, client_id: AnyId) -> Pending[Published]:
        """Queue the helper's call of this name."""
        return self._add(self._commands.force_offline(client_id))

    def get_client_list_by_online(self) -> Pending[list[ClientId]]:
        """Queue the helper's call of this name."""
        return self._add(self._commands.get_client_list_by_online())

    def has_online(self, client_id: AnyId) -> Pending[bool]:
        """Queue the helper's call of this name."""
        return self._add(self._commands.has_online(client_id))

    def has_online_many(self, client_ids: Iterable[AnyId]) -> Pending[list[bool]]:
        """Queue the helper's call of this name."""
        return self._add(self._commands.has_online_many(client_ids))

    def join_chan(self, client_id: AnyId, *channels: str) -> Pending[None]:
        """Queue the helper's call of this name."""
        return self._add(self._commands.join_chan(client_id, channels))

    def leave_chan(self, client_id: AnyId, *channels: str) -> Pending[None]:
        """Queue the helper's call of this name."""
        return self._add(self._commands.leave_chan(client_id, channels))

    def leave_chan_clients(self, channel: str, *client_ids: AnyId) -> Pending[None]:
        """Queue the helper's call of this name."""
        return self._add(self._commands.leave_chan_clients(channel, client_ids))

    def clear_chan_client(self, channel: str) -> Pending[None]:
        """Queue the helper's call of this name."""
        return self._add(self._commands.clear_chan_client(channel))

    def get_chan_client_list(self, channel: str) -> Pending[list[ClientId]]:
        """Queue the helper's call of this name."""
        return self._add(self._commands.get_chan_client_list(channel))

    def get_chan_list(self) -> Pending[dict[str, int]]:
        """Queue the helper's call of this name."""
        return self._add(self._commands.get_chan_list())

    def get_chan_list_by_client_id(self, client_id: AnyId) -> Pending[list[str]]:
        """Queue the helper's call of this name."""
        return self._add(self._commands.get_chan_list_by_client_id(client_id))

    def get_chan_online(self, channel: str) -> Pending[int]:
        """Queue the helper's call of this name."""
        return self._add(self._commands.get_chan_online(channel))


_NO_RESULTS = {
    "dropped": "the batch was given up by an exception inside its with block: nothing was sent",
    "failed": "the batch has no results: sending it failed",
}


def lay_out(calls: list[Call[Any]], view: NodeView | None) -> tuple[list[Command], list[slice]]:
    """Return all commands of many calls, and where each call's replies will be."""
    commands: list[Command] = []
    slices = []
    for call in calls:
        first = len(commands)
        commands += call.commands(view)
        slices.append(slice(first, len(commands)))
    return commands, slices
