"""The header of a proxy, the handshake of TLS behind it, and the request arrive in any pieces."""

from __future__ import annotations

import asyncio
import random
import ssl
from pathlib import Path

import pytest

from tests.certificates import Certificates
from tests.node.harness import Raw, Running, bounded, running
from tests.node.proxy_headers import block, line
from tests.servers import RedisServer

SEED = random.randrange(2**32)
HELLO = 60
"""Bytes at the begin of a ClientHello that are told apart: the head of its record and of the message in it."""
AT_ONCE = 50
"""Connections that are under way together."""


class Pieces:
    """A terminal that sends what it has to say in pieces of its own choice.

    Args:
        run: The node.
        certificates: Its certificate.
        header: What a proxy sends first.
    """

    def __init__(self, run: Running, certificates: Certificates, header: bytes) -> None:
        self._run = run
        self._header = header
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = certificates.trust.wrap_bio(self._in, self._out, server_hostname="localhost")

    async def status(self, first: list[int], last: int) -> bytes:
        """Connect, and return the status of the answer to a request with an unknown token.

        Args:
            first: Where the header and the first flight of the handshake are cut.
            last: Where the end of the handshake and the request, which follows at once, are cut.
        """
        raw = await self._run.raw()
        with pytest.raises(ssl.SSLWantReadError):
            self._tls.do_handshake()
        await self._send(raw, self._header + self._out.read(), first)
        while not await self._done(raw):
            pass
        self._tls.write(self._run.request("a" * 128))
        flight = self._out.read()
        await self._send(raw, flight, [last % len(flight)])
        while True:
            try:
                answer = self._tls.read(4096)
            except ssl.SSLWantReadError:
                await self._hear(raw)
            else:
                raw.close()
                return answer.split(b" ")[1]

    async def _done(self, raw: Raw) -> bool:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            await self._hear(raw)
            return False
        return True

    async def _hear(self, raw: Raw) -> None:
        data = await raw.reader.read(65536)
        assert data, "the node has ended the connection"
        self._in.write(data)

    async def _send(self, raw: Raw, data: bytes, cuts: list[int]) -> None:
        for begin, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
            raw.send(data[begin:end])
            await asyncio.sleep(0.002)  # so that they are read one by one, mostly


@pytest.mark.parametrize("header", [line("203.0.113.1"), line("2001:db8::1", "2001:db8::2"), block("203.0.113.1"), b""])
async def test_a_handshake_that_comes_in_any_pieces_behind_any_header_is_understood(
    redis_server: RedisServer, tmp_path: Path, header: bytes
) -> None:
    rng, certificates = random.Random(SEED), Certificates(tmp_path)
    size = len(header) + HELLO
    cuts = [[cut] for cut in range(1, size)]
    cuts += [sorted(rng.sample(range(1, size), rng.randrange(2, 8))) for _ in range(50)]
    room = asyncio.Semaphore(AT_ONCE)

    async def one(first: list[int], last: int) -> tuple[list[int], int, bytes]:
        async with room:
            return first, last, await bounded(Pieces(run, certificates, header).status(first, last), 60)

    options = {"trusted_proxies": ("127.0.0.1",), "handshake_timeout": 60.0, **certificates.options}
    async with running(redis_server, **options) as run:
        ends = await asyncio.gather(*(one(first, rng.randrange(2000)) for first in cuts))
        assert [end for end in ends if end[2] != b"401"] == [], f"seed {SEED}"
