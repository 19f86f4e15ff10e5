"""Connecting: from which moment on a client is reached, and what an opening that fails leaves behind."""

from __future__ import annotations

import asyncio
import json
import random
import re
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest

from freeim.config import Options
from freeim.names import owners
from freeim.node import Node
from tests.membership.cluster import nodes_on
from tests.membership.delay_proxy import DelayProxy
from tests.membership.flips import direct, flip, load_scripts, run, to_channel
from tests.membership.processes import Helper
from tests.membership.terminals import NAMES, Ended, Refused, Terminal, grant
from tests.servers import RedisServer, Wire, free_port

CLIENTS = 300
STORM = 300


async def until(true: Callable[[], bool], what: str, seconds: float = 15.0) -> None:
    """Poll until something holds."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.005)


@asynccontextmanager
async def far_node(redis: RedisServer, round_trip: float) -> AsyncIterator[tuple[Node, DelayProxy]]:
    """Run a node in this loop, as far from its Redis as wanted."""
    async with (
        DelayProxy(redis.port, round_trip) as proxy,
        Node(Options(bind="127.0.0.1:0", redis_url=proxy.url)) as node,
    ):
        yield node, proxy


@contextmanager
def reacting(redis: RedisServer, react: Callable[[Wire, int], None]) -> Iterator[None]:
    """In a thread: do something at each Online event of the clients 1 to CLIENTS."""
    events, wire = redis.wire(), redis.wire()
    load_scripts(wire)
    events.send("SUBSCRIBE", NAMES.event_online)
    events.read()
    events.sock.settimeout(None)

    def listen() -> None:
        try:
            while True:
                client_id = json.loads(events.read()[2])["Item1"]
                if client_id <= CLIENTS:
                    react(wire, client_id)
        except (OSError, ValueError):
            pass  # closed by the test

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield
    finally:
        redis.command("PUBLISH", NAMES.event_online, "over")
        thread.join(10)
        assert not thread.is_alive()
        events.close()
        wire.close()


async def storm(wire: Wire, nodes: list[str]) -> list[Terminal]:
    """Connect many others at once."""
    ids = range(100_001, 100_001 + STORM)
    return await asyncio.gather(*(Terminal.connect(owners(each, nodes)[0], grant(wire, each)) for each in ids))


async def close_all(terminals: list[Terminal]) -> None:
    await asyncio.gather(*(each.close() for each in terminals))


async def test_whoever_reacts_to_the_online_event_with_join_and_send_reaches_the_client(
    either_redis: RedisServer,
) -> None:
    with nodes_on(either_redis, round_trip=0.002) as nodes, either_redis.wire() as wire:

        def react(own: Wire, client_id: int) -> None:
            run(own, [flip(client_id, f"room{client_id}", join=True, dotnet=client_id % 2 == 0)])
            run(own, [*to_channel(nodes, f"room{client_id}", "welcome"), direct(nodes, client_id, "fence")])

        async def client(client_id: int) -> Terminal:
            terminal = await Terminal.connect(owners(client_id, nodes)[0], grant(wire, client_id))
            assert [await terminal.next(), await terminal.next()] == ['"welcome"', '"fence"']
            return terminal

        with reacting(either_redis, react):
            others = asyncio.create_task(storm(wire, nodes))
            terminals = await asyncio.gather(*map(client, range(1, CLIENTS + 1)))
            await close_all([*terminals, *await others])


async def test_whoever_reacts_to_the_101_with_join_and_send_reaches_the_client(either_redis: RedisServer) -> None:
    with nodes_on(either_redis, round_trip=0.002) as nodes, either_redis.wire() as wire:
        load_scripts(wire)

        async def client(client_id: int) -> Terminal:
            terminal = await Terminal.connect(owners(client_id, nodes)[0], grant(wire, client_id))
            assert wire("HEXISTS", NAMES.online, client_id) == 1, "the 101 came before the client was counted"
            room = f"room{client_id}"
            run(wire, [flip(client_id, room, True), *to_channel(nodes, room, "in"), direct(nodes, client_id, "fence")])
            assert [await terminal.next(), await terminal.next()] == ['"in"', '"fence"']
            run(wire, [flip(client_id, room, False), *to_channel(nodes, room, "out"), direct(nodes, client_id, "end")])
            assert await terminal.next() == '"end"'
            return terminal

        others = asyncio.create_task(storm(wire, nodes))
        terminals = await asyncio.gather(*map(client, range(1, CLIENTS + 1)))
        await close_all([*terminals, *await others])


async def test_channels_joined_before_connecting_are_honoured_from_the_online_event_on(
    either_redis: RedisServer,
) -> None:
    with nodes_on(either_redis, round_trip=0.002) as nodes, either_redis.wire() as wire:
        load_scripts(wire)

        def react(own: Wire, client_id: int) -> None:
            run(own, [*to_channel(nodes, f"room{client_id}", "welcome"), direct(nodes, client_id, "fence")])

        async def client(client_id: int) -> Terminal:
            run(
                wire,
                [flip(client_id, f"room{client_id}", True, dotnet=client_id % 2 == 0), flip(client_id, "hall", True)],
            )
            terminal = await Terminal.connect(owners(client_id, nodes)[0], grant(wire, client_id))
            assert [await terminal.next(), await terminal.next()] == ['"welcome"', '"fence"']
            return terminal

        with reacting(either_redis, react):
            terminals = await asyncio.gather(*map(client, range(1, CLIENTS + 1)))
        run(wire, to_channel(nodes, "hall", "all"))
        assert [await each.next() for each in terminals] == ['"all"'] * CLIENTS
        await close_all(terminals)


async def test_what_comes_between_the_online_event_and_the_reading_of_the_channels_reaches_the_client(
    redis_server: RedisServer,
) -> None:
    async with far_node(redis_server, 0) as (node, proxy):
        nodes = [node.name]
        proxy.reader.delay = 0.05  # the opening is counted at once, the channels are read and answered much later
        with redis_server.wire() as wire:
            load_scripts(wire)

            def react(own: Wire, client_id: int) -> None:
                room = f"room{client_id}"
                if client_id % 2:
                    run(own, [flip(client_id, room, True)])
                run(own, [*to_channel(nodes, room, "welcome"), *to_channel(nodes, "left", "no")])
                run(own, [direct(nodes, client_id, "fence")])

            async def client(client_id: int) -> Terminal:
                run(wire, [flip(client_id, "left", True), flip(client_id, "left", False)])
                if not client_id % 2:
                    run(wire, [flip(client_id, f"room{client_id}", True)])
                terminal = await Terminal.connect(node.name, grant(wire, client_id))
                assert [await terminal.next(), await terminal.next()] == ['"welcome"', '"fence"']
                return terminal

            with reacting(redis_server, react):
                await close_all(await asyncio.gather(*map(client, range(1, CLIENTS + 1))))


async def test_a_channel_that_does_not_confirm_the_client_is_dropped_when_it_connects(
    either_redis: RedisServer,
) -> None:
    # .NET's ClearChanClient takes an offline client out of the channel, but leaves the channel in the client's hash.
    with nodes_on(either_redis) as nodes, either_redis.wire() as wire:
        load_scripts(wire)
        run(wire, [flip(1, "kept", True), flip(1, "cleared", True)])
        wire("HDEL", NAMES.chan("cleared"), 1)
        terminal = await Terminal.connect(owners(1, nodes)[0], grant(wire, 1))
        assert either_redis.hash(NAMES.client(1)) == {"kept": "0"}
        run(wire, [*to_channel(nodes, "cleared", "no"), *to_channel(nodes, "kept", "yes")])
        assert await terminal.next() == '"yes"'
        await terminal.close()


async def test_a_second_connection_of_a_client_holds_only_itself(redis_server: RedisServer) -> None:
    async with far_node(redis_server, 0.2) as (node, proxy):
        nodes = [node.name]
        with redis_server.wire() as wire:
            load_scripts(wire)
            run(wire, [flip(1, "room", True)])
            first = await Terminal.connect(node.name, grant(wire, 1))
            opened = proxy.writer.asked.count(b"EVALSHA")
            second = await Terminal.begin(node.name, grant(wire, 1))
            # Its opening is on the way to Redis; the answer to it is not to come.
            await until(lambda: proxy.writer.asked.count(b"EVALSHA") > opened, "the second opening")
            proxy.writer.hold()
            run(wire, [*to_channel(nodes, "room", "a"), direct(nodes, 1, "b"), *to_channel(nodes, None, "c")])
            assert [await first.next() for _ in range(3)] == ['"a"', '"b"', '"c"']
            assert not second.upgraded.done()
            proxy.writer.release()
            assert [await second.next() for _ in range(3)] == ['"a"', '"b"', '"c"']
            await close_all([first, second])


async def test_a_client_that_waits_for_its_channels_holds_up_nobody_else(redis_server: RedisServer) -> None:
    async with far_node(redis_server, 0.2) as (node, proxy):
        with redis_server.wire() as wire:
            load_scripts(wire)
            one, two = [await Terminal.connect(node.name, grant(wire, each)) for each in (1, 2)]
            run(wire, [flip(2, "room", True)])
            asked = proxy.reader.asked.count(b"HKEYS")
            run(wire, [flip(1, "room", True)])
            await until(lambda: proxy.reader.asked.count(b"HKEYS") > asked, "the re-read")
            started = time.monotonic()
            run(wire, [*to_channel([node.name], "room", "a"), direct([node.name], 2, "b"), direct([node.name], 1, "c")])
            assert [await two.next(), await two.next()] == ['"a"', '"b"']
            assert [await one.next(), await one.next()] == ['"a"', '"c"']
            assert time.monotonic() - started > 0.1, "both came at once: the proxy did not delay"
            await close_all([one, two])


class Doomed:
    """A terminal that is cut at the moment when its token passes the proxy for the n-th time.

    The first time it is looked up, the second time it is burnt by the opening.
    """

    def __init__(self, token: str, passes: int) -> None:
        self.token = token.encode()
        self.passes = passes
        self.terminal: Terminal | None = None

    def look(self, data: bytes) -> None:
        self.passes -= data.count(self.token)
        self.cut_in_time()

    def cut_in_time(self) -> None:
        if self.passes <= 0 and self.terminal is not None and self.terminal.transport is not None:
            self.terminal.transport.abort()


async def test_clients_that_drop_during_their_opening_leave_nothing_behind(redis_server: RedisServer) -> None:
    dice = random.Random(3)
    all_ids = range(1, CLIENTS + 1)
    early, looked_up, counted, upgraded = (set(all_ids[n::4]) for n in range(4))
    """When each is cut: after a moment, when the token is looked up, when the opening is counted, after the 101."""
    events: Counter[tuple[str, int]] = Counter()
    with redis_server.wire() as listener, redis_server.wire() as wire:
        load_scripts(wire)
        listener.send("SUBSCRIBE", NAMES.event_online, NAMES.event_offline)
        listener.read()
        listener.read()
        async with far_node(redis_server, 0.01) as (node, proxy):
            doomed: list[Doomed] = []

            def look(data: bytes) -> None:
                for each in doomed:
                    each.look(data)

            async def client(client_id: int) -> None:
                run(wire, [flip(client_id, "room", True)])
                await asyncio.sleep(dice.uniform(0, 0.1))
                token = grant(wire, client_id)
                if client_id in upgraded:
                    await (await Terminal.connect(node.name, token)).close()
                elif client_id in early:
                    terminal = await Terminal.begin(node.name, token)
                    await asyncio.sleep(dice.uniform(0, 0.02))
                    await terminal.close()
                else:
                    fate = Doomed(token, 1 if client_id in looked_up else 2)
                    doomed.append(fate)
                    fate.terminal = await Terminal.begin(node.name, token)
                    fate.cut_in_time()
                    await fate.terminal.lost

            proxy.writer.on_request = look
            await asyncio.gather(*map(client, all_ids))
            await until(lambda: node._connections.accepted == 0, "every socket is gone")
            await until(lambda: redis_server.hash(NAMES.online) == {}, "nobody counts as online")
            await until(lambda: tracked_keys(redis_server) == 0, "no key is tracked any more")
            assert not node._connections.living
            assert not node._bus.router.clients
            shares = [key for key in wire("KEYS", "im_v2_wsShare*") if not key.endswith(b"Shares")]
            assert shares == []
        # The node has stopped: everything that it published lies before this.
        wire("PUBLISH", NAMES.event_offline, "over")
        while (event := listener.read())[2] != b"over":
            events[event[1].decode(), json.loads(event[2])["Item1"]] += 1
    online = {client_id for channel, client_id in events if channel == NAMES.event_online}
    offline = {client_id for channel, client_id in events if channel == NAMES.event_offline}
    assert online == offline
    assert set(events.values()) == {1}
    assert counted | upgraded <= online
    assert not looked_up <= online, "none of them was noticed in time"
    # Those that were counted have left their channels; the others never came.
    assert set(redis_server.hash(NAMES.chan("room"))) == {str(each) for each in set(all_ids) - online}


async def test_a_token_that_two_connections_present_at_once_opens_one_of_them(redis_server: RedisServer) -> None:
    async with far_node(redis_server, 0.01) as (node, _):
        with redis_server.wire() as wire:
            for client_id in range(1, 21):
                token = grant(wire, client_id)
                outcomes = await asyncio.gather(
                    *(Terminal.connect(node.name, token) for _ in range(4)), return_exceptions=True
                )
                opened = [each for each in outcomes if isinstance(each, Terminal)]
                refused = [str(each) for each in outcomes if isinstance(each, Refused)]
                assert len(opened) == 1
                assert len(refused) == 3
                assert all(each.startswith("HTTP/1.1 401 ") for each in refused)
                assert wire("HGET", NAMES.online, client_id) == b"1"
                run(wire, [direct([node.name], client_id, "hi")])
                assert await opened[0].next() == '"hi"'
                await close_all(opened)


async def test_a_thousand_clients_that_connect_together_do_not_cost_a_thousand_round_trips(
    redis_server: RedisServer,
) -> None:
    name = f"127.0.0.1:{free_port()}"
    async with DelayProxy(redis_server.port, 0.02) as proxy:
        with Helper("node_process", options={"bind": name, "redis_url": proxy.url}, barrier=True) as node:
            await asyncio.to_thread(node.answer)
            with redis_server.wire() as wire:
                tokens = [grant(wire, client_id) for client_id in range(1, 1001)]
            before = sum(link.requests for link in proxy.links)
            started = time.monotonic()
            terminals = await asyncio.gather(*(Terminal.connect(name, token) for token in tokens))
            seconds = time.monotonic() - started
            requests = sum(link.requests for link in proxy.links) - before
            print(f"1,000 connects: {seconds:.2f} s, {requests} writes to Redis")
            assert len(redis_server.hash(NAMES.online)) == 1000
            assert seconds >= 0.04, "two waits of 20 ms: the proxy did not delay"
            assert seconds < 10, "one after the other they would take 20 s"
            assert requests < 100
            await close_all(terminals)
            await asyncio.to_thread(node.end)


def tracked_keys(redis: RedisServer) -> int:
    """Return how many keys Redis would invalidate."""
    match = re.search(rb"tracking_total_keys:(\d+)", redis.command("INFO", "stats"))
    assert match
    return int(match[1])


async def test_no_key_stays_tracked_when_its_client_has_gone(redis_server: RedisServer) -> None:
    async with far_node(redis_server, 0.004) as (node, proxy):
        with redis_server.wire() as wire:
            load_scripts(wire)

            async def connect(client_id: int) -> Terminal:
                return await Terminal.connect(node.name, grant(wire, client_id))

            async def plain(client_id: int) -> None:
                await (await connect(client_id)).close()

            async def leaves_before_it_goes(client_id: int) -> None:
                terminal = await connect(client_id)
                run(wire, [flip(client_id, "room", True)])
                await asyncio.sleep(0.01)
                run(wire, [flip(client_id, "room", False)])
                await terminal.close()

            async def goes_as_a_member(client_id: int) -> None:
                run(wire, [flip(client_id, "room", True)])
                terminal = await connect(client_id)
                run(wire, [flip(client_id, "hall", True, dotnet=True)])
                await terminal.close()

            async def joins_and_leaves_while_it_goes(client_id: int) -> None:
                terminal = await connect(client_id)
                await terminal.close()
                for _ in range(3):
                    run(wire, [flip(client_id, "room", True), flip(client_id, "room", False)])
                    await asyncio.sleep(0.003)

            async def drops_during_its_opening(client_id: int) -> None:
                terminal = await Terminal.begin(node.name, grant(wire, client_id))
                await asyncio.sleep(client_id % 10 / 1000)
                await terminal.close()

            async def brings_an_unknown_token(client_id: int) -> None:
                with pytest.raises(Refused):
                    await Terminal.connect(node.name, "f" * 128)

            async def brings_a_token_that_ends_before_it_is_burnt(client_id: int) -> None:
                token = grant(wire, client_id)
                ending.append(token)
                with pytest.raises(Refused, match="401"):
                    await Terminal.connect(node.name, token)

            def end_tokens(data: bytes) -> None:
                if b"EVALSHA" in data:  # the look-up was answered, the opening has not reached Redis
                    for token in ending:
                        if token.encode() in data:
                            wire("DEL", NAMES.token(token))

            async def is_forced_offline(client_id: int) -> None:
                terminal = await connect(client_id)
                wire("PUBLISH", NAMES.server(node.name), f"__FreeIM__(ForceOffline){client_id}")
                with pytest.raises(Ended):
                    await terminal.next()
                await terminal.close()

            async def connects_again_at_once(client_id: int) -> None:
                for _ in range(3):
                    terminal = await connect(client_id)
                    await terminal.close()

            ending: list[str] = []
            proxy.writer.on_request = end_tokens
            stay = [await connect(client_id) for client_id in range(9001, 9006)]
            await until(lambda: tracked_keys(redis_server) == 5, "those that stay are tracked")
            client_id = 0
            for _ in range(12):
                tasks = []
                for what in (
                    *(plain, leaves_before_it_goes, goes_as_a_member, joins_and_leaves_while_it_goes),
                    *(drops_during_its_opening, brings_an_unknown_token, is_forced_offline, connects_again_at_once),
                    brings_a_token_that_ends_before_it_is_burnt,
                ):
                    for _ in range(3):
                        client_id += 1
                        tasks.append(what(client_id))
                await asyncio.gather(*tasks)
            await until(lambda: tracked_keys(redis_server) == 5, "only those that stay are tracked")
            assert set(redis_server.hash(NAMES.online)) == {str(each) for each in range(9001, 9006)}
            await close_all(stay)
            await until(lambda: tracked_keys(redis_server) == 0, "nobody is tracked")
