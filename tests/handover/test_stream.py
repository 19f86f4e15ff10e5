"""A hand-over with --bus stream: a client that moves gets each message once, in order, also what came on its way."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time

import pytest

from freeim import ImHelper
from tests.handover.pairs import PAUSES, Place, serving
from tests.membership.terminals import NAMES, Ended
from tests.node.harness import join, until
from tests.servers import RedisServer

STREAM = ("--bus", "stream")


class Mover:
    """A terminal that comes back some time after it was sent away or lost, and keeps all that it hears, in order.

    Args:
        place: Where it connects.
        client: Whose it is.
        pause: Seconds until it comes back.
    """

    def __init__(self, place: Place, client: int, pause: float = 0.0) -> None:
        self.client = client
        self.texts: list[str] = []
        self.connections = 0
        self._place, self._pause = place, pause
        self._task = asyncio.create_task(self._stay())

    async def _stay(self) -> None:
        while True:
            terminal = await self._place.connect(self.client)
            self.connections += 1
            try:
                while True:
                    self.texts.append(await terminal.next(60))
            except Ended as ended:
                assert ended.args[0] in (1012, None)
            finally:
                await terminal.close()
            await asyncio.sleep(self._pause)

    @property
    def numbers(self) -> list[int]:
        return [int(text) for text in self.texts if text.isdigit()]

    async def leave(self) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task


class Publisher:
    """Publishes numbers to everybody, to each client and to their channel in turn, until told to stop."""

    def __init__(self, place: Place, clients: range, *, sender: int = 0, channel: bool = True) -> None:
        self.sent = 0
        self.times: list[float] = []
        self._stop = False
        self._task = asyncio.create_task(asyncio.to_thread(self._run, place, clients, sender, channel))

    def _run(self, place: Place, clients: range, sender: int, channel: bool) -> None:
        with ImHelper(place.redis.url) as helper:
            while not self._stop:
                self.times.append(time.time())
                if sender:
                    helper.send_message(sender, list(clients), self.sent, receipt=True)
                elif self.sent % 3 == 0:
                    helper.send_broadcast_message(self.sent)
                elif self.sent % 3 == 1 or not channel:
                    helper.send_message(0, list(clients), self.sent)
                else:
                    helper.send_chan_message(0, "room", self.sent)
                self.sent += 1
                time.sleep(0.002)

    async def stop(self) -> None:
        self._stop = True
        await self._task


async def everybody_has(movers: list[Mover], publisher: Publisher) -> None:
    last = publisher.sent - 1
    await until(lambda: all(last in mover.numbers[-3:] for mover in movers), f"all have the last one, {last}", 30)


async def arrive(place: Place, pauses: dict[int, float]) -> list[Mover]:
    movers = [Mover(place, client, pause) for client, pause in pauses.items()]
    for client in pauses:
        join(place.redis, NAMES, client, "room")
    await until(lambda: all(mover.connections for mover in movers))
    return movers


@pytest.mark.parametrize("change", ["", PAUSES["with the name"], PAUSES["when it accepts"]])
async def test_who_moves_gets_each_message_once_and_in_order_and_also_what_came_on_the_way(
    change: str, redis_server: RedisServer
) -> None:
    """The drain takes longer than the grace, some come back late, and some leave and come at the wrong moment."""
    with serving(redis_server, *STREAM, "--drain", "4", "--stream-grace", "2") as (place, old):
        movers = await arrive(place, {client: (0.0, 0.3, 1.2)[client % 3] for client in range(1, 31)})
        publisher = Publisher(place, range(1, 31))
        await until(lambda: publisher.sent > 300, "messages", 30)
        new = place.start(change=change)
        new.banner()
        for _ in range(3):  # one that comes and goes at the new one is its business alone
            terminal = await place.connect(50)
            await terminal.close()
            await asyncio.sleep(0.2)
        assert await asyncio.to_thread(old.wait) == 0
        await until(lambda: all(mover.connections == 2 for mover in movers), "all have moved", 30)
        await asyncio.sleep(0.5)
        await publisher.stop()
        await everybody_has(movers, publisher)
        for mover in movers:
            first = mover.numbers[0]
            assert mover.numbers == list(range(first, publisher.sent)), f"client {mover.client}"
            await mover.leave()
        # The position is the new one's.
        position = NAMES.position(place.name)
        await until(lambda: redis_server.command("GET", position).endswith(b" %d" % publisher.sent), "it is written")


async def test_who_has_more_than_one_connection_gets_nothing_twice_on_one(redis_server: RedisServer) -> None:
    with serving(redis_server, *STREAM, "--drain", "3") as (place, old):
        movers = [Mover(place, 1 + number // 3, 0.1 * (number % 2)) for number in range(30)]
        await until(lambda: all(mover.connections for mover in movers))
        publisher = Publisher(place, range(1, 11))
        new = place.start()
        new.banner()
        assert await asyncio.to_thread(old.wait) == 0
        await until(lambda: all(mover.connections == 2 for mover in movers), "all have moved", 30)
        await publisher.stop()
        with ImHelper(place.redis.url) as helper:
            helper.send_broadcast_message(10**6)
        await until(lambda: all(mover.numbers[-1:] == [10**6] for mover in movers), "all have the last one", 30)
        for mover in movers:
            assert mover.numbers == sorted(set(mover.numbers))
            await mover.leave()


async def test_each_receipt_comes_once_while_sender_and_receivers_move(redis_server: RedisServer) -> None:
    with serving(redis_server, *STREAM, "--drain", "3") as (place, old):
        movers = await arrive(place, dict.fromkeys(range(1, 6), 0.2))
        [sender] = await arrive(place, {100: 0.2})
        publisher = Publisher(place, range(1, 6), sender=100)
        await until(lambda: publisher.sent > 50, "messages", 30)
        new = place.start(change=PAUSES["with the name"])
        new.banner()
        assert await asyncio.to_thread(old.wait) == 0
        await until(lambda: all(mover.connections == 2 for mover in (*movers, sender)), "all have moved", 30)
        await publisher.stop()
        await everybody_has(movers, publisher)
        for mover in movers:
            assert mover.numbers == list(range(publisher.sent))
        await until(lambda: len(sender.texts) >= 5 * publisher.sent, "all receipts", 30)
        await asyncio.sleep(0.5)
        receipts = [json.loads(text)["content"] for text in sender.texts]
        assert sorted(map(int, receipts)) == sorted(5 * list(range(publisher.sent)))
        for mover in (*movers, sender):
            await mover.leave()


async def test_when_the_old_process_is_killed_nothing_is_missing_and_only_the_last_moment_comes_twice(
    redis_server: RedisServer,
) -> None:
    with serving(redis_server, *STREAM, "--drain", "60") as (place, old):
        movers = await arrive(place, dict.fromkeys(range(1, 11), 0.2))
        publisher = Publisher(place, range(1, 11), channel=False)  # a channel ends with the last connection
        new = place.start()
        new.banner()
        await asyncio.sleep(5)  # far more than that moment
        old.process.kill()
        killed = time.time()
        await until(lambda: all(mover.connections == 2 for mover in movers), "all have come back", 30)
        await publisher.stop()
        await everybody_has(movers, publisher)
        for mover in movers:
            assert sorted(set(mover.numbers)) == list(range(mover.numbers[0], publisher.sent))
            twice = {number for number in mover.numbers if mover.numbers.count(number) > 1}
            assert all(publisher.times[number] > killed - 2.5 for number in twice)
            await mover.leave()


async def test_receipts_that_wait_for_clients_since_the_start_are_answered_by_the_old_process(
    redis_server: RedisServer,
) -> None:
    with serving(redis_server, *STREAM, "--drain", "60") as (place, _):
        [sender] = await arrive(place, {7: 0.0})
        with ImHelper(place.redis.url) as helper:
            helper.send_message(7, [8], "x", receipt=True)
        await asyncio.sleep(1)
        assert sender.texts == [], "it waits for the client"
        place.start().banner()
        await until(lambda: sender.texts, "the receipt")
        await asyncio.sleep(2)
        assert [json.loads(text)["receipt"] for text in sender.texts] == ["用户不在线"]
        await sender.leave()


async def test_a_successor_that_ends_before_it_serves_leaves_no_grace_behind(redis_server: RedisServer) -> None:
    with serving(redis_server, *STREAM, "--stream-grace", "0.2", "--drain", "1") as (place, old):
        await asyncio.sleep(1)
        new = place.start(change=PAUSES["with the name"])
        await until(lambda: redis_server.command("HLEN", NAMES.shares) == 2, "the new process has the name")
        new.process.kill()
        old.logged("the successor ended before it served")
        with ImHelper(place.redis.url) as helper:
            helper.send_message(0, [8], "x")
            terminal = await place.connect(8)
            helper.send_message(0, [8], "y")
        assert await terminal.next() == '"y"', "nothing older than itself"
        await terminal.close()
