"""The way in: a token works once, what comes with the request counts, and who vanishes leaves nothing behind."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from freeim._core import Connection
from tests.node.harness import (
    KEY,
    Raw,
    Running,
    bounded,
    channel_message,
    close_payload,
    direct,
    frame,
    head,
    running,
    token_json,
    told,
    until,
)
from tests.servers import RedisServer

ACCEPT = base64.b64encode(hashlib.sha1(KEY.encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()).decode()


async def assert_no_trace(run: Running) -> None:
    """Nobody is counted, and nobody is held in the node."""
    await until(lambda: run.online == {} and run.share == {}, "an empty presence")
    await until(lambda: not run.node._connections.living and not run.node._bus.router.clients)
    assert run.node._bus.router.window_size == 0
    assert run.node._bus.router.pending_count == 0


async def test_a_good_token_opens_a_websocket(redis_server: RedisServer) -> None:
    async with running(redis_server) as run:
        raw = await run.raw()
        raw.send(run.request(run.token(1)))
        status, headers, _ = await raw.response()
        assert status == 101
        assert headers["upgrade"].lower() == "websocket"
        assert headers["connection"].lower() == "upgrade"
        # The test's helper lowers the case of values.
        assert headers["sec-websocket-accept"] == ACCEPT.lower()
        assert "sec-websocket-extensions" not in headers
        run.publish(direct([1], "hi"))
        assert await raw.frame() == (1, b'"hi"')


@pytest.mark.parametrize(
    ("what", "changed"),
    [
        ("as Firefox sends it", {"Connection": "keep-alive, Upgrade"}),
        ("in lower case", {"Connection": "upgrade", "Upgrade": "websocket"}),
        ("in upper case", {"Connection": "UPGRADE", "Upgrade": "WebSocket"}),
        ("with spaces", {"Connection": " \tUpgrade \t", "Upgrade": "  websocket "}),
        ("with more protocols", {"Upgrade": "h2c, websocket"}),
        ("with an offer of compression", {"Sec_WebSocket_Extensions": "permessage-deflate; client_max_window_bits"}),
        ("with another site's origin", {"Origin": "https://example.com"}),
        ("with no Content-Length to speak of", {"Content_Length": "0"}),
    ],
)
async def test_the_headers_of_real_clients_are_understood(
    redis_server: RedisServer, what: str, changed: dict[str, str]
) -> None:
    async with running(redis_server) as run:
        raw = await run.raw()
        raw.send(head(f"/ws?token={run.token(1)}", **changed))
        assert (await raw.response())[0] == 101, what
        run.publish(direct([1], "hi"))
        assert await raw.frame() == (1, b'"hi"')


async def test_header_names_have_no_case_and_several_lines_are_one(redis_server: RedisServer) -> None:
    async with running(redis_server) as run:
        raw = await run.raw()
        request = head(f"/ws?token={run.token(1)}", "Connection: keep-alive")
        raw.send(b"\r\n" + request.replace(b"Upgrade:", b"uPGRADE:").replace(b"Sec-WebSocket", b"sec-websocket"))
        assert (await raw.response())[0] == 101


async def test_the_token_may_be_escaped_and_stand_anywhere_in_the_query(redis_server: RedisServer) -> None:
    async with running(redis_server) as run:
        for target in ("/ws?a=1&token={}&b=2", "/ws?&&token={}", "/ws?token=%{:x}{}"):
            token = run.token(1)
            text = target.format(ord(token[0]), token[1:]) if "{:x}" in target else target.format(token)
            raw = await run.raw()
            raw.send(head(text))
            assert (await raw.response())[0] == 101, text


async def test_a_request_in_single_bytes_is_read(redis_server: RedisServer) -> None:
    async with running(redis_server) as run:
        raw = await run.raw()
        parser = run.node._connections
        for count, byte in enumerate(run.request(run.token(1)) + frame(9, b"ping"), 1):
            raw.send(bytes([byte]))
            if count % 8 == 0:
                await bounded(run.node._session.call("PING"))  # lets the node read what there is
        assert (await raw.response())[0] == 101
        assert await raw.frame() == (10, b"ping")
        assert parser.accepted == 1


async def test_a_token_opens_one_connection_and_no_second(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with running(redis_server) as run:
        token = run.token(1)
        peer = await run.connect_with(token, 1)
        with pytest.raises(InvalidStatus) as refused:
            await connect(run.url(token), proxy=None)
        assert refused.value.response.status_code == 401
        assert run.online == {"1": "1"}
        assert token not in "".join(told(caplog))
        run.publish(direct([1], "hi"))
        assert await peer.next() == '"hi"'


async def test_of_two_that_race_with_one_token_exactly_one_gets_in(redis_server: RedisServer) -> None:
    async with running(redis_server) as run, run.events() as events:
        for client in range(1, 11):
            token = run.token(client)
            raws = [await run.raw() for _ in range(3)]
            for raw in raws:
                raw.send(run.request(token))
            statuses = [(await raw.response())[0] for raw in raws]
            assert sorted(statuses) == [101, 401, 401]
            winner = raws[statuses.index(101)]
            await run.settled()
            assert run.online == {str(client): "1"}
            assert len(run.share) == 1
            run.publish(direct([client], "hi"))
            assert await winner.frame() == (1, b'"hi"')
            winner.send(frame(8, close_payload(1000)))
            await winner.closed_with()
            await assert_no_trace(run)
            heard = await events.next(2)
            assert [channel for channel, _ in heard] == [run.names.event_online, run.names.event_offline]


async def test_a_token_that_has_expired_is_unknown(redis_server: RedisServer) -> None:
    async with running(redis_server) as run:
        token = run.token(1)
        redis_server.command("PEXPIRE", run.names.token(token), 1)
        await until(lambda: redis_server.command("EXISTS", run.names.token(token)) == 0)
        assert (await run.http(run.request(token)))[0] == 401


async def test_a_refused_request_leaves_the_token_and_its_time_alone(redis_server: RedisServer) -> None:
    async with running(redis_server) as run:
        token = run.token(1)
        assert (await run.http(head(f"/ws?token={token}", Upgrade=None)))[0] == 426
        assert (await run.http(head(f"/other?token={token}")))[0] == 404
        assert 0 < redis_server.command("PTTL", run.names.token(token)) <= 10_000
        await run.connect_with(token, 1)


async def test_what_was_published_after_the_101_or_the_event_reaches_the_client(redis_server: RedisServer) -> None:
    async with running(redis_server) as run, run.events() as events:
        for client in range(1, 21):
            opening = asyncio.ensure_future(run.connect(client))
            await events.next()  # whoever hears of a client joins it and sends to it
            run.join(client, "room")
            run.publish(channel_message("room", "in"))
            run.publish(direct([client], "direct"))
            peer = await opening
            assert await peer.fence() == ['"in"', '"direct"']
            run.leave(client, "room")


async def test_channels_joined_before_the_connection_count(redis_server: RedisServer) -> None:
    async with running(redis_server) as run:
        run.join(1, "room")
        peer = await run.connect(1)
        run.publish(channel_message("room", "yo"))
        assert await peer.fence() == ['"yo"']


async def test_a_channel_that_chan_does_not_confirm_is_dropped_at_the_opening(redis_server: RedisServer) -> None:
    async with running(redis_server) as run:
        redis_server.command("HSET", run.names.client(1), "stale", 0)
        run.join(1, "room")
        peer = await run.connect(1)
        await peer.fence()
        run.publish(channel_message("stale", "no"))
        run.publish(channel_message("room", "yes"))
        assert await peer.fence() == ['"yes"']
        assert redis_server.hash(run.names.client(1)) == {"room": "0"}


async def test_frames_that_come_right_behind_the_request_are_answered(redis_server: RedisServer) -> None:
    async with running(redis_server, inbound_rate=0) as run:
        raw = await run.raw_client(1, frame(9, b"early") + frame(1, b"ignored") + frame(9, b"bird"))
        assert await raw.frame() == (10, b"early")
        assert await raw.frame() == (10, b"bird")
        closer = await run.raw_client(2, frame(8, close_payload(1000, b"bye")))
        assert (await closer.closed_with())[0] == 1000
        breaker = await run.raw_client(3, frame(1, b"x" * 5000))
        assert (await breaker.closed_with())[0] == 1009
        breaker.close()
        flood = await run.raw_client(4, frame(1, b"x" * 1000) * 1000 + frame(9, b"end"))
        assert await flood.frame() == (10, b"end")
        run.publish(direct([1, 4], "hi"))
        assert await raw.frame() == (1, b'"hi"')
        assert await flood.frame() == (1, b'"hi"')
        await until(lambda: run.online == {"1": "1", "4": "1"})


async def begin(run: Running, client: int) -> Raw:
    raw = await run.raw()
    raw.send(run.request(run.token(client)))
    return raw


async def test_a_terminal_that_drops_while_it_opens_leaves_no_ghost(own_redis_server: RedisServer) -> None:
    async with running(own_redis_server, handshake_timeout=5) as run, run.events() as events:
        connections = run.node._connections
        for round_, wait_for_open in enumerate((False, True) * 10, 1):
            own_redis_server.command("DEL", run.names.online)
            raw = await begin(run, round_)
            if wait_for_open:  # the token was read, and the opening is under way on both connections
                await until(
                    lambda: (connections._last_number and run.node._bus.router.clients) or not connections.accepted
                )
            raw.cut()
            await until(lambda: connections.accepted == 0, "the socket is gone")
            await assert_no_trace(run)
            heard = [channel for channel, _ in await events.heard()]
            # Either it never was, or it came and went.
            assert heard in ([], [run.names.event_online, run.names.event_offline])
            assert own_redis_server.command("EXISTS", run.names.client(round_)) == 0


async def test_a_terminal_that_drops_while_redis_is_silent_leaves_no_ghost(own_redis_server: RedisServer) -> None:
    async with running(own_redis_server) as run:
        tokens = [run.token(client) for client in range(1, 6)]
        raws = [await run.raw() for _ in tokens]
        own_redis_server.pause()
        try:
            for raw, token in zip(raws, tokens, strict=True):
                raw.send(run.request(token))
            handshakes = run.node._connections._handshakes
            await until(lambda: all(handshake.token for handshake in handshakes._due), "all look-ups are under way")
            for raw in raws[:3]:
                raw.cut()
        finally:
            own_redis_server.resume()
        await until(lambda: run.node._connections.accepted == 2)
        assert [(await raw.response())[0] for raw in raws[3:]] == [101, 101]
        await until(lambda: run.online == {"4": "1", "5": "1"})
        assert len(run.share) == 2


async def test_a_peer_that_has_ended_its_side_gets_its_status_and_is_no_terminal(redis_server: RedisServer) -> None:
    async with running(redis_server, node="a", nodes=("a", "b")) as run:
        mine, other = run.token(2), run.token(1)
        for token, status in (("x" * 128, 401), (other, 421), (mine, 400)):
            raw = await run.raw()
            raw.send(run.request(token))
            raw.end()
            assert (await raw.response())[0] == status
            assert (await raw.rest()).count(b"\n") == 1
        assert redis_server.command("EXISTS", run.names.token(mine), run.names.token(other)) == 2
        await assert_no_trace(run)


@pytest.mark.parametrize(
    "token_json", ['{"Item1":"7","Item2":"m"}', '{"item1":7,"item2":"m"}', ' {"Item2":"m","Item1":7 } ']
)
async def test_a_token_may_have_the_forms_that_a_payload_may_have(redis_server: RedisServer, token_json: str) -> None:
    async with running(redis_server) as run, run.events() as events:
        redis_server.command("SET", run.names.token("t"), token_json, "EX", 10)
        raw = await run.raw()
        raw.send(run.request("t"))
        assert (await raw.response())[0] == 101
        assert await events.next() == [(run.names.event_online, token_json.rstrip().rstrip("}") + ',"Item3":1}')]
        assert run.online == {"7": "1"}


async def test_silence_of_redis_is_a_503_in_time_and_no_ghost(own_redis_server: RedisServer) -> None:
    async with running(own_redis_server, handshake_timeout=0.3) as run:
        token = run.token(1)
        raw = await run.raw()
        own_redis_server.pause()
        try:
            raw.send(run.request(token))
            assert (await raw.response())[0] == 503
        finally:
            own_redis_server.resume()
        await run.settled()
        await assert_no_trace(run)


async def test_silence_of_redis_after_the_token_is_a_503_and_never_a_101_later(
    own_redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(own_redis_server, handshake_timeout=0.3) as run:
        connections = run.node._connections
        send_open = connections._send_open

        def send_into_silence(connection: Connection, token: str) -> None:
            own_redis_server.pause()
            send_open(connection, token)

        monkeypatch.setattr(connections, "_send_open", send_into_silence)
        raw = await begin(run, 1)
        try:
            assert (await raw.response())[0] == 503
        finally:
            own_redis_server.resume()
        # The refused peer has not left yet, and nobody is counted all the same.
        assert connections.accepted == 1
        await run.settled()
        await assert_no_trace(run)
        assert connections.accepted == 1
        assert b"101" not in await raw.rest()


async def test_a_client_forced_offline_while_it_opens_gets_its_101_and_the_close(redis_server: RedisServer) -> None:
    async with running(redis_server) as run:
        for client in range(1, 31):
            raw = await begin(run, client)
            await until(lambda: run.node._bus.router.clients, "the opening is under way")
            run.publish(direct([client], "before"))
            run.publish(f"__FreeIM__(ForceOffline){client}")
            run.publish(direct([client], "after"))
            assert (await raw.response())[0] == 101
            assert await raw.frame() == (1, b'"before"')
            assert await raw.answer_close() == (1001, "disconnect")
            await assert_no_trace(run)


async def test_a_forced_offline_during_a_slow_reading_of_the_membership_takes_effect_right_behind_the_101(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(redis_server) as run:
        held: list[tuple[Any, ...]] = []
        read = run.node._session.read
        monkeypatch.setattr(run.node._session, "read", lambda *args: held.append(args))
        raw = await begin(run, 1)
        await until(lambda: run.node._connections.living, "Redis has counted it")
        run.publish(direct([1], "before"))
        run.publish("__FreeIM__(ForceOffline)1")
        await run.heard_all()
        assert len(run.node._connections._handshakes) == 1, "no 101 before the channels have been read"
        monkeypatch.undo()
        for args in held:
            read(*args)
        assert (await raw.response())[0] == 101
        assert await raw.frame() == (1, b'"before"')
        assert await raw.answer_close() == (1001, "disconnect")


@pytest.mark.parametrize(
    "metadata", [None, "", "x y", '"}\\', "%1 %s %", "你好 \U0001f600", "}", "\n\t\x00\x7f", "m" * 100_000]
)
async def test_the_events_carry_the_metadata_as_it_is(redis_server: RedisServer, metadata: str | None) -> None:
    async with running(redis_server) as run, run.events() as events:
        peer = await run.connect(7, metadata)
        plain = token_json(7, metadata).removesuffix("}")
        assert await events.next() == [(run.names.event_online, plain + ',"Item3":1}')]
        await peer.close()
        assert await events.next() == [(run.names.event_offline, plain + ',"Item3":0}')]
