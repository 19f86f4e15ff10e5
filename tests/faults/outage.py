"""What is watched during an outage of Redis: what /ready says, and when messages arrive again."""

from __future__ import annotations

import asyncio
import itertools
import time
from types import TracebackType
from typing import Self

from tests.node.harness import Peer, Running, direct, until

ASK = b"GET /ready HTTP/1.1\r\nHost: x\r\n\r\n"

GO_ON_SECONDS = 6.0
"""How long after Redis is back messages may take to arrive again."""

READY_SECONDS = 3.0
"""How long /ready may take to answer: 1 s that Redis has for it, and some for a busy machine."""

_numbers = itertools.count()


class Readiness:
    """Asks a node again and again whether it is ready, on a connection each, and remembers what it said when."""

    def __init__(self, run: Running) -> None:
        self._run = run
        self.said: list[tuple[float, float, int, str]] = []
        """When it was asked, when it answered, status and body."""

    async def _ask(self) -> None:
        while True:
            asked = time.monotonic()
            reader, writer = await asyncio.open_connection("127.0.0.1", self._run.node.port)
            writer.write(ASK)
            answer = (await reader.read()).decode()
            writer.close()
            self.said.append((asked, time.monotonic(), int(answer.split()[1]), answer.partition("\r\n\r\n")[2]))
            await asyncio.sleep(0.05)

    async def __aenter__(self) -> Self:
        self._asking = asyncio.create_task(self._ask())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._asking.cancel()
        results = await asyncio.gather(self._asking, return_exceptions=True)
        assert isinstance(results[0], asyncio.CancelledError), results

    def asked_between(self, begin: float, end: float) -> list[int]:
        """Return the statuses of all that was asked after `begin` and answered before `end`."""
        return [status for asked, answered, status, _ in self.said if begin <= asked and answered <= end]

    async def ready_after(self, served: float) -> None:
        """Wait until it says 200 again, once messages have arrived."""
        await until(lambda: self.said[-1][0] >= served and self.said[-1][2] == 200, "it is ready again")

    def told_the_truth(self, lost: float, back: float, grace: float = 0.0) -> None:
        """Show that it said 200 before an outage, and 503 throughout it.

        Args:
            lost: When the outage was about to begin.
            back: When it was about to end.
            grace: Seconds that the cause of the outage took.
        """
        assert set(self.asked_between(0, lost)) <= {200}
        during = self.asked_between(lost + grace, back)
        assert during
        assert set(during) == {503}
        assert all(answered - asked < READY_SECONDS for asked, answered, *_ in self.said)


async def served_again(run: Running, *peers: Peer) -> float:
    """Publish until each terminal has got something, and return when that was."""
    deadline = time.monotonic() + GO_ON_SECONDS
    waiting = set(peers)
    while waiting:
        assert time.monotonic() < deadline, f"nothing has arrived within {GO_ON_SECONDS} s"
        mark = next(_numbers)
        run.publish(direct([peer.client for peer in peers], f"served {mark}"))
        await asyncio.sleep(0.03)
        waiting = {peer for peer in waiting if not any('"served ' in text for text in peer.seen)}
    served = time.monotonic()
    for peer in peers:
        await peer.fence()
    return served
