"""An upgrade under load, seen from terminals and apps: nobody is refused, nothing is lost, nobody goes offline."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.certificates import Certificates
from tests.docs.pages import Page
from tests.faults.nodes import Events, no_ghosts, tell_channel
from tests.handover.pairs import GRACE, PAUSES, Guest, Place, end, serving
from tests.membership.terminals import NAMES, Ended, Terminal, request
from tests.node.harness import channel_message, direct, join, running, until
from tests.node.scrape import fetch
from tests.servers import RedisServer, encode_command

ARRIVALS = 400
GUESTS = 30


async def arrive(place: Place, client: int, done: list[int]) -> None:
    """Connect until a message has come: an instance that drains may send the terminal away before that."""
    while True:
        terminal = await place.connect(client)
        place.tell(direct([client], client))
        try:
            assert json.loads(await terminal.next()) == client
        except Ended as ended:
            assert ended.args[0] == 1012
        else:
            done.append(client)
            return
        finally:
            await terminal.close()


async def test_of_400_connections_opened_through_a_hand_over_none_is_refused_or_lost(redis_server: RedisServer) -> None:
    with serving(redis_server, "--drain", "1") as (place, old):
        done: list[int] = []
        arriving = []
        new = None
        for client in range(1, ARRIVALS + 1):
            arriving.append(asyncio.create_task(arrive(place, client, done)))
            if client == ARRIVALS // 8:
                new = place.start()
            await asyncio.sleep(0.01 if old.process.poll() is None else 0)
        await asyncio.gather(*arriving)  # a refused or a lost connection is an exception in it
        assert sorted(done) == list(range(1, ARRIVALS + 1))
        assert await asyncio.to_thread(old.wait) == 0
        assert new is not None
        new.logged("hands the node .* over")
        async with asyncio.timeout(10):
            again = await place.connect(1)
            await again.close()


async def test_each_connection_hears_all_from_its_101_to_its_end_in_order_and_once(redis_server: RedisServer) -> None:
    with serving(redis_server, "--drain", "3") as (place, old):
        number = 0
        times = [time.monotonic()]
        guests = [Guest(place, client, lambda: number) for client in range(1, GUESTS + 1)]
        for guest in guests:
            join(redis_server, NAMES, guest.client, "room")
        await until(lambda: all(guest.connections for guest in guests))
        new = place.start()
        kinds = (
            lambda text: channel_message(None, text),
            lambda text: direct(range(1, GUESTS + 1), text),
        )
        with redis_server.wire() as wire:
            deadline = time.monotonic() + 60
            while not (old.process.poll() is not None and all(len(guest.connections) == 2 for guest in guests)):
                assert time.monotonic() < deadline
                burst = range(number, number + 20)
                wire.sock.sendall(
                    b"".join(
                        encode_command(("PUBLISH", NAMES.server(place.name), kinds[each % 2](each))) for each in burst
                    )
                )
                number += len(burst)
                times += [time.monotonic()] * len(burst)
                for _ in burst:
                    wire.read()
                await asyncio.sleep(0.005)
        place.tell(direct(range(1, GUESTS + 1), number))
        await until(lambda: all(guest.connections[-1][1][-1:] == [number] for guest in guests), "all have the last one")
        for guest in guests:
            guest.check(number)
            assert guest.codes == [1012]
            # What was published a moment before the end may be behind the Close frame.
            [(published, last)] = guest.ends
            assert times[published] - times[min(last + 1, published)] < 1.5, "it heard all up to its end"
            await guest.leave()
        assert old.wait() == 0
        assert new.process.poll() is None


async def test_who_comes_back_never_was_offline_and_keeps_its_channels_and_who_does_not_is_offline_once(
    redis_server: RedisServer,
) -> None:
    with serving(redis_server, "--drain", "1") as (place, old):
        for client in range(1, 41):
            join(redis_server, NAMES, client, "room")
        guests = [Guest(place, client, lambda: 0) for client in range(1, 31)]
        leaving = [await place.connect(client) for client in range(31, 41)]
        second = [await place.connect(client) for client in (31, 1)]  # more than one connection of a client
        await until(lambda: all(guest.connections for guest in guests))
        async with Events(redis_server) as events:
            new = place.start()
            new.banner()
            assert await asyncio.to_thread(old.wait) == 0
            ended = time.monotonic()
            for terminal in (*leaving, *second):
                with pytest.raises(Ended):
                    await terminal.next()
                await terminal.close()
            await until(lambda: len(events.offline) >= 10, "those who did not come back", 30)
            assert time.monotonic() - ended > GRACE / 2, "they had time to come back"
            await asyncio.sleep(GRACE)
            assert sorted(events.offline) == [(client, 0) for client in range(31, 41)]
            assert {client for client, _ in events.online} == set(range(1, 31))
        no_ghosts(redis_server, range(1, 31), "room")
        assert redis_server.command("EXISTS", NAMES.gone) == 0
        tell_channel(redis_server, [place.name], "room", 7)
        await until(lambda: all(guest.connections[-1][1] == [7] for guest in guests), "the room is complete")
        for guest in guests:
            await guest.leave()


async def test_the_sender_rule_counts_connections_over_both_and_each_receipt_is_answered_once(
    redis_server: RedisServer,
) -> None:
    def receipt(outcome: str) -> str:
        return json.dumps({"content": '"m"', "receipt": outcome}, ensure_ascii=False, separators=(",", ":"))

    with serving(redis_server, "--drain", "60") as (place, old):
        first = await place.connect(100)  # the first that is sent away, at once
        at_old = {client: await place.connect(client) for client in (1, 2, 3)}
        new = place.start()
        new.banner()
        with pytest.raises(Ended):
            await first.next()
        await first.close()
        at_new = {client: await place.connect(client) for client in (1, 4)}

        async def heard(terminal: Terminal, client: int) -> list[str]:
            """Return what has come up to now, known by a fence."""
            place.tell(direct([client], "fence"))
            texts = []
            while (text := await terminal.next()) != '"fence"':
                texts.append(text)
            return texts

        await asyncio.sleep(0.5)  # until the two have told each other
        place.tell(direct([1, 2, 4], "m", sender=1))
        place.tell(channel_message(None, "b", sender=1))
        place.tell(channel_message(None, "b", sender=2))
        # Client 1 is its own sender and has a connection at each; client 2 has one.
        assert await heard(at_old[1], 1) == ['"m"', '"b"', '"b"']
        assert await heard(at_new[1], 1) == ['"m"', '"b"', '"b"']
        assert await heard(at_old[2], 2) == ['"m"', '"b"']
        assert await heard(at_new[4], 4) == ['"m"', '"b"', '"b"']
        await asyncio.sleep(0.2)  # the second fence of client 1
        for terminal in (*at_old.values(), *at_new.values()):
            while terminal.waiting():
                await terminal.next()
        # From each to each, and to nobody.
        place.tell(direct([1, 2, 4, 99], "m", sender=3, receipt=True))
        place.tell(direct([2, 3, 98], "m", sender=4, receipt=True))
        await asyncio.sleep(0.5)
        sent, offline = receipt("发送成功"), receipt("用户不在线")
        assert sorted(await heard(at_old[3], 3)) == sorted(['"m"', sent, sent, sent, offline])
        assert sorted(await heard(at_new[4], 4)) == sorted(['"m"', sent, sent, offline])
        for terminal in (*at_old.values(), *at_new.values()):
            await terminal.close()
        assert await asyncio.to_thread(old.wait, 10) == 0  # it does not wait for nobody


async def test_who_comes_to_the_old_process_while_the_new_one_starts_counts_for_receipts(
    redis_server: RedisServer,
) -> None:
    with serving(redis_server, "--drain", "60") as (place, _):
        first = await place.connect(100)
        # It knows the clients of the old process already, and does not serve yet.
        new = place.start(change=PAUSES["with the name"])
        await until(lambda: redis_server.command("HLEN", NAMES.shares) == 2, "the new process has the name")
        late = await place.connect(7)
        new.banner()
        with pytest.raises(Ended):
            await first.next()
        await first.close()
        asker = await place.connect(8)
        place.tell(direct([7], "m", sender=8, receipt=True))
        assert json.loads(await asker.next())["receipt"] == "发送成功"
        for terminal in (late, asker):
            await terminal.close()


async def test_the_probe_of_another_instance_is_not_taken_for_ones_own(redis_server: RedisServer) -> None:
    async with running(redis_server) as run, running(redis_server, node="other", nodes=(), prefix="p") as other:
        assert run.node._presence._beats != other.node._presence._beats
        peer, session = await run.connect(1), run.node._session
        before = session._last_probe
        run.publish(f"__FreeIM__(Probe){run.node._presence._beats + 1}")
        assert await peer.fence() == []
        assert session._last_probe == before
        session.beat_now()
        await until(lambda: session._last_probe > before, "its own is heard")


async def test_receipts_pass_from_one_to_the_other_without_a_gap_or_a_double(redis_server: RedisServer) -> None:
    with serving(redis_server, "--drain", "60") as (place, _):
        await (await place.connect(100)).close()
        guests = {client: await place.connect(client) for client in (1, 2)}
        new = place.start()
        asked = 0
        while "freeim" not in new.stdout:
            assert new.process.poll() is None, new.stderr
            place.tell(direct([50], asked, sender=2, receipt=True))
            asked += 1
            await asyncio.sleep(0.002)
        assert asked > 20
        # The first of the two is sent away at once, when the other instance serves; the second hears everything.
        numbers: list[int] = []
        async with asyncio.timeout(10):
            while len(numbers) < asked:
                numbers.append(int(json.loads(await guests[2].next())["content"]))
        await asyncio.sleep(0.3)
        assert not guests[2].waiting()
        # Those of the two come in no order: each publishes for itself.
        assert sorted(numbers) == list(range(asked))
        for terminal in guests.values():
            await terminal.close()


async def test_a_connection_in_the_middle_of_its_handshake_is_served_by_the_old_process(
    redis_server: RedisServer,
) -> None:
    with serving(redis_server, "--handshake-timeout", "30") as (place, old):
        slow = [await asyncio.open_connection("127.0.0.1", place.port) for _ in range(5)]
        text = [request(place.token(client)) for client in range(1, 6)]
        for (_, writer), part in zip(slow, text, strict=True):
            writer.write(part[:40])
        await asyncio.sleep(0.2)
        new = place.start()
        new.banner()
        for (_, writer), part in zip(slow, text, strict=True):
            writer.write(part[40:])
        for reader, writer in slow:
            assert (await reader.readline()).startswith(b"HTTP/1.1 101 ")
            await end(writer)
        assert await asyncio.to_thread(old.wait) == 0
        terminal = await place.connect(6)
        await terminal.close()


async def test_the_users_of_redis_that_the_docs_give_are_enough_also_where_keys_cannot_be_tracked(
    own_redis_server: RedisServer,
) -> None:
    [block] = Page("docs/deployment.md").written_in("redis")
    for line in block.lines:
        own_redis_server.command(*line.split())
    own_redis_server.command("ACL", "SETUSER", "freeim-node", "-client")
    url = f"redis://freeim-node:SECRET@127.0.0.1:{own_redis_server.port}"
    with Place(own_redis_server, "--redis-url", url, "--drain", "5") as place:
        old = place.start()
        assert "by channel, as FreeIM does it" in old.banner()
        first, second = [await place.connect(client) for client in (1, 2)]
        join(own_redis_server, NAMES, 1, "room")
        new = place.start()
        new.banner()
        with pytest.raises(Ended):
            await first.next()
        await first.close()
        back = await place.connect(1)
        tell_channel(own_redis_server, [place.name], "room", "you are in it")
        assert await back.next() == '"you are in it"'
        place.tell(direct([1, 2, 3], "m", sender=2, receipt=True))
        await back.next()
        outcomes = [json.loads(await second.next())["receipt"] for _ in range(2)]
        assert outcomes == ["发送成功", "用户不在线"]
        with pytest.raises(Ended):
            await second.next()
        await second.close()
        assert await asyncio.to_thread(old.wait) == 0
        await back.close()
        assert "refused" not in old.stderr + new.stderr
        refused = {entry[entry.index(b"object") + 1] for entry in own_redis_server.command("ACL", "LOG")}
        assert refused <= {b"client", b"client|tracking"}  # servers call it by one name or the other


async def test_metrics_are_answered_throughout_at_the_same_address(redis_server: RedisServer) -> None:
    with Place(redis_server) as place:
        old = place.start(change="from freeim.node import admin\nvars(admin).update(ANSWER_SECONDS=30.0)")
        url = next(line.split()[1] for line in old.banner().splitlines() if "metrics" in line)
        reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(url).port)
        writer.write(b"GET /metrics HTTP/1.1\r\n")
        new = place.start()
        pages = 0
        deadline = time.monotonic() + 20
        while not new.stdout:
            assert time.monotonic() < deadline
            page, _ = await asyncio.to_thread(fetch, url)
            assert b"freeim_node_info" in page
            pages += 1
        assert pages > 3
        writer.write(b"Host: x\r\n\r\n")  # whoever had come to the old process gets its answer
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
        await end(writer)
        assert await asyncio.to_thread(old.wait) == 0
        assert url in new.banner()
        fetch(url)


async def test_a_node_with_tls_is_handed_over_too(redis_server: RedisServer, tmp_path: Path) -> None:
    certificates = Certificates(tmp_path)
    with Place(
        redis_server,
        "--tls-cert",
        str(certificates.cert),
        "--tls-key",
        str(certificates.key),
        "--drain",
        "1",
        "--handshake-timeout",
        "30",
    ) as place:
        old = place.start()
        old.banner()
        slow = socket.create_connection(("127.0.0.1", place.port))  # accepted by the old process; no TLS yet
        slow.setblocking(False)
        new = None
        for client in range(1, 101):
            reader, writer = await asyncio.open_connection("127.0.0.1", place.port, ssl=certificates.trust)
            writer.write(request(place.token(client)))
            assert (await reader.readline()).startswith(b"HTTP/1.1 101 ")
            await end(writer)
            if client == 10:
                new = place.start()
            await asyncio.sleep(0.02)
        assert new is not None
        new.banner()
        reader, writer = await asyncio.open_connection(sock=slow, ssl=certificates.trust, server_hostname="127.0.0.1")
        writer.write(request(place.token(200)))
        assert (await reader.readline()).startswith(b"HTTP/1.1 101 ")
        await end(writer)
        assert await asyncio.to_thread(old.wait) == 0


async def test_a_third_process_can_follow_once_all_is_quiet_and_not_before(redis_server: RedisServer) -> None:
    with Place(redis_server) as place:
        place.start().banner()
        second = place.start()
        second.banner()
        early = place.start()
        assert await asyncio.to_thread(early.wait) == 2
        assert "try again later" in early.stderr
        await asyncio.sleep(GRACE + 0.5)
        third = place.start()
        third.banner()
        assert await asyncio.to_thread(second.wait) == 0
        third.tell(signal.SIGTERM)
        assert await asyncio.to_thread(third.wait) == 0
        assert place.files() == []
        assert redis_server.command("KEYS", "*Lease*") == []
        assert redis_server.hash(NAMES.shares) == {}
