"""One of the two processes fails, at each moment of a hand-over: the other goes on, and Redis tells the truth."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncIterator

import pytest

from tests.cli.command import Server
from tests.faults.nodes import Events, no_ghosts
from tests.handover.pairs import GRACE, HANDED_OVER, PAUSES, STOPS, Guest, Place, serving
from tests.membership.terminals import NAMES, Ended, Terminal
from tests.node.harness import direct, join, until
from tests.servers import RedisServer

pytestmark = pytest.mark.slow  # processes, on each Python the same


async def serves(place: Place, client: int, receipt: bool = True) -> Terminal:
    """Show that the node lets somebody in, delivers, and answers receipts, once."""
    terminal = await place.connect(client)
    place.tell(direct([client], "to you"))
    assert await terminal.next() == '"to you"'
    if receipt:
        place.tell(direct([987], "m", sender=client, receipt=True))
        assert json.loads(await terminal.next())["content"] == '"m"'
        place.tell(direct([client], "fence"))
        assert await terminal.next() == '"fence"', "one receipt"
    return terminal


@contextlib.asynccontextmanager
async def in_use(redis: RedisServer, *args: str) -> AsyncIterator[tuple[Place, Server, Terminal, str]]:
    """Start a node; with a terminal of client 1, which is in a channel, and the node's epoch."""
    with serving(redis, *args) as (place, old):
        join(redis, NAMES, 1, "room")
        yield place, old, await serves(place, 1), place.owner()


async def stays_as_it_was(place: Place, old: Server, terminal: Terminal, epoch: str) -> None:
    """Show that the first process serves on as if nothing had happened, and that another hand-over works."""
    await until(lambda: place.owner() == epoch, "the old process has its name again")
    await (await serves(place, 2)).close()
    place.tell(direct([1], "still here"))
    assert await terminal.next() == '"still here"'
    await until(lambda: place.redis.hash(NAMES.online) == {"1": "1"}, "client 2 is gone")
    new = place.start()
    await asyncio.to_thread(new.banner)
    with pytest.raises(Ended, match="1012"):
        await terminal.next()
    await terminal.close()
    assert await asyncio.to_thread(old.wait) == 0
    await (await serves(place, 3)).close()


@pytest.mark.parametrize("moment", STOPS)
async def test_a_successor_that_is_killed_before_it_serves_changes_nothing(
    redis_server: RedisServer, moment: str
) -> None:
    async with in_use(redis_server) as (place, old, terminal, epoch):
        async with Events(redis_server) as events:
            new = place.start(change=STOPS[moment])
            await asyncio.to_thread(new.logged, "stopped")
            new.tell(signal.SIGKILL)
            await asyncio.to_thread(old.logged, "ended before it served; going on as before")
            assert await events.heard() == []
        await stays_as_it_was(place, old, terminal, epoch)


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (("--nodes", "127.0.0.1:1,{name}"), "another list of nodes"),
        (("--prefix", "other"), "another prefix"),
        (("--ids", "guid"), "another"),
        (("--path", "/other"), "another"),
        (("--node", "other"), "another name"),
        (("--redis-url", "redis://127.0.0.1:1"), "Redis at 127.0.0.1:1"),
        (("--tls-cert", "/nowhere.pem"), "tls"),
        (("--admin-bind", "127.0.0.1:{port}"), "admin"),
    ],
)
async def test_a_successor_with_wrong_options_says_why_and_changes_nothing(
    redis_server: RedisServer, more: tuple[str, ...], reason: str
) -> None:
    async with in_use(redis_server) as (place, old, terminal, epoch):
        new = place.start(*(text.format(name=place.name, port=place.port) for text in more))
        assert await asyncio.to_thread(new.wait) in (2, 3)
        assert reason in new.stderr
        assert "Traceback" not in new.stderr
        assert old.process.poll() is None
        await stays_as_it_was(place, old, terminal, epoch)


async def test_a_successor_on_another_redis_is_refused(
    redis_server: RedisServer, own_redis_server: RedisServer
) -> None:
    async with in_use(redis_server) as (place, old, terminal, epoch):
        new = place.start("--redis-url", own_redis_server.url)
        assert await asyncio.to_thread(new.wait) == 2
        assert "is not known to this Redis" in new.stderr
        await stays_as_it_was(place, old, terminal, epoch)


@pytest.mark.parametrize("moment", PAUSES)
async def test_when_the_old_process_is_killed_before_the_new_one_serves_that_takes_its_place_at_once(
    redis_server: RedisServer, moment: str
) -> None:
    async with in_use(redis_server) as (place, old, terminal, _):
        async with Events(redis_server) as events:
            new = place.start(change=PAUSES[moment])
            await asyncio.to_thread(old.logged, HANDED_OVER)
            await asyncio.sleep(0.7)
            old.tell(signal.SIGKILL)
            await until(lambda: events.offline == [(1, 0)], "the old one's terminal is taken out, once", 10)
            with pytest.raises(Ended):
                await terminal.next()
            await asyncio.to_thread(new.banner)
            again = await serves(place, 5)
            await asyncio.sleep(GRACE)
            assert events.offline == [(1, 0)]
        assert set(redis_server.hash(NAMES.online)) == {"5"}
        assert redis_server.command("EXISTS", NAMES.chan("room")) == 0
        assert len(redis_server.hash(NAMES.shares)) == 1
        await again.close()


async def test_when_the_old_process_is_killed_while_it_drains_the_new_one_takes_out_the_rest_at_once(
    redis_server: RedisServer,
) -> None:
    async with in_use(redis_server, "--drain", "60") as (place, old, first, _):
        others = [await place.connect(client) for client in range(2, 12)]
        for client in range(2, 12):
            join(redis_server, NAMES, client, "room")
        async with Events(redis_server) as events:
            new = place.start()
            await asyncio.to_thread(new.banner)
            with pytest.raises(Ended):
                await first.next()  # sent away at once, and comes back
            await first.close()
            back = await place.connect(1)
            await until(lambda: redis_server.hash(NAMES.online)["1"] == "1", "the end of the first connection", 5)
            old.tell(signal.SIGKILL)
            await until(lambda: len(events.offline) >= 10, "the others of the dead one", 10)
            await asyncio.sleep(GRACE + 0.5)
            assert sorted(events.offline) == [(client, 0) for client in range(2, 12)]
        no_ghosts(redis_server, [1], "room")
        for terminal in (*others, back):
            await terminal.close()


async def test_when_the_new_process_is_killed_while_the_old_one_drains_a_third_takes_the_name_at_once(
    redis_server: RedisServer,
) -> None:
    async with in_use(redis_server, "--drain", "8") as (place, old, first, _):
        others = [await place.connect(client) for client in range(2, 6)]
        for client in range(2, 6):
            join(redis_server, NAMES, client, "room")
        async with Events(redis_server) as events:
            new = place.start()
            await asyncio.to_thread(new.banner)
            with pytest.raises(Ended):
                await first.next()  # it is gone for good, and the new one was to say so
            await first.close()
            await until(lambda: redis_server.command("EXISTS", NAMES.gone) == 1)
            new.tell(signal.SIGKILL)
            await asyncio.to_thread(old.logged, "the successor is gone; draining all the same")
            third = place.start()
            await asyncio.to_thread(third.banner)
            guests = []
            for client, terminal in enumerate(others, 2):  # sent away one after the other, and back at the third
                with pytest.raises(Ended):
                    await terminal.next()
                await terminal.close()
                guests.append(Guest(place, client, lambda: 0))
            assert await asyncio.to_thread(old.wait) == 0
            await asyncio.sleep(GRACE + 0.5)
            assert events.offline == [(1, 0)]
        no_ghosts(redis_server, range(2, 6), "room")
        for guest in guests:
            await guest.leave()


async def test_a_successor_that_hangs_is_given_up(redis_server: RedisServer) -> None:
    with serving(
        redis_server, change="from freeim.node import successor\nvars(successor).update(START_SECONDS=1.0)"
    ) as (place, old):
        new = place.start(change=PAUSES["with the name"])
        await asyncio.to_thread(old.logged, "does not serve after 1 s; going on without it")
        await (await serves(place, 1)).close()
        assert await asyncio.to_thread(new.wait) == 2
        assert "it did not serve within 1 s" in new.stderr
        await (await serves(place, 1)).close()


async def test_an_old_process_that_does_not_answer_is_told_of(redis_server: RedisServer) -> None:
    with serving(redis_server) as (place, old):
        old.tell(signal.SIGSTOP)
        new = place.start()
        assert await asyncio.to_thread(new.wait) == 2
        assert "does not answer" in new.stderr
        old.tell(signal.SIGCONT)
        await (await serves(place, 1)).close()


async def test_the_socket_of_a_dead_process_is_no_obstacle(redis_server: RedisServer) -> None:
    with serving(redis_server) as (place, old):
        old.tell(signal.SIGKILL)
        await asyncio.to_thread(old.wait)
        assert place.files() == ["node.sock"]
        new = place.start()
        await asyncio.to_thread(new.banner)
        await (await serves(place, 1)).close()
