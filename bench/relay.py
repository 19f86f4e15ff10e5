"""The yardstick behind Redis: what a direct message takes on the way of a node's, with next to no work in the node."""

from __future__ import annotations

from bench.dial import auth_lines, command_lines, dial_words
from bench.processes import BenchError, Yardstick


class Relay(Yardstick):
    """A yardstick that sends each direct message that is published on a channel to its client.

    Args:
        url: Redis; without TLS, which yardstick.c does not speak.
        channel: Where the messages of publish.c come.
    """

    def __init__(self, url: str, channel: str) -> None:
        address, where = dial_words(url)
        super().__init__(where)
        try:
            if lines := auth_lines(address):
                self.ask(*lines)
            self.ask(*command_lines("SUBSCRIBE", channel))
        except BenchError:
            self.__exit__(None, None, None)
            raise
