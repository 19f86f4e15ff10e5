"""Terminals that break WebSocket's rules, fall silent or do not read: the right close code, and nobody else harmed."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
from typing import cast

import pytest

from freeim.names import ClientId
from freeim.node import accept
from tests.node.harness import (
    Peer,
    Raw,
    Running,
    channel_message,
    close_payload,
    direct,
    frame,
    running,
    told,
    until,
)
from tests.servers import RedisServer

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
LIMIT = 4096
NEVER_CUT = {"close_timeout": 60}
"""What ends here must end by itself."""


def length16(opcode: int, size: int, payload: bytes = b"") -> bytes:
    """Return a frame whose length stands in 16 bits; the mask is 0."""
    return bytes([0x80 | opcode, 0x80 | 126]) + size.to_bytes(2, "big") + bytes(4) + payload


def length64(opcode: int, size: int, payload: bytes = b"") -> bytes:
    """Return a frame whose length stands in 64 bits; the mask is 0."""
    return bytes([0x80 | opcode, 0x80 | 127]) + size.to_bytes(8, "big") + bytes(4) + payload


BROKEN: dict[str, tuple[bytes, int]] = {
    "an unmasked text": (frame(TEXT, b"hello", masked=False), 1002),
    "an unmasked empty text": (frame(TEXT, masked=False), 1002),
    "an unmasked ping": (frame(PING, b"x", masked=False), 1002),
    "an unmasked close": (frame(CLOSE, close_payload(1000), masked=False), 1002),
    **{
        f"reserved bits {rsv:03b} in a frame of opcode {opcode}": (frame(opcode, payload, rsv=rsv), 1002)
        for rsv in (1, 2, 4, 7)
        for opcode, payload in ((TEXT, b"x"), (BINARY, b""), (CLOSE, close_payload(1000)), (PING, b"x"), (PONG, b""))
    },
    "reserved bits in a fragment": (
        frame(TEXT, b"a", fin=False) + frame(CONTINUATION, b"b", rsv=4),
        1002,
    ),
    "a ping of 126 bytes": (frame(PING, bytes(126)), 1002),
    "a pong of 126 bytes": (frame(PONG, bytes(126)), 1002),
    "a close of 126 bytes": (frame(CLOSE, close_payload(1000, b"x" * 124)), 1002),
    "a ping of 70000 bytes": (frame(PING, bytes(70_000)), 1002),
    "a ping whose short length is written long": (length16(PING, 5, b"hello"), 1002),
    "a ping in fragments": (frame(PING, b"a", fin=False) + frame(CONTINUATION, b"b"), 1002),
    "a pong in fragments": (frame(PONG, b"a", fin=False), 1002),
    "a close in fragments": (frame(CLOSE, close_payload(1000), fin=False), 1002),
    **{f"opcode {opcode}": (frame(opcode, b"x"), 1002) for opcode in (*range(3, 8), *range(11, 16))},
    "a text whose short length is written in 16 bits": (length16(TEXT, 125, bytes(125)), 1002),
    "a text whose short length is written in 64 bits": (length64(TEXT, 300, bytes(300)), 1002),
    "a length of 2**63": (length64(TEXT, 2**63), 1002),
    "a last fragment without a first": (frame(CONTINUATION, b"x"), 1002),
    "a fragment without a first": (frame(CONTINUATION, b"x", fin=False), 1002),
    "a fragment after the last one": (
        frame(TEXT, b"a", fin=False) + frame(CONTINUATION, b"b") + frame(CONTINUATION, b"c"),
        1002,
    ),
    "a fragment after an empty message": (frame(TEXT) + frame(CONTINUATION), 1002),
    "a text inside a fragmented message": (frame(TEXT, b"a", fin=False) + frame(TEXT, b"b"), 1002),
    "a text after an empty first fragment": (frame(TEXT, fin=False) + frame(TEXT, b"b"), 1002),
    "a binary inside a fragmented message": (
        frame(BINARY, b"a", fin=False) + frame(CONTINUATION, b"b", fin=False) + frame(BINARY, b"c"),
        1002,
    ),
    "a second beginning": (frame(TEXT, b"a", fin=False) + frame(TEXT, b"b", fin=False), 1002),
    **{
        f"a close with code {code}": (frame(CLOSE, close_payload(code)), 1002)
        for code in (0, 1, 999, 1004, 1005, 1006, 1015, 1016, 2000, 2999, 5000, 65535)
    },
    "a close of one byte": (frame(CLOSE, b"\x03"), 1002),
    "a close with a reason that is not UTF-8": (frame(CLOSE, close_payload(1000, b"bye \xff")), 1007),
    "a close with half a character": (frame(CLOSE, close_payload(1000, "é".encode()[:1])), 1007),
    "a close with a character too long": (frame(CLOSE, close_payload(1000, b"\xc0\xaf")), 1007),
    "a close with half a surrogate pair": (frame(CLOSE, close_payload(1000, b"\xed\xa0\x80")), 1007),
    "a text of 4097 bytes": (frame(TEXT, bytes(LIMIT + 1)), 1009),
    "a binary of 4097 bytes": (frame(BINARY, bytes(LIMIT + 1)), 1009),
    "a text of 70000 bytes": (frame(TEXT, bytes(70_000)), 1009),
    "4097 bytes in two fragments": (frame(TEXT, bytes(LIMIT), fin=False) + frame(CONTINUATION, b"x"), 1009),
    "4097 bytes in fragments that go on": (
        frame(BINARY, bytes(1), fin=False) + frame(CONTINUATION, bytes(1024), fin=False) * 4,
        1009,
    ),
    "4097 bytes in one fragment": (frame(TEXT, bytes(LIMIT + 1), fin=False), 1009),
    "4097 bytes in fragments around a ping": (
        frame(TEXT, bytes(2048), fin=False) + frame(PING) + frame(CONTINUATION, bytes(2049)),
        1009,
    ),
    "the announcement of 4097 bytes": (length16(TEXT, LIMIT + 1), 1009),
    "the announcement of 8 EiB": (length64(BINARY, 2**63 - 1), 1009),
}


def listen(caplog: pytest.LogCaptureFixture) -> None:
    """From here on nothing that the node logs is missed."""
    caplog.set_level(logging.INFO, "freeim")
    caplog.clear()


async def only_is_left(run: Running, peer: Peer) -> None:
    """Wait until one connection is all that the node holds and all that Redis counts; it must still receive."""
    await until(lambda: run.node._connections.accepted == 1, "only one connection is left")
    assert peer.is_open
    run.publish(direct({1, peer.client}, "still here"))
    assert await peer.next() == '"still here"'
    await run.settled()
    assert run.online == {str(peer.client): "1"}
    assert len(run.share) == 1
    assert f'"Item1":{peer.client},' in next(iter(run.share.values()))


async def only_is_left_after_rest(run: Running, raw: Raw, other: Peer) -> None:
    """Read a closed connection to its end, which must be empty; then `only_is_left`."""
    await run.heard_all()
    assert await raw.rest() == b"", "nothing may follow a Close frame"
    raw.close()
    await only_is_left(run, other)


async def slow_raw_client(run: Running, client: ClientId) -> Raw:
    """Connect a terminal with a small receive buffer that reads nothing after the 101, until `resume`."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", run.node.port))
    raw = Raw(*await asyncio.open_connection(sock=sock))
    run._raw.append(raw)
    raw.send(run.request(run.token(client)))
    assert (await raw.response())[0] == 101
    pause(raw)
    return raw


def pause(raw: Raw) -> None:
    cast(asyncio.Transport, raw.writer.transport).pause_reading()


def resume(raw: Raw) -> None:
    cast(asyncio.Transport, raw.writer.transport).resume_reading()


# ---- rules that are broken


@pytest.mark.parametrize("what", BROKEN)
async def test_a_broken_rule_closes_that_connection_with_the_right_code(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    data, code = BROKEN[what]
    async with running(redis_server, **NEVER_CUT) as run, run.events() as events:
        other = await run.connect(2)
        for way in ("at once", "with the request", "in pieces"):
            listen(caplog)
            token = run.token(1)
            raw = await run.raw()
            raw.send(run.request(token) + (data if way == "with the request" else b""))
            assert (await raw.response())[0] == 101
            if way == "at once":
                raw.send(data)
            elif way == "in pieces":
                step = max(1, len(data) // 50)
                for start in range(0, len(data), step):
                    raw.send(data[start : start + step])
                    await asyncio.sleep(0)
            found, _ = await raw.closed_with()
            assert found == code, way
            # What comes late must not wake anything up.
            raw.send(frame(TEXT, b"late") + frame(PING) + frame(CLOSE, close_payload(code)))
            raw.close()
            await only_is_left(run, other)
            lines = told(caplog)
            assert len(lines) == 1, lines
            assert "client 1 " in lines[0]
            assert f" with {code}: " in lines[0]
            assert token not in caplog.text
        assert [channel for channel, payload in await events.heard() if '"Item1":1,' in payload] == [
            run.names.event_online,
            run.names.event_offline,
        ] * 3


async def test_a_peer_can_read_the_code_although_it_is_still_sending_a_frame_of_1_mb(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(redis_server, **NEVER_CUT) as run:
        other = await run.connect(2)
        listen(caplog)
        raw = await run.raw_client(1)
        # Nothing is read before all is sent: a reset on the way would throw the Close frame away.
        pause(raw)
        data = frame(BINARY, bytes(1_000_000))
        for start in range(0, len(data), 10_000):
            raw.send(data[start : start + 10_000])
            await asyncio.wait_for(raw.writer.drain(), 10)
        resume(raw)
        assert (await raw.closed_with())[0] == 1009
        raw.close()
        await only_is_left(run, other)
        assert len(told(caplog)) == 1


async def test_a_peer_that_sends_on_for_ever_after_its_close_is_cut(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(redis_server, close_timeout=0.3) as run:
        other = await run.connect(2)
        listen(caplog)
        raw = await run.raw_client(1)
        raw.send(frame(3))
        assert (await raw.closed_with())[0] == 1002
        began = time.monotonic()
        while run.node._connections.accepted == 2:
            assert time.monotonic() - began < 5, "cut after the close timeout"
            raw.send(frame(TEXT, b"on and on"))
            await asyncio.sleep(0.01)
        await only_is_left(run, other)
        assert len(told(caplog)) == 1


async def test_what_was_under_way_to_a_peer_comes_before_its_close_and_nothing_after(redis_server: RedisServer) -> None:
    async with running(redis_server, **NEVER_CUT) as run:
        other = await run.connect(2)
        raw = await run.raw_client(1)
        run.publish(direct([1], "before"))
        await run.heard_all()
        raw.send(frame(4))
        assert await raw.frame() == (TEXT, b'"before"')
        opcode, payload = await raw.frame()
        assert (opcode, payload[:2]) == (CLOSE, close_payload(1002))
        run.publish(direct([1], "after"))
        await only_is_left_after_rest(run, raw, other)


async def test_a_client_whose_other_connection_broke_the_rules_stays_online(redis_server: RedisServer) -> None:
    async with running(redis_server, **NEVER_CUT) as run:
        good = await run.connect(1)
        run.join(1, "room")
        bad = await run.raw_client(1)
        bad.send(frame(TEXT, masked=False))
        assert (await bad.closed_with())[0] == 1002
        bad.close()
        await only_is_left(run, good)
        run.publish(channel_message("room", "in the room"))
        assert await good.fence() == ['"in the room"']


# ---- what is allowed


async def test_exactly_4096_bytes_are_fine_in_one_frame_and_in_fragments(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(redis_server) as run:
        listen(caplog)
        raw = await run.raw_client(1)
        raw.send(frame(TEXT, bytes(LIMIT)))
        raw.send(frame(BINARY, bytes(LIMIT)))
        for first in (0, 1, 4095, 4096):
            raw.send(frame(TEXT, bytes(first), fin=False))
            raw.send(frame(CONTINUATION, fin=False))
            raw.send(frame(CONTINUATION, bytes(LIMIT - first)))
        raw.send(frame(PING, b"all read"))
        assert await raw.frame() == (PONG, b"all read")
        assert told(caplog) == []


async def test_the_limit_is_the_one_of_the_options(redis_server: RedisServer) -> None:
    async with running(redis_server, max_inbound=200) as run:
        raw = await run.raw_client(1)
        raw.send(frame(TEXT, bytes(200)) + frame(PING))
        assert await raw.frame() == (PONG, b"")
        raw.send(frame(TEXT, bytes(201)))
        assert (await raw.closed_with())[0] == 1009


async def test_text_and_binary_data_is_accepted_and_ignored(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(redis_server) as run:
        listen(caplog)
        other = await run.connect(2)
        peer = await run.connect(1)
        for data in ("", "hello", direct([2], "forged"), "__FreeIM__(ForceOffline)2", b"", b"\x00\xff", bytes(LIMIT)):
            await peer.socket.send(data)
        await peer.socket.send([direct([2], "forged")[:9], direct([2], "forged")[9:]])
        raw = await run.raw_client(3)
        raw.send(frame(TEXT, b"\xff not UTF-8") + frame(PING, b"all read"))
        assert await raw.frame() == (PONG, b"all read")
        await asyncio.wait_for(await peer.socket.ping(), 10)
        assert await peer.fence() == []
        assert await other.fence() == []
        assert peer.is_open
        assert told(caplog) == []


@pytest.mark.parametrize("payload", [b"", b"x", b"\x00\xff\xfe", "¿qué?".encode(), bytes(range(125))])
async def test_a_ping_is_answered_with_its_payload(redis_server: RedisServer, payload: bytes) -> None:
    async with running(redis_server) as run:
        raw = await run.raw_client(1, frame(PING, payload))
        assert await raw.frame() == (PONG, payload)
        raw.send(frame(PING, payload) + frame(PING, b"2") + frame(PING, b"3"))
        assert [await raw.frame() for _ in range(3)] == [(PONG, payload), (PONG, b"2"), (PONG, b"3")]


async def test_a_ping_in_the_middle_of_a_fragmented_message_is_answered_at_once(redis_server: RedisServer) -> None:
    async with running(redis_server) as run:
        raw = await run.raw_client(1)
        raw.send(frame(TEXT, b"a", fin=False) + frame(PING, b"middle"))
        assert await raw.frame() == (PONG, b"middle")
        raw.send(frame(CONTINUATION, b"b", fin=False) + frame(PONG, b"unasked") + frame(PING, b"again"))
        assert await raw.frame() == (PONG, b"again")
        raw.send(frame(CONTINUATION, b"c") + frame(TEXT, b"next") + frame(PING, b"end"))
        assert await raw.frame() == (PONG, b"end")


async def test_a_pong_that_nobody_asked_for_is_ignored(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(redis_server) as run:
        listen(caplog)
        raw = await run.raw_client(1)
        raw.send(frame(PONG) + frame(PONG, bytes(125)) + frame(PING, b"after"))
        assert await raw.frame() == (PONG, b"after")
        run.publish(direct([1], "here"))
        assert await raw.frame() == (TEXT, b'"here"')
        assert told(caplog) == []


async def test_a_ping_keeps_its_place_between_the_messages(redis_server: RedisServer) -> None:
    async with running(redis_server) as run:
        raw = await run.raw_client(1)
        for number in range(20):
            run.publish(direct([1], number))
            await run.heard_all()
            raw.send(frame(PING, b"%d" % number))
            assert [await raw.frame(), await raw.frame()] == [(TEXT, b"%d" % number), (PONG, b"%d" % number)]


# ---- closing


async def test_a_close_without_a_code_is_answered_with_1000(redis_server: RedisServer) -> None:
    async with running(redis_server, **NEVER_CUT) as run, run.events() as events:
        other = await run.connect(2)
        await events.next()
        raw = await run.raw_client(1, frame(CLOSE))
        assert await raw.frame() == (CLOSE, close_payload(1000))
        assert await raw.rest() == b""
        await only_is_left(run, other)
        assert [channel for channel, _ in await events.next(2)] == [run.names.event_online, run.names.event_offline]


@pytest.mark.parametrize("code", [1000, 1001, 1002, 1003, *range(1007, 1015), 3000, 3999, 4000, 4999])
async def test_a_close_with_a_code_is_answered_with_that_code(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    async with running(redis_server, **NEVER_CUT) as run:
        listen(caplog)
        other = await run.connect(2)
        for reason in ("", "tschüß", "x" * 123):
            raw = await run.raw_client(1)
            raw.send(frame(CLOSE, close_payload(code, reason.encode())))
            assert await raw.frame() == (CLOSE, close_payload(code))
            assert await raw.rest() == b""
            raw.close()
        await only_is_left(run, other)
        assert told(caplog) == [], "a goodbye is no news"


async def test_a_close_in_the_middle_of_a_fragmented_message_is_answered(redis_server: RedisServer) -> None:
    async with running(redis_server, **NEVER_CUT) as run:
        raw = await run.raw_client(1)
        raw.send(frame(TEXT, b"a", fin=False) + frame(CLOSE, close_payload(1001)))
        assert await raw.closed_with() == (1001, "")


async def test_what_a_peer_breaks_after_our_close_changes_neither_the_code_nor_the_log(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(redis_server, **NEVER_CUT) as run:
        raw = await run.raw_client(1)
        listen(caplog)
        run.publish("__FreeIM__(ForceOffline)1")
        assert await raw.frame() == (CLOSE, close_payload(1001, b"disconnect"))
        raw.send(frame(TEXT, b"x" * (LIMIT + 1)))
        assert await raw.rest() == b""
        raw.close()
        await until(lambda: run.node._connections.accepted == 0)
        assert told(caplog) == []


async def test_a_peer_that_never_answers_our_close_holds_up_nobody_and_gets_nothing_more(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(redis_server, **NEVER_CUT) as run, run.events() as events:
        other = await run.connect(2)
        raw = await run.raw_client(1)
        run.join(1, "room")
        run.join(2, "room")
        await run.heard_all()
        await events.next(2)
        listen(caplog)
        run.publish("__FreeIM__(ForceOffline)1")
        for number in range(10):
            run.publish(direct([1, 2], number))
            run.publish(channel_message("room", number))
            run.publish(channel_message(None, number))
        assert await other.fence() == [str(number) for number in range(10) for _ in range(3)]
        assert await raw.frame() == (CLOSE, close_payload(1001, b"disconnect"))
        # Whatever it does but answer changes nothing.
        raw.send(frame(TEXT, b"let me in") + frame(PING, b"hello?") + frame(PONG))
        run.publish("__FreeIM__(ForceOffline)1")
        await run.heard_all()
        await run.settled()
        assert run.online == {"1": "1", "2": "1"}, "it counts as online until its socket is gone"
        assert len(run.share) == 2
        assert await events.heard() == []
        assert run.node._connections.accepted == 2
        raw.send(frame(CLOSE, close_payload(1001)))
        await only_is_left_after_rest(run, raw, other)
        assert await events.heard() == [(run.names.event_offline, '{"Item1":1,"Item2":"m","Item3":0}')]
        assert told(caplog) == []


async def test_a_peer_that_never_answers_our_close_is_cut_after_the_close_timeout(redis_server: RedisServer) -> None:
    async with running(redis_server, close_timeout=0.3) as run, run.events() as events:
        other = await run.connect(2)
        raw = await run.raw_client(1)
        await events.next(2)
        began = time.monotonic()
        run.publish("__FreeIM__(ForceOffline)1")
        assert await raw.frame() == (CLOSE, close_payload(1001, b"disconnect"))
        [(channel, payload)] = await events.next()
        # Never earlier, however fast; and soon enough, even here. The slack is what the clock of uvloop rounds off.
        assert 0.28 < time.monotonic() - began < 5
        assert (channel, payload) == (run.names.event_offline, '{"Item1":1,"Item2":"m","Item3":0}')
        assert await raw.rest() == b"", "nothing may follow a Close frame"
        await only_is_left(run, other)


async def test_a_peer_that_does_not_even_read_our_close_is_cut_too(redis_server: RedisServer) -> None:
    async with running(redis_server, close_timeout=0.3, send_buffer=4096) as run, run.events() as events:
        other = await run.connect(2)
        await slow_raw_client(run, 1)
        await events.next(2)
        run.publish(direct([1], "x" * 500_000))
        run.publish("__FreeIM__(ForceOffline)1")
        assert await other.fence() == []
        await events.next()
        await only_is_left(run, other)


# ---- terminals that die


@pytest.mark.parametrize("how", ["an end", "a reset", "half an end", "a reset in the middle of a frame"])
async def test_a_peer_that_leaves_without_a_close_frame_is_offline_at_once(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    async with running(redis_server, **NEVER_CUT) as run, run.events() as events:
        other = await run.connect(2)
        raw = await run.raw_client(1)
        run.join(1, "room")
        await events.next(2)
        listen(caplog)
        if how == "an end":
            raw.close()
        elif how == "half an end":
            raw.writer.write_eof()
        else:
            if "frame" in how:
                raw.send(frame(TEXT, bytes(1000))[:500])
            raw.cut()
        assert await events.next() == [(run.names.event_offline, '{"Item1":1,"Item2":"m","Item3":0}')]
        await only_is_left(run, other)
        assert not run.server.command("EXISTS", run.names.chan("room"))
        assert told(caplog) == []


async def test_a_peer_that_does_not_answer_pings_gets_4003_while_one_that_does_stays(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(redis_server, ping_interval=0.5, ping_timeout=0.2) as run, run.events() as events:
        other = await run.connect(2)
        token = run.token(1)
        listen(caplog)
        began = time.monotonic()
        silent = await run.raw()
        silent.send(run.request(token))
        assert (await silent.response())[0] == 101
        talker = await run.raw_client(3)
        assert await silent.frame() == (PING, b"")
        assert time.monotonic() - began > 0.4, "a full interval until the first ping"
        # The pong of a peer may be late by itself, but anything it sends shows that it lives.
        pings = 0
        ended = asyncio.create_task(silent.closed_with())
        while pings < 4:
            assert await talker.frame() == (PING, b"")
            talker.send(frame(TEXT, b"busy") if pings % 2 else frame(PONG))
            pings += 1
        assert await ended == (4003, "no pong")
        assert time.monotonic() - began > 0.6, "the whole timeout to answer"
        talker.close()
        await only_is_left(run, other)
        lines = told(caplog)
        assert len(lines) == 1
        assert "client 1:" in lines[0]
        assert "ping" in lines[0]
        assert token not in caplog.text
        offline = [payload for channel, payload in await events.heard() if channel == run.names.event_offline]
        assert len(offline) == 2
        assert '"Item1":1,' in offline[0]
        assert '"Item1":3,' in offline[1]


async def test_a_dead_peer_with_a_full_queue_is_cut_after_the_ping_and_the_close_timeout(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"ping_interval": 0.5, "ping_timeout": 0.2, "close_timeout": 0.3, "send_buffer": 4096}
    async with running(redis_server, **options) as run:
        other = await run.connect(2)
        await slow_raw_client(run, 1)
        listen(caplog)
        run.publish(direct([1], "x" * 500_000))
        await until(lambda: run.node._connections.accepted == 1, "cut")
        await only_is_left(run, other)
        assert len(told(caplog)) == 1
        assert "ping" in told(caplog)[0]


# ---- terminals that do not read


def drops_frames() -> bool:
    """Whether the node can take frames out of a queue; those of asyncio's transports stay in it."""
    return bool(vars(accept)["HAVE_EPOLL"])


SLOW = {"queue_limit": 300_000, "send_buffer": 4096}


async def test_a_receiver_that_does_not_read_is_sent_away_with_4002_when_its_queue_is_full(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(redis_server, **SLOW) as run:
        other = await run.connect(2)
        slow = await slow_raw_client(run, 1)
        listen(caplog)
        texts = [json.dumps(f"{number} " + "x" * 50_000) for number in range(20)]
        for text in texts:
            run.publish(direct([1, 2], json.loads(text)))
            # Each one is sent on its own.
            assert await other.next() == text
        for connection in run.node._connections.living.values():
            most = 50_000 if drops_frames() else 300_000
            assert connection.transport.get_write_buffer_size() < most + 100
        lines = told(caplog)
        assert len(lines) == 1, lines
        assert "client 1:" in lines[0]
        assert "too slowly" in lines[0]
        assert lines[0].endswith("; send less, or raise --queue-limit (300000 bytes)")
        assert run.online == {"1": "1", "2": "1"}, "its socket is still open"
        resume(slow)
        got = []
        while (received := await slow.frame())[0] == TEXT:
            got.append(received[1].decode())
        assert received == (CLOSE, close_payload(4002, b"too slow"))
        # What the system had taken, or some of it, comes whole and in order.
        assert got == texts[: len(got)]
        if not drops_frames():
            assert 6 <= len(got) < 15, "a transport of asyncio drops nothing"
        else:
            assert 1 <= len(got) < 5
        slow.send(frame(CLOSE, close_payload(4002)))
        await only_is_left_after_rest(run, slow, other)
        assert len(told(caplog)) == 1


async def test_a_receiver_that_never_reads_again_is_cut_after_the_close_timeout(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(redis_server, close_timeout=0.3, **SLOW) as run, run.events() as events:
        other = await run.connect(2)
        await slow_raw_client(run, 1)
        await events.next(2)
        listen(caplog)
        for number in range(20):
            run.publish(direct([1, 2], str(number) * 25_000))
            assert await other.next() == f'"{str(number) * 25_000}"'
        assert await events.next() == [(run.names.event_offline, '{"Item1":1,"Item2":"m","Item3":0}')]
        await only_is_left(run, other)
        assert len(told(caplog)) == 1


async def test_an_empty_queue_takes_one_message_of_any_size_and_a_full_one_none(redis_server: RedisServer) -> None:
    async with running(redis_server, queue_limit=1000, send_buffer=4096) as run:
        other = await run.connect(2)
        slow = await slow_raw_client(run, 1)
        big = "x" * 1_000_000
        for _ in range(2):
            run.publish(direct([1, 2], big))
            assert await other.next() == f'"{big}"'
            resume(slow)
            # All of it has arrived, so that the queue is empty again.
            assert await slow.frame() == (TEXT, f'"{big}"'.encode())
            pause(slow)
        run.publish(direct([1, 2], big))
        assert await other.next() == f'"{big}"'
        run.publish(direct([1, 2], "one too many, if it does not fit into the rest of the queue" * 20))
        await other.next()
        resume(slow)
        assert await slow.frame() == (TEXT, f'"{big}"'.encode())
        assert await slow.frame() == (CLOSE, close_payload(4002, b"too slow"))
        slow.close()
        await only_is_left(run, other)


async def test_a_slow_receiver_gets_everything_in_order_while_its_queue_suffices(redis_server: RedisServer) -> None:
    async with running(redis_server, queue_limit=2_000_000, send_buffer=4096) as run:
        other = await run.connect(2)
        slow = await slow_raw_client(run, 1)
        texts = [json.dumps(f"{number} " + "x" * 20_000) for number in range(40)]
        for text in texts:
            run.publish(direct([1, 2], json.loads(text)))
        assert await other.fence() == texts
        slow.send(frame(PING, b"all read"))
        resume(slow)
        assert [await slow.frame() for _ in texts] == [(TEXT, text.encode()) for text in texts]
        assert await slow.frame() == (PONG, b"all read")


# ---- many terminals that do not read: what waits for all of them together

NODE_LIMIT = 1_000_000
BUDGET = {"node_queue_limit": NODE_LIMIT, "queue_limit": 10_000_000, "send_buffer": 4096}


def waiting(run: Running, client: ClientId) -> int:
    """Return how many bytes the node holds for the one connection of a client."""
    (connection,) = run.node._bus.router.clients[str(client).encode()].connections
    return cast(int, connection.transport.get_write_buffer_size())


async def sent(run: Running, other: Peer, client: ClientId, count: int) -> list[str]:
    """Send texts of 50 KB to a client and to another one, one by one; return what they are to receive."""
    texts = [json.dumps(f"{client} {number} " + "x" * 50_000) for number in range(count)]
    for text in texts:
        run.publish(direct([client, other.client], json.loads(text)))
        assert await other.next() == text
    return texts


async def test_when_too_much_waits_in_all_the_one_with_most_is_cut_and_the_others_miss_nothing(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(redis_server, **BUDGET, **NEVER_CUT) as run:
        other = await run.connect(9)
        most, middle, small, last = [await slow_raw_client(run, client) for client in (1, 2, 3, 4)]
        listen(caplog)
        texts = {1: await sent(run, other, 1, 9), 2: await sent(run, other, 2, 6), 3: await sent(run, other, 3, 1)}
        assert told(caplog) == []
        fanout = run.node._connections.fanout
        texts[4] = []
        while not fanout.too_slow:
            texts[4] += await sent(run, other, 4, 1)
            assert fanout.waiting <= NODE_LIMIT
            assert waiting(run, 4) < waiting(run, 2), "the one that passes the limit is not one with most"
        assert fanout.too_slow == 1
        assert fanout.waiting <= NODE_LIMIT * 3 / 4
        (line,) = told(caplog)
        assert "client 1:" in line
        assert line.endswith(f"; send less, or raise --node-queue-limit ({NODE_LIMIT} bytes for all together)")
        resume(most)
        if drops_frames():
            got = []
            while (received := await most.frame())[0] == TEXT:
                got.append(received[1].decode())
            assert received == (CLOSE, close_payload(4002, b"too slow"))
            assert got == texts[1][: len(got)]
            assert 1 <= len(got) < 5
            most.send(frame(CLOSE, close_payload(4002)))
        await until(lambda: run.node._connections.accepted == 4, "that one has gone")
        for client, raw in ((2, middle), (3, small), (4, last)):
            assert waiting(run, client) > 0
            resume(raw)
            assert [await raw.frame() for _ in texts[client]] == [(TEXT, text.encode()) for text in texts[client]]
        await until(lambda: fanout.waiting == 0, "all have read")
        assert len(told(caplog)) == 1


async def test_one_message_that_is_larger_than_the_limit_of_the_node_ends_that_connection_alone(
    redis_server: RedisServer,
) -> None:
    async with running(redis_server, **BUDGET, **NEVER_CUT) as run:
        other = await run.connect(9)
        small, large = await slow_raw_client(run, 1), await slow_raw_client(run, 2)
        texts = await sent(run, other, 1, 2)
        run.publish(direct([2], "x" * 5_000_000))
        await until(lambda: run.node._connections.accepted == 2, "cut without waiting for the close time-out")
        fanout = run.node._connections.fanout
        assert fanout.too_slow == 1
        assert fanout.waiting == waiting(run, 1)
        resume(small)
        assert [await small.frame() for _ in texts] == [(TEXT, text.encode()) for text in texts]
        await until(lambda: fanout.waiting == 0, "all have read")
        large.close()


async def test_many_that_are_cut_at_once_are_told_in_a_few_lines_and_a_number(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("freeim.node.connections.TOO_SLOW_PER_MINUTE", 2)
    async with running(redis_server, queue_limit=1000, send_buffer=4096, **NEVER_CUT) as run:
        for client in range(1, 7):
            await slow_raw_client(run, client)
        listen(caplog)
        for _ in range(2):
            run.publish(direct(range(1, 7), "x" * 500_000))
            await run.heard_all()
        assert run.node._connections.fanout.too_slow == 6
        assert len(told(caplog)) == 2
        run.node._session.beat_now()
        await until(lambda: len(told(caplog)) > 2, "the rest is told as a number")
        assert told(caplog)[2:] == ["cut 4 more connections that read too slowly"]
