"""Any bytes in place of Redis's replies: the connection counts as lost, and nothing else happens."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from freeim.node.link import RedisLink

pieces = st.sampled_from(
    [
        b"+OK\r\n",
        b"-ERR x\r\n",
        b":1\r\n",
        b"$-1\r\n",
        b"$3\r\nabc\r\n",
        b"_\r\n",
        b"%1\r\n+a\r\n:1\r\n",
        b">3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$2\r\nhi\r\n",
        b">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nk\r\n",
        b">2\r\n$10\r\ninvalidate\r\n_\r\n",
        b">1\r\n:1\r\n",
        b">0\r\n",
        b"*0\r\n",
        b"%1\r\n%1\r\n+a\r\n:1\r\n:1\r\n",
        b">2\r\n$7\r\nmessage\r\n$1\r\nc\r\n",
    ]
) | st.binary(max_size=12)


@given(st.lists(pieces, max_size=12), st.integers(0, 3))
def test_any_reply_is_handled_or_ends_the_connection(chunks: list[bytes], waiting: int) -> None:
    async def run() -> None:
        lost: list[Exception] = []
        replies: list[object] = []
        link = RedisLink(on_message=lambda _: None, on_invalidate=lambda _: None, on_lost=lost.append)
        transport = _Transport()
        link.connection_made(transport)
        for _ in range(waiting):
            link.send(replies.append, "PING")
        for chunk in chunks:
            if link.alive:
                link.data_received(chunk)
        if not link.alive:
            assert len(lost) == 1
            assert transport.aborted
            assert len(replies) == waiting, "everybody who waited was told"

    asyncio.run(run())


class _Transport(asyncio.Transport):
    aborted = False

    def write(self, data: object) -> None:
        pass

    def abort(self) -> None:
        self.aborted = True
