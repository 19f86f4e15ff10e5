"""Terminals that break WebSocket's rules or fall silent: the right close code, and nobody else harmed."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.node.harness import (
    channel_message,
    close_payload,
    direct,
    frame,
    running,
    told,
    until,
)
from tests.node.terminals import (
    NEVER_CUT,
    listen,
    only_is_left,
    only_is_left_after_rest,
    pause,
    resume,
    slow_raw_client,
)
from tests.servers import RedisServer

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
LIMIT = 4096


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


# ---- rules that are broken


@pytest.mark.parametrize("what", BROKEN)
async def test_a_broken_rule_closes_that_connection_with_the_right_code(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    data, code = BROKEN[what]
    async with running(redis_server, inbound_rate=0, **NEVER_CUT) as run, run.events() as events:
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


async def test_what_came_before_a_broken_frame_in_the_same_read_is_still_answered(redis_server: RedisServer) -> None:
    async with running(redis_server, **NEVER_CUT) as run:
        raw = await run.raw_client(1)
        raw.send(frame(PING, b"1") + frame(PING, b"2") + frame(3))
        assert [await raw.frame() for _ in range(2)] == [(PONG, b"1"), (PONG, b"2")]
        assert (await raw.closed_with())[0] == 1002


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


@pytest.mark.parametrize("late", [frame(CLOSE, close_payload(1001)), frame(3), frame(TEXT, masked=False)])
async def test_what_follows_a_close_in_the_same_read_changes_neither_the_code_nor_the_log(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture, late: bytes
) -> None:
    async with running(redis_server, **NEVER_CUT) as run:
        listen(caplog)
        raw = await run.raw_client(1)
        raw.send(frame(CLOSE, close_payload(1000)) + late)
        assert await raw.closed_with() == (1000, "")
        raw.close()
        await until(lambda: run.node._connections.accepted == 0)
        assert told(caplog) == []


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
