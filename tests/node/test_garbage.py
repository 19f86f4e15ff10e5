"""The server's collector never looks at old objects: so whatever a connection was must go when it ends."""

from __future__ import annotations

import gc

from freeim._core import Connection, Socket
from freeim.node.handshake import Handshake
from freeim.node.terminal import FrameReader, Terminal
from tests.node.harness import frame, running, until
from tests.servers import RedisServer

OURS = (Connection, Socket, Handshake, Terminal, FrameReader)


def alive() -> list[object]:
    return [each for each in gc.get_objects() if isinstance(each, OURS)]


async def test_connections_that_have_ended_leave_nothing_for_the_collector(redis_server: RedisServer) -> None:
    async with running(redis_server) as run:
        gc.collect()
        before = {id(each): each for each in alive()}  # of a test that has failed: its traceback keeps them
        gc.disable()
        try:
            for number in range(1, 6):
                polite, fragmented, rude = [await run.raw_client(number) for _ in range(3)]
                polite.send(frame(8, b"\x03\xe8"))
                fragmented.send(frame(1, b"a", fin=False) + frame(0, b"b") + frame(8, b"\x03\xe8"))
                rude.send(frame(3, b"an opcode that does not exist"))
                for each in (polite, fragmented, rude):
                    await each.rest()
                    each.close()
                status, _, _ = await run.http(b"GET /ws HTTP/1.1\r\nHost: x\r\n\r\n")
                assert status == 426
            await until(lambda: run.node._connections.accepted == 0, "all sockets are gone")
            await run.settled()
            await until(lambda: all(id(each) in before for each in alive()), "all objects are gone")
        finally:
            gc.enable()
