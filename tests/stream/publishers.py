"""What publishes while a node comes and goes: several helpers, each in a thread, each with numbers of its own."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from types import TracebackType
from typing import Any, Self

from freeim import ImHelper, RedisUnavailable


class Publishers:
    """Threads that publish to a client, its channel and everybody in turn, until told to stop.

    Args:
        url: Where Redis is; not by way of a proxy that a test cuts.
        client: Who gets all of it.
        channel: A channel of that client.
        count: How many of them there are.
        pause: Seconds between two messages of one.
    """

    def __init__(self, url: str, client: int, channel: str, *, count: int = 3, pause: float = 0.002) -> None:
        self.sent: list[list[int]] = [[] for _ in range(count)]
        """Of each publisher the numbers of what Redis has taken."""
        self.doubtful: list[set[int]] = [set() for _ in range(count)]
        """Of each publisher the numbers of what it may have taken."""
        self.times: dict[tuple[int, int], float] = {}
        """When each message was published."""
        self._url, self._client, self._channel, self._pause = url, client, channel, pause
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(count)]

    def _run(self, publisher: int) -> None:
        with ImHelper(self._url, nodes=["a"], bus="stream") as helper:
            number = 0
            while not self._stop.is_set():
                number += 1
                message = [publisher, number]
                self.times[publisher, number] = time.monotonic()
                try:
                    if number % 3 == 0:
                        helper.send_message(0, self._client, message)
                    elif number % 3 == 1:
                        helper.send_chan_message(0, self._channel, message)
                    else:
                        helper.send_broadcast_message(message)
                except RedisUnavailable as error:
                    if error.maybe_sent:
                        self.doubtful[publisher].add(number)
                    time.sleep(0.02)
                else:
                    self.sent[publisher].append(number)
                time.sleep(self._pause)

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def numbers(self, texts: list[str]) -> list[list[int]]:
        """Return the numbers that a terminal got of each publisher, in the order in which they came."""
        found: list[list[int]] = [[] for _ in self.sent]
        for text in texts:
            with contextlib.suppress(ValueError, TypeError):
                publisher, number = json.loads(text)
                found[publisher].append(number)
        return found

    def all_came_once_in_order(self, texts: list[str]) -> None:
        """Show that a terminal got all that Redis has taken, once each and in its order."""
        for got, sent, doubtful in zip(self.numbers(texts), self.sent, self.doubtful, strict=True):
            assert got == sorted(set(got)), "something came twice, or out of its order"
            missing = set(sent) - set(got)
            assert not missing, f"{len(missing)} of {len(sent)} messages are missing, the first is {min(missing)}"
            assert set(got) <= set(sent) | doubtful

    def count(self) -> int:
        return sum(map(len, self.sent))


def on_stream(**options: Any) -> dict[str, Any]:
    """Return the options of the one node of a test."""
    return {"node": "a", "nodes": ("a",), "bus": "stream", **options}
