"""A node that is frozen past its lease is buried, and puts all back when it goes on; a pause of Redis buries nobody."""

from __future__ import annotations

import asyncio
import random
import signal
from pathlib import Path

import pytest

from freeim.names import new_token
from tests.certificates import Certificates
from tests.faults.nodes import (
    BEAT,
    BURIED_SECONDS,
    LEASE,
    Events,
    connect_all,
    no_ghosts,
    nodes_on,
    start,
    tell_channel,
)
from tests.membership.terminals import NAMES
from tests.node.harness import bounded, frame, head, until
from tests.servers import RedisServer, free_port

SEED = random.randrange(2**32)


async def test_a_frozen_node_notices_that_it_was_buried_and_puts_its_connections_back(
    redis_server: RedisServer,
) -> None:
    redis = redis_server
    with nodes_on(redis, 3) as nodes:
        first, second, third = nodes
        frozen = await connect_all(redis, first, range(3, 153, 3), "room")
        living = await connect_all(redis, second, range(1, 31, 3), "room")
        living |= await connect_all(redis, third, range(2, 32, 3), "room")
        async with Events(redis) as events:
            nodes[first].tell(signal.SIGSTOP)
            await events.some(len(frozen), BURIED_SECONDS)
            assert sorted(events.offline) == [(client, 0) for client in sorted(frozen)]
            no_ghosts(redis, living, "room")
            await frozen.pop(3).close()  # the node cannot see it
            nodes[first].tell(signal.SIGCONT)
            await until(lambda: len(events.online) >= len(frozen), "they are put back", 30)
            await asyncio.sleep(2 * BEAT)  # time for more
            # The one that closed may come and go once more.
            assert sorted(event for event in events.online if event[0] != 3) == [
                (client, 1) for client in sorted(frozen)
            ]
            everybody = frozen | living
            no_ghosts(redis, everybody, "room")
            tell_channel(redis, nodes, "room", "all of you")
            for terminal in everybody.values():
                assert await terminal.next() == '"all of you"'
                assert not terminal.lost.done()
            assert len(nodes[first].logged("connections back that Redis had lost")) == 1
        for terminal in everybody.values():
            await terminal.close()


@pytest.mark.parametrize("secure", [True, False], ids=["TLS", "no TLS"])
async def test_what_came_while_a_node_stood_still_is_served_and_not_refused_for_being_late(
    redis_server: RedisServer, tmp_path: Path, secure: bool
) -> None:
    name, certificates = f"127.0.0.1:{free_port()}", Certificates(tmp_path)
    files = ("--tls-cert", str(certificates.cert), "--tls-key", str(certificates.key)) if secure else ()
    short = ("--handshake-timeout", "1", "--close-timeout", "1")
    with start(redis_server, name, [name], *files, *short) as node:
        node.banner()
        context = certificates.trust if secure else None
        closing, opening = [
            await asyncio.open_connection(
                *name.split(":"), ssl=context, server_hostname="localhost" if secure else None
            )
            for _ in range(2)
        ]
        token = {client: new_token() for client in (1, 2)}
        for client, text in token.items():
            redis_server.command("SET", NAMES.token(text), f'{{"Item1":{client},"Item2":"m"}}', "EX", 60)
        closing[1].write(head(f"/ws?token={token[1]}"))
        assert b" 101 " in await bounded(closing[0].readuntil(b"\r\n\r\n"))
        redis_server.command("PUBLISH", NAMES.server(name), "__FreeIM__(ForceOffline)1")
        assert await bounded(closing[0].readexactly(14)) == b"\x88\x0c\x03\xe9disconnect"
        node.tell(signal.SIGSTOP)
        opening[1].write(head(f"/ws?token={token[2]}"))
        closing[1].write(frame(8, b"\x03\xe9disconnect"))
        await asyncio.sleep(2.0)  # twice as long as either has
        node.tell(signal.SIGCONT)
        assert b" 101 " in await bounded(opening[0].readuntil(b"\r\n\r\n"))
        assert await bounded(closing[0].read()) == b"", "no reset"
        opening[1].close()
        closing[1].close()


async def test_while_redis_pauses_no_living_node_is_buried_and_a_dead_one_is_afterwards(
    own_redis_server: RedisServer,
) -> None:
    redis, rng = own_redis_server, random.Random(SEED)
    with nodes_on(redis, 3) as nodes:
        first, second, third = nodes
        dying = await connect_all(redis, first, range(3, 153, 3), "room")
        living = await connect_all(redis, second, range(1, 31, 3), "room")
        living |= await connect_all(redis, third, range(2, 32, 3), "room")
        await asyncio.sleep(LEASE + 2 * BEAT)  # so that the peers trust what they see
        async with Events(redis) as events:
            nodes[first].tell(signal.SIGKILL)
            try:
                for leases in (0.9, 1.0, 1.4, 1.8):
                    redis.pause()
                    await asyncio.sleep(rng.uniform(0.95, 1.05) * leases * LEASE)
                    # Its lease has expired, and it can renew it a little later than the others: it lives nevertheless.
                    nodes[second].tell(signal.SIGSTOP)
                    redis.resume()
                    await asyncio.sleep(2 * BEAT)
                    nodes[second].tell(signal.SIGCONT)
                    await asyncio.sleep(rng.uniform(0.5, 2) * BEAT)
            finally:
                redis.resume()
                nodes[second].tell(signal.SIGCONT)
            await events.some(len(dying), BURIED_SECONDS)
            await asyncio.sleep(2 * BEAT)  # time for more
            assert sorted(events.offline) == [(client, 0) for client in sorted(dying)], f"seed {SEED}"
            assert events.online == [], f"seed {SEED}"
        no_ghosts(redis, living, "room")
        tell_channel(redis, [second, third], "room", "all of you")
        for terminal in living.values():
            assert await terminal.next() == '"all of you"'
        for terminal in (*dying.values(), *living.values()):
            await terminal.close()
