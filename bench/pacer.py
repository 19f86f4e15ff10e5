"""The paced publisher of publish.c: direct messages at a steady rate, whether those before have arrived or not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from bench.build import program
from bench.dial import auth_lines, dial_words
from bench.processes import BenchError, Process
from bench.tally import Tally
from freeim.names import Names


@dataclass(frozen=True, slots=True)
class Sent:
    """What was published.

    Attributes:
        messages: How many.
        busy: CPU of the publisher, as a share of a core.
        late: How late messages were written; see `Tally.quantile`.
    """

    messages: int
    busy: float
    late: Tally


class Pacer(Process):
    """Publishes direct messages.

    Args:
        url: Redis; without TLS, which publish.c does not speak.
        names: The names of this run.
        nodes: The nodes' names, in the order of their list.
    """

    def __init__(self, url: str, names: Names, nodes: Sequence[str]) -> None:
        address, where = dial_words(url)
        super().__init__([program("publish"), *where])
        try:
            if lines := auth_lines(address):
                self.ask(*lines)
            self.ask(f"nodes {len(nodes)}", *(names.server(node) for node in nodes))
        except BenchError:
            self.__exit__(None, None, None)
            raise

    def start(
        self, rate: float, seconds: float, clients: range, stream: int, *, seed: int = 1, size: int = 128
    ) -> None:
        """Begin to send, and return; `finish` waits for the end.

        Args:
            rate: Messages a second.
            seconds: For how long.
            clients: Who may get them, one at random each; adjacent ids.
            stream: Their number in the payloads; each client has sequence numbers of its own, from 1.
            seed: Of what is random.
            size: Bytes of a message.
        """
        self.say(f"paced {rate} {seconds} {clients[0]} {len(clients)} {stream} {seed} {size}")

    def finish(self) -> Sent:
        """Wait until all is published, and tell how that went.

        Raises:
            BenchError: A message was published that no node heard.
        """
        state = json.loads(self.hear())
        if state["unheard"]:
            raise BenchError(f"{state['unheard']} messages were published that no node heard")
        late = Tally(slowest=state["slowest_ns"] / 1e9)
        late.histogram.update(dict(state["histogram"]))
        return Sent(state["sent"], state["cpu_s"] / max(state["wall_s"], 1e-9), late)
