"""A longer way to Redis: the proxy of delay.c."""

from __future__ import annotations

import json
from urllib.parse import quote

from bench.build import program
from bench.dial import dial_words
from bench.processes import Process


class Delay(Process):
    """Adds to the round trip of each command that goes over `url`.

    Args:
        target: Redis; without TLS.
        round_trip: What is added, in seconds.

    Attributes:
        url: The same Redis, reached through the proxy.
    """

    def __init__(self, target: str, round_trip: float) -> None:
        address, where = dial_words(target)
        super().__init__([program("delay"), str(round(round_trip / 2 * 1e6)), *where])
        login = ""
        if address.password is not None:
            login = f"{quote(address.username or '', safe='')}:{quote(address.password, safe='')}@"
        self.url = f"redis://{login}127.0.0.1:{json.loads(self.hear())['port']}/{address.database}"
