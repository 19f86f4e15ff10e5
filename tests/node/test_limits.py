"""Limits: who is one too many is refused or cut with the right code, and nobody else notices."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freeim.node.address_limits import AddressLimits, network_of
from tests.node.harness import Raw, Running, direct, frame, head, running, told, until
from tests.servers import RedisServer

PLAIN = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"


async def status_of(run: Running, client: int) -> int:
    """Try to connect, without leaving a connection behind where it fails."""
    return await status_with(run, run.token(client))


async def status_with(run: Running, token: str) -> int:
    raw = await run.raw()
    raw.send(run.request(token))
    status = (await raw.response())[0]
    if status != 101:
        raw.close()
    return status


async def from_address(run: Running, address: str) -> Raw:
    """Open a plain connection from another address of this machine (Linux has all of 127.0.0.0/8)."""
    sock = socket.socket()
    sock.bind((address, 0))
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", run.node.port))
    raw = Raw(*await asyncio.open_connection(sock=sock))
    run._raw.append(raw)
    return raw


# ---- of a node


async def test_a_full_node_refuses_with_503_answers_probes_and_takes_the_next_when_one_leaves(
    redis_server: RedisServer,
) -> None:
    async with running(redis_server, max_connections=2) as run:
        assert "up to 2 (" in run.node.banner()
        first, second = await run.connect(1), await run.connect(2)
        token = run.token(3)
        status, headers, body = await run.http(run.request(token))
        assert status == 503
        assert headers["retry-after"] == "10"
        assert b"2 connections" in body
        assert (await run.http(PLAIN))[0] == 200
        await first.close()
        await until(lambda: run.node._connections.accepted == 1)
        assert await status_with(run, token) == 101, "the token is still good"
        run.publish(direct([2], "hi"))
        assert await second.next() == '"hi"'


async def test_of_many_that_come_for_the_last_places_no_more_get_in(own_redis_server: RedisServer) -> None:
    async with running(own_redis_server, max_connections=3) as run:
        tokens = [run.token(client) for client in range(1, 11)]
        raws = [await run.raw() for _ in tokens]
        own_redis_server.pause()
        try:
            for raw, token in zip(raws, tokens, strict=True):
                raw.send(run.request(token))
            handshakes = run.node._connections._handshakes
            await until(lambda: all(handshake.token for handshake in handshakes.things()), "all ask Redis")
        finally:
            own_redis_server.resume()
        statuses = [(await raw.response())[0] for raw in raws]
        assert sorted(statuses) == [101] * 3 + [503] * 7
        await run.settled()
        assert len(run.online) == 3


async def test_a_limit_beyond_the_descriptors_is_told_at_the_start(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(redis_server, max_connections=2**31 - 1) as run:
        assert any("--max-connections is 2147483647" in line for line in told(caplog, logging.WARNING))
        assert f"up to {run.node._acceptor.capacity:,} (" in run.node.banner()


# ---- of a client


async def test_a_client_may_have_any_number_of_connections_by_default(redis_server: RedisServer) -> None:
    async with running(redis_server) as run:
        assert [await status_of(run, 1) for _ in range(20)] == [101] * 20
        assert run.online == {"1": "20"}


async def test_one_connection_too_many_of_a_client_is_refused_and_its_token_stays_good(
    redis_server: RedisServer,
) -> None:
    async with running(redis_server, max_per_client=2) as run:
        first, _second = await run.connect(1), await run.connect(1)
        token = run.token(1)
        status, _, body = await run.http(run.request(token))
        assert status == 429
        assert b"2 connections" in body
        assert await status_of(run, 2) == 101, "others have a limit of their own"
        await first.close()
        await until(lambda: run.online == {"1": "1", "2": "1"})
        assert await status_with(run, token) == 101


async def test_of_many_that_race_for_a_clients_last_place_one_gets_in(own_redis_server: RedisServer) -> None:
    async with running(own_redis_server, max_per_client=1) as run:
        tokens = [run.token(1) for _ in range(5)]
        raws = [await run.raw() for _ in tokens]
        own_redis_server.pause()
        try:
            for raw, token in zip(raws, tokens, strict=True):
                raw.send(run.request(token))
            handshakes = run.node._connections._handshakes
            await until(lambda: all(handshake.token for handshake in handshakes.things()), "all ask Redis")
        finally:
            own_redis_server.resume()
        assert sorted([(await raw.response())[0] for raw in raws]) == [101, 429, 429, 429, 429]


async def test_a_newer_login_replaces_the_oldest_with_4001_and_the_client_stays_a_member(
    redis_server: RedisServer,
) -> None:
    options = {"max_per_client": 2, "per_client_policy": "replace-oldest"}
    async with running(redis_server, **options) as run, run.events() as events:
        run.join(1, "room")
        oldest, second = await run.connect(1), await run.connect(1)
        other = await run.connect(2)
        newest = await run.connect(1)
        assert await oldest.ended() == (4001, "replaced by a newer login")
        await until(lambda: run.online == {"1": "2", "2": "1"})
        heard = [payload for _, payload in await events.next(5)]
        assert [payload[payload.index("Item3") + 7 : -1] for payload in heard] == ["1", "2", "1", "3", "2"]
        assert redis_server.hash(run.names.chan("room")) == {"1": "0"}
        run.publish(direct([1, 2], "hi"))
        assert [await peer.next() for peer in (second, other, newest)] == ['"hi"'] * 3


async def test_a_storm_of_logins_leaves_the_newest_alone(redis_server: RedisServer) -> None:
    async with running(redis_server, max_per_client=1, per_client_policy="replace-oldest") as run:
        raws = [await run.raw() for _ in range(20)]
        for raw in raws:
            raw.send(run.request(run.token(1)))
        for raw in raws:
            assert (await raw.response())[0] == 101
        # In which order the node reads twenty requests of one moment is its own business.
        ends = [asyncio.create_task(raw.answer_close()) for raw in raws]
        await until(lambda: sum(end.done() for end in ends) == 19)
        await until(lambda: run.online == {"1": "1"})
        (last,) = [raw for raw, end in zip(raws, ends, strict=True) if not end.done()]
        reading = ends.pop(raws.index(last))
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        assert {end.result() for end in ends} == {(4001, "replaced by a newer login")}
        assert list(run.node._connections.living) == [20], "the one that was counted last"
        run.publish(direct([1], "hi"))
        assert await last.frame() == (1, b'"hi"')


async def test_a_used_token_replaces_nobody(own_redis_server: RedisServer) -> None:
    async with running(own_redis_server, max_per_client=1, per_client_policy="replace-oldest") as run:
        old = await run.connect(1)
        token = run.token(1)
        raws = [await run.raw() for _ in range(3)]
        for raw in raws:
            raw.send(run.request(token))
        statuses = [(await raw.response())[0] for raw in raws]
        assert sorted(statuses) == [101, 401, 401]
        assert await old.ended() == (4001, "replaced by a newer login")
        winner = raws[statuses.index(101)]
        for _ in range(3):
            assert await status_with(run, token) == 401
        run.publish(direct([1], "hi"))
        assert await winner.frame() == (1, b'"hi"')


# ---- of an address


async def test_one_address_has_its_number_of_sockets_and_others_have_theirs(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with running(redis_server, max_per_address=3) as run:
        peers = [await run.connect(client) for client in (1, 2, 3)]
        status, headers, _ = await run.http(run.request(run.token(4)))
        assert status == 429
        assert headers["retry-after"] == "10"
        assert (await run.http(head("/other")))[0] == 404, "the statuses keep their order"
        assert (await run.http(head("/ws", Upgrade=None)))[0] == 426
        assert (await run.http(head("/ws")))[0] == 429
        assert (await run.http(PLAIN))[0] == 200
        raw = await from_address(run, "127.0.0.2")
        raw.send(run.request(run.token(4)))
        assert (await raw.response())[0] == 101
        await peers[0].close()
        await until(lambda: run.node._connections.accepted == 3)
        assert await status_of(run, 5) == 101


async def test_sockets_that_send_nothing_count_and_beyond_twice_the_number_they_are_cut(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with running(redis_server, max_per_address=3, handshake_timeout=60) as run:
        silent = [await run.raw() for _ in range(6)]
        await until(lambda: run.node._connections.accepted == 6)
        for _ in range(5):
            beyond = await run.raw()
            with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
                await beyond.response()
        assert any("far more than --max-per-address" in line for line in told(caplog))
        raw = await from_address(run, "127.0.0.2")
        raw.send(run.request(run.token(4)))
        assert (await raw.response())[0] == 101
        for each in silent:
            each.close()
        await until(lambda: run.node._connections.accepted == 1)
        assert await status_of(run, 5) == 101


async def test_requests_of_one_address_in_a_second_are_limited_and_wrong_tokens_count(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with running(redis_server, handshakes_per_address=5) as run:
        raws = [await run.raw() for _ in range(100)]
        begun = time.monotonic()
        for raw in raws:
            raw.send(head("/ws?token=wrong"))
        answers = [await raw.response() for raw in raws]
        seconds = time.monotonic() - begun
        statuses = [status for status, _, _ in answers]
        # The second may have been over in between, more than once on a busy machine.
        assert 5 <= statuses.count(401) <= 5 * (seconds + 2)
        assert statuses.count(401) + statuses.count(429) == 100
        assert {headers["retry-after"] for status, headers, _ in answers if status == 429} == {"1"}
        lines = [line for line in told(caplog) if "with 429" in line]
        assert len(lines) == 20, "the others are told as a number"
        run.node._connections.tell_rest()
        assert f"a limit refused or cut {statuses.count(429) - 20} more connections" in told(caplog)
        deadline = time.monotonic() + 10
        while await status_of(run, 1) != 101:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("a unix socket", "a unix socket"),
    ],
)
def test_an_ipv6_network_is_one_address(address: str, network: str) -> None:
    assert network_of(address) == network


addresses = st.ip_addresses(v=4).map(str) | st.ip_addresses(v=6, network="2001:db8::/62").map(str)


@given(st.lists(st.tuples(addresses, st.sampled_from(["enter", "leave", "hand over"])), max_size=60))
def test_what_is_counted_is_what_is_open(steps: list[tuple[str, str]]) -> None:
    limits = AddressLimits(3, 0)
    open_: dict[object, str] = {}
    for address, step in steps:
        if step == "enter":
            holder = object()
            open_[holder] = network_of(address)
            same = sum(network == open_[holder] for network in open_.values())
            assert limits.enter(holder, address) == (same <= 6)
        elif open_:
            oldest, *_ = open_
            network = open_.pop(oldest)
            if step == "leave":
                limits.leave(oldest)
                limits.leave(oldest)
            else:
                open_[successor := object()] = network
                limits.hand_over(oldest, successor)
    for holder in open_:
        limits.leave(holder)
    assert not limits._open
    assert not limits._networks


def test_the_network_of_an_ipv4_address_in_ipv6_is_that_of_ipv4() -> None:
    for number in (0, 1, 2**32 - 1):
        four = ipaddress.IPv4Address(number)
        assert network_of(f"::ffff:{four}") == network_of(str(four)) == str(four)


# ---- of what a terminal sends


async def sent_until_closed(raw: Raw, data: bytes) -> tuple[int, str]:
    raw.send(data)
    return await raw.closed_with()


@pytest.mark.parametrize(
    "data",
    [frame(10) * 2000, frame(9, b"x" * 100) * 200, frame(1, b"x" * 1000) * 20],
    ids=["pongs", "pings", "messages"],
)
async def test_a_terminal_that_sends_too_much_in_a_second_is_closed_with_1009(
    redis_server: RedisServer, data: bytes
) -> None:
    async with running(redis_server, inbound_rate=5000) as run:
        other = await run.connect(2)
        raw = await run.raw_client(1)
        for start in range(0, len(data), 1000):
            raw.send(data[start : start + 1000])
            await asyncio.sleep(0)
        while True:
            opcode, payload = await raw.frame()
            if opcode == 8:
                break
            assert opcode == 10, "pongs to those pings that were still allowed"
        assert payload == (1009).to_bytes(2, "big") + b"too much sent in a second"
        raw.close()
        await until(lambda: run.online == {"2": "1"})
        run.publish(direct([2], "hi"))
        assert await other.next() == '"hi"'


async def test_a_terminal_that_sends_less_is_not_closed_however_long_it_does(redis_server: RedisServer) -> None:
    async with running(redis_server, inbound_rate=4096) as run:
        raw = await run.raw_client(1)
        for _ in range(3):
            raw.send(frame(1, b"x" * 1500))
            raw.send(frame(9, b"ping"))
            assert await raw.frame() == (10, b"ping")
            await asyncio.sleep(1.2)  # the limit is one of time
        run.publish(direct([1], "hi"))
        assert await raw.frame() == (1, b'"hi"')


async def test_without_a_limit_a_terminal_may_send_any_amount(redis_server: RedisServer) -> None:
    async with running(redis_server, inbound_rate=0) as run:
        raw = await run.raw_client(1, frame(1, b"x" * 1000) * 1000 + frame(9, b"end"))
        assert await raw.frame() == (10, b"end")


def test_a_rate_below_one_message_is_refused() -> None:
    from freeim.config import Options
    from freeim.errors import ConfigError

    values: dict[str, Any] = {"inbound_rate": 4095, "max_inbound": 4096}
    with pytest.raises(ConfigError, match="inbound_rate") as caught:
        Options(**values)
    assert caught.value.fields == ("inbound_rate", "max_inbound")
