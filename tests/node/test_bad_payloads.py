"""Garbage on the node's channel: one warning that shows nothing of it, no delivery, and the next good message arrives.

Also what looks strange and is none: big messages, half surrogates, and channel names with every kind of character.
"""

from __future__ import annotations

import json
import logging
import re
import time
from types import SimpleNamespace

import pytest

from freeim import ImHelper
from freeim.names import INT64_MAX, INT64_MIN
from tests.node.harness import Running, channel_message, direct, running, told, until
from tests.servers import RedisServer

NOT_UTF8 = "it is not UTF-8"
NOT_JSON = "it is not JSON"
NO_OBJECT = "it is no JSON object"
NO_LIST = "its Item2 is no list of receivers"
NO_ID = "it holds something that is no client id of the kind 'int'"
NO_GUID = "it holds something that is no client id of the kind 'guid'"
NO_NAME = "its Item2 is no text"
NO_TEXT = "its Item3 is no text"
NO_BOOL = "its Item4 is neither true nor false"

CHAN = b"__FreeIM__(ChanMessage)"
FORCE = b"__FreeIM__(ForceOffline)"

GUID = "0a0b0c0d-1111-2222-3333-00000000abcd"
OTHER_GUID = "0a0b0c0d-1111-2222-3333-00000000abce"
MB = 1_000_000


def fields(item1: str = "0", item2: str = "[1]", item3: str = '"\\"secret\\""', item4: str = "false") -> bytes:
    """Return a direct message of JSON values, as they are."""
    return f'{{"Item1":{item1},"Item2":{item2},"Item3":{item3},"Item4":{item4}}}'.encode()


def chan(item1: str = "0", item2: str = '"room"', item3: str = '"\\"secret\\""') -> bytes:
    """Return a channel message of JSON values, as they are."""
    return CHAN + f'{{"Item1":{item1},"Item2":{item2},"Item3":{item3}}}'.encode()


NO_IDS = {
    "a bool": "true",
    "a float": "1.5",
    "a float without a fraction": "1.0",
    "an exponent": "1e0",
    "a list": "[1]",
    "an object": "{}",
    "an empty text": '""',
    "a text": '"secret"',
    "a text with a fraction": '"1.0"',
    "a text with a plus": '"+1"',
    "a text with an underscore": '"1_0"',
    "a text of other digits": '"١"',
    "a superscript": '"¹"',
    "a GUID": f'"{GUID}"',
    "2**63": str(INT64_MAX + 1),
    "-2**63-1": str(INT64_MIN - 1),
    "2**63 as a text": f'"{INT64_MAX + 1}"',
    "20 digits": "1" * 20,
    "4000 digits": "1" * 4000,
    "a text of 5000 digits": f'"{"1" * 5000}"',
    "NaN": "NaN",
    "Infinity": "-Infinity",
    "1e999": "1e999",
}

GARBAGE: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", NOT_JSON),
    "a space": (b" ", NOT_JSON),
    "words": (b"secret words", NOT_JSON),
    "a number": (b"1", NO_OBJECT),
    "null": (b"null", NO_OBJECT),
    "a text": (b'"secret"', NO_OBJECT),
    "a list": (b'[0,[1],"secret",false]', NO_OBJECT),
    "an empty object": (b"{}", NO_LIST),
    "another object": (b'{"to":[1],"text":"secret"}', NO_LIST),
    "single quotes": (b"{'Item1':0,'Item2':[1],'Item3':'secret','Item4':false}", NOT_JSON),
    "names without quotes": (b'{Item1:0,Item2:[1],Item3:"secret",Item4:false}', NOT_JSON),
    "a comma at the end": (fields()[:-1] + b",}", NOT_JSON),
    "something behind the end": (fields() + b"x", NOT_JSON),
    "a NUL behind the end": (fields() + b"\x00", NOT_JSON),
    "two messages": (fields() * 2, NOT_JSON),
    "NULs alone": (bytes(100), NOT_JSON),
    "a NUL in front": (b"\x00" + fields(), NOT_JSON),
    "a raw NUL in the message": (fields(item3='"\\"sec\x00ret\\""'), NOT_JSON),
    "a raw line feed in the message": (fields(item3='"\\"sec\nret\\""'), NOT_JSON),
    "a byte order mark": (b"\xef\xbb\xbf" + fields(), NOT_JSON),
    "an escape that is none": (fields(item3='"\\x41"'), NOT_JSON),
    "half an escape": (fields(item3='"\\u12"'), NOT_JSON),
    "a message that is not UTF-8": (fields().replace(b"secret", b"sec\xffret"), NOT_UTF8),
    "half a character": (fields().replace(b"secret", b"secret\xc3"), NOT_UTF8),
    "a character too long": (fields().replace(b"secret", b"\xc0\xafsecret"), NOT_UTF8),
    "half a surrogate pair in bytes": (fields().replace(b"secret", b"\xed\xa0\x80secret"), NOT_UTF8),
    "UTF-16": (fields().decode().encode("utf-16"), NOT_UTF8),
    "UTF-16 without a mark": (fields().decode().encode("utf-16-le"), NOT_JSON),
    "all bytes": (bytes(range(256)), NOT_UTF8),
    "a channel's name that is not UTF-8": (chan().replace(b"room", b"ro\xffom"), NOT_UTF8),
    "a channel message that is not UTF-8": (chan().replace(b"secret", b"sec\x80ret"), NOT_UTF8),
    "100000 brackets": (b"[" * 100_000, NOT_JSON),
    "100000 brackets and their ends": (b"[" * 100_000 + b"]" * 100_000, NOT_JSON),
    "100000 braces": (b'{"Item2":' * 100_000, NOT_JSON),
    "100000 brackets as receivers": (fields(item2="[" * 100_000 + "]" * 100_000), NOT_JSON),
    "100000 brackets as a channel": (chan(item2="[" * 100_000 + "]" * 100_000), NOT_JSON),
    "100000 brackets behind a head": (CHAN + b"[" * 100_000, NOT_JSON),
    "no receivers": (b'{"Item1":0,"Item3":"secret","Item4":false}', NO_LIST),
    "receivers that are null": (fields(item2="null"), NO_LIST),
    "receivers that are a number": (fields(item2="1"), NO_LIST),
    "receivers that are a text": (fields(item2='"1"'), NO_LIST),
    "receivers that are an object": (fields(item2='{"1":1}'), NO_LIST),
    "a null as the only receiver": (fields(item2="[null]"), NO_ID),
    "a null as the last receiver": (fields(item2="[1,null]"), NO_ID),
    **{f"{what} as the sender": (fields(item1=value), NO_ID) for what, value in NO_IDS.items()},
    **{f"{what} as a receiver": (fields(item2=f"[1,{value}]"), NO_ID) for what, value in NO_IDS.items()},
    **{f"{what} as the sender to a channel": (chan(item1=value), NO_ID) for what, value in NO_IDS.items()},
    "a receiver of 5000 digits": (fields(item2=f"[1,{'9' * 5000}]"), NOT_JSON),
    "a receiver with a leading zero": (fields(item2="[01]"), NOT_JSON),
    "a message that is a number": (fields(item3="5"), NO_TEXT),
    "a message that is a bool": (fields(item3="true"), NO_TEXT),
    "a message that is an object": (fields(item3='{"secret":1}'), NO_TEXT),
    "a message that is a list": (fields(item3='["secret"]'), NO_TEXT),
    "a receipt that is a number": (fields(item4="1"), NO_BOOL),
    "a receipt that is a text": (fields(item4='"secret"'), NO_BOOL),
    "a receipt that is a list": (fields(item4="[false]"), NO_BOOL),
    "a head without a body": (CHAN, NOT_JSON),
    "a head with a space": (CHAN + b" ", NOT_JSON),
    "a head with null": (CHAN + b"null", NO_OBJECT),
    "a head with a list": (CHAN + b'[0,"room","secret"]', NO_OBJECT),
    "two heads": (CHAN + chan(), NOT_JSON),
    "half a head": (CHAN[:-1], NOT_JSON),
    "a head in lower case": (chan().replace(CHAN, CHAN.lower()), NOT_JSON),
    "an unknown head": (b"__FreeIM__(Secret)" + fields(), NOT_JSON),
    "a space before the head": (b" " + chan(), NOT_JSON),
    "a channel that is a number": (chan(item2="5"), NO_NAME),
    "a channel that is a list": (chan(item2='["room"]'), NO_NAME),
    "a channel that is an object": (chan(item2='{"room":1}'), NO_NAME),
    "a channel that is a bool": (chan(item2="true"), NO_NAME),
    "a channel message that is a number": (chan(item3="5"), NO_TEXT),
    "a broadcast that is an object": (chan(item2="null", item3='{"secret":1}'), NO_TEXT),
    **{
        f"an order to force offline {what}": (FORCE + value, NO_ID)
        for what, value in {
            "nobody": b"",
            "a space": b" ",
            "a word": b"secret",
            "null": b"null",
            "a quoted id": b'"1"',
            "a list": b"[1]",
            "a fraction": b"1.0",
            "an exponent": b"1e0",
            "a hex number": b"0x1",
            "an underscore": b"0_1",
            "two ids": b"1 2",
            "two ids with a comma": b"1,2",
            "a plus": b"+1",
            "a minus": b"-",
            "two minus": b"--1",
            "other digits": "١".encode(),
            "a NUL": b"1\x00",
            "2**63": b"9223372036854775808",
            "-2**63-1": b"-9223372036854775809",
            "5000 digits": b"1" * 5000,
            "a GUID": GUID.encode(),
            "another order": FORCE + b"1",
        }.items()
    },
    "an order to force offline an id that is not UTF-8": (FORCE + b"1\xff", NOT_UTF8),
    "an order to force offline 100000 brackets": (FORCE + b"[" * 100_000, NO_ID),
}


def listen(caplog: pytest.LogCaptureFixture) -> None:
    """From here on nothing that the node logs is missed."""
    caplog.set_level(logging.INFO, "freeim")
    caplog.clear()


def warning(payload: bytes, reason: str) -> str:
    """Return all that may be said about a payload: no word of it."""
    return f"dropped a payload of {len(payload)} bytes from the node's channel: {reason}"


async def assert_dropped(run: Running, caplog: pytest.LogCaptureFixture, payload: bytes, reason: str) -> None:
    """Publish garbage: one warning, no delivery to anybody, and the next message arrives."""
    listen(caplog)
    run.publish(payload)
    for peer in run.peers:
        run.publish(direct([peer.client], "good", run.system))
        assert await peer.fence() == ['"good"']
        assert peer.is_open
    assert told(caplog) == [warning(payload, reason)]
    assert caplog.records[0].levelno == logging.WARNING
    assert caplog.records[0].exc_info is None
    assert "secret" not in caplog.text


async def two_in_the_room(run: Running) -> None:
    """Connect the clients 1 and 2, both in the channel `room`."""
    for client in (1, 2):
        await run.connect(client)
        run.join(client, "room")


@pytest.mark.parametrize("what", GARBAGE)
async def test_garbage_is_dropped_with_one_warning_that_does_not_show_it(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    async with running(redis_server) as run:
        await two_in_the_room(run)
        await assert_dropped(run, caplog, *GARBAGE[what])


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"\xff" * 10 * MB, NOT_UTF8),
        (b"x" * 10 * MB, NOT_JSON),
        (bytes(10 * MB), NOT_JSON),
        (b"[" * 10 * MB, NOT_JSON),
        (b"9" * 10 * MB, NOT_JSON),
        (b'"' + b"x" * 10 * MB + b'"', NO_OBJECT),
        (fields(item3='"' + "x" * 10 * MB)[:-20], NOT_JSON),
        (fields(item3='"' + "x" * 10 * MB + '"', item4="0"), NO_BOOL),
        (fields(item2="[" + "1," * 5 * MB + "null]"), NO_ID),
        (CHAN + b"x" * 10 * MB, NOT_JSON),
        (chan(item2='"' + "x" * 10 * MB + '"', item3="0"), NO_TEXT),
        (FORCE + b"1" * 10 * MB, NO_ID),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else re.sub(r"\W+", "-", value),
)
async def test_10_mb_of_garbage_harm_nobody(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture, payload: bytes, reason: str
) -> None:
    assert len(payload) > 9.9 * MB
    async with running(redis_server) as run:
        await two_in_the_room(run)
        await assert_dropped(run, caplog, payload, reason)


WHOLE = {
    "a direct message": direct([1, -2, 300], {"text": 'é "quoted" \\ 😀\n', "n": [1.5, None]}, 7, receipt=True),
    "a direct message in another form": '{ "item4" : "True", "item3" : "\\"\\u00e9\\ud83d\\ude00\\"", "ITEM2":["1"] }',
    "a channel message": channel_message('room "é" 😀', "hello\t", 7),
    "a broadcast": channel_message(None, "hello", 7),
}


@pytest.mark.parametrize("what", WHOLE)
async def test_a_payload_that_is_cut_off_anywhere_is_dropped(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    payload = WHOLE[what].encode()
    monkeypatch.setattr("freeim.node.bus.BAD_PAYLOADS_PER_MINUTE", 10_000)
    async with running(redis_server) as run:
        peer = await run.connect(1)
        run.join(1, 'room "é" 😀')
        listen(caplog)
        run.publish_all([payload[:size] for size in range(len(payload))])
        assert await peer.fence() == []
        lines = told(caplog)
        assert len(lines) == len(payload)
        for size, line in enumerate(lines):
            assert line in (warning(payload[:size], NOT_JSON), warning(payload[:size], NOT_UTF8))
        run.publish(payload)
        assert len(await peer.fence()) == 1, "the whole payload was good"
        assert len(told(caplog)) == len(payload)


async def test_at_most_20_warnings_a_minute_are_logged_and_all_are_counted(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic()
    clock = SimpleNamespace(monotonic=lambda: now)
    monkeypatch.setattr("freeim.node.sparse_log.time", clock)
    async with running(redis_server) as run:
        peer = await run.connect(1)
        listen(caplog)
        for minute in range(3):
            for seconds in (0, 30, 59):
                clock.monotonic = lambda: now + 61 * minute + seconds  # noqa: B023 - it is called in this turn only
                run.publish_all([b"x" * (100 * minute + seconds)] * 15)
                run.publish(direct([1], seconds))
                assert await peer.fence() == [str(seconds)]
            assert len(told(caplog)) == 20 * (minute + 1)
            assert run.node._bus.bad_payloads == 45 * (minute + 1)
        assert told(caplog)[20] == warning(b"x" * 100, NOT_JSON), "the next minute begins with its own"
        told_before = len(told(caplog))
        run.node._session.beat_now()
        await until(lambda: len(told(caplog)) > told_before, "the rest is told as a number")
        assert told(caplog)[told_before:] == ["dropped 75 more payloads from the node's channel that are no messages"]


async def test_good_messages_between_garbage_arrive_in_order(redis_server: RedisServer) -> None:
    async with running(redis_server) as run:
        peer = await run.connect(1)
        payloads: list[str | bytes] = []
        for number, (garbage, _) in enumerate(GARBAGE.values()):
            payloads += [garbage, direct([1], number)]
        run.publish_all(payloads)
        assert await peer.fence() == [str(number) for number in range(len(GARBAGE))]
        assert run.node._bus.bad_payloads == len(GARBAGE)


async def test_ids_at_the_ends_of_int64_and_in_other_forms_are_good(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(redis_server) as run:
        least, most = await run.connect(INT64_MIN), await run.connect(INT64_MAX)
        listen(caplog)
        for payload in (
            fields(item2=f"[{INT64_MIN},{INT64_MAX}]"),
            fields(item2=f'["{INT64_MIN}","{INT64_MAX}"]'),
            fields(item1="null", item2=f"[{INT64_MIN},{INT64_MAX},-1,-0]"),
            fields(item1=f'"{INT64_MAX - 1}"', item2=f"[ {INT64_MIN} , {INT64_MAX} ]"),
        ):
            run.publish(payload)
            assert await least.fence() == ['"secret"']
            assert await most.fence() == ['"secret"']
        assert told(caplog) == []


async def test_a_message_that_is_null_is_none(redis_server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    async with running(redis_server) as run:
        await two_in_the_room(run)
        listen(caplog)
        for payload in (
            fields(item3="null"),
            b'{"Item1":0,"Item2":[1,2]}',
            chan(item3="null"),
            chan(item2="null", item3="null"),
            fields(item1="2", item3="null", item4="true"),
        ):
            run.publish(payload)
        for peer in run.peers:
            assert await peer.fence() == []
        assert told(caplog) == []


async def test_a_force_offline_of_a_negative_id_closes_that_client_and_no_other(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(redis_server) as run:
        positive, negative = await run.connect(7), await run.connect(-7)
        listen(caplog)
        for nobody in (b"-8", b"0", b"-0", b"70", b"9223372036854775807"):
            run.publish(FORCE + nobody)
        assert await positive.fence() == []
        assert await negative.fence() == []
        run.publish(FORCE + b"-7")
        assert await negative.ended() == (1001, "disconnect")
        assert await positive.fence() == []
        assert positive.is_open
        assert told(caplog) == []


# ---- big and strange, but good


# Redis itself ends a subscriber that has more than 32 MB to read: a quote in a message is four bytes of the payload.
@pytest.mark.parametrize(
    "text", ["x" * 10 * MB, "é" * 5 * MB, '"\\' * (5 * MB // 4), "\n" * 5 * MB], ids=["x", "é", "quotes", "line feeds"]
)
async def test_a_message_of_10_mb_arrives_whole(redis_server: RedisServer, text: str) -> None:
    async with running(redis_server) as run:
        await two_in_the_room(run)
        expected = json.dumps(text, ensure_ascii=False)
        for payload in (direct([1, 2], text), channel_message("room", text), channel_message(None, text)):
            run.publish(payload)
            for peer in run.peers:
                got = await peer.next()
                assert len(got) == len(expected)
                assert got == expected
            for peer in run.peers:
                assert await peer.fence() == []


@pytest.mark.parametrize(
    ("escaped", "arrives"),
    [
        ("a\\ud800b", "a\ufffdb"),
        ("a\\udfffb", "a\ufffdb"),
        ("\\uD83D", "\ufffd"),
        ("\\ude00\\ud83d", "\ufffd\ufffd"),
        ("\\ud83d\\ud83d\\ude00", "\ufffd😀"),
        ("\\ud83d\\u0041", "\ufffdA"),
        ("\\ud83d\\n", "\ufffd\n"),
        ("\\ud83d\\ude00", "😀"),
        ("\\\\ud800", "\\ud800"),
    ],
)
async def test_half_a_surrogate_pair_becomes_a_replacement_character(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture, escaped: str, arrives: str
) -> None:
    async with running(redis_server) as run:
        peer = await run.connect(1)
        run.join(1, "room", arrives)
        listen(caplog)
        for space in ("", " "):  # for the fast decoder, and for the tolerant one
            run.publish(f'{{{space}"Item1":0,"Item2":[1],"Item3":"\\"{escaped}\\"","Item4":false}}')
            run.publish(f'__FreeIM__(ChanMessage){{{space}"Item1":0,"Item2":"room","Item3":"\\"{escaped}\\""}}')
            run.publish(f'__FreeIM__(ChanMessage){{{space}"Item1":0,"Item2":"{escaped}","Item3":"\\"by name\\""}}')
            assert await peer.fence() == [f'"{arrives}"', f'"{arrives}"', '"by name"']
        assert told(caplog) == []


CHANNELS = {
    "Chinese": "聊天室",
    "Arabic": "غرفة",
    "emoji": "😀👩‍👩‍👧🏳️‍🌈",
    "the last code point": "\U0010ffff",
    "code points that are no characters": "\ufffe\uffff",
    "a combining accent": "e\u0301",
    "marks of direction and width": "\u202eabc\u200b\u2066",
    "a byte order mark": "\ufeffroom",
    "line and paragraph separators": "a\u2028b\u2029c\x85d",
    "quotes": """it's "quoted" `here`""",
    "a quote alone": '"',
    "backslashes": "a\\b\\\\c\\",
    "an escape": "\\u0041\\n",
    "a line feed": "a\nb",
    "a line feed alone": "\n",
    "a Redis command": "x\r\n*1\r\n$8\r\nFLUSHALL\r\n",
    "a NUL": "a\x00b",
    "a NUL alone": "\x00",
    "all control characters": "".join(map(chr, range(32))) + "\x7f\x80\x9f",
    "closing braces": 'x"}',
    "a hash tag": "{room}",
    "percent signs": "%s%d%(x)s%%%",
    "placeholders": "{0}{}{name}",
    "a space": " ",
    "spaces around": "  room  ",
    "a tab": "\t",
    "a glob": "*?[a-z]",
    "null": "null",
    "a number": "0",
    "minus": "-",
    "an object": '{"Item1":0,"Item2":null}',
    "a head": "__FreeIM__(ChanMessage)",
    "a key": "im_v2_wsOnline",
    "slashes and colons": "a/b:c::d//",
    "markup": "<b>&amp;</b>",
    "64 KiB": "x" * 65_536,
    "64 KiB of emoji": "😀" * 16_384,
    "64 KiB of quotes": '"' * 65_536,
}


@pytest.mark.parametrize("what", CHANNELS)
async def test_a_channel_may_have_any_name(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    name = CHANNELS[what]
    near = [name + " ", " " + name, name + name, name + "\x00", name[:-1] or "x"]
    async with running(redis_server) as run:
        member, other = await run.connect(1), await run.connect(2)
        listen(caplog)
        with ImHelper(redis_server.url) as helper:
            empty = run.keys()
            helper.join_chan(1, name)
            helper.join_chan(2, *near)
            assert helper.get_chan_client_list(name) == [1]
            assert helper.get_chan_list_by_client_id(1) == [name]
            assert helper.get_chan_list() == dict.fromkeys([name, *near], 1)
            assert helper.get_chan_online(name) == 1
            published = helper.send_chan_message(0, name, {"to": name})
            assert (published.addressed, published.heard, published.silent) == (1, 1, ())
            assert [json.loads(text) for text in await member.fence()] == [{"to": name}]
            assert await other.fence() == []
            for close_name in near:
                helper.send_chan_message(0, close_name, "near")
            assert await member.fence() == []
            assert await other.fence() == ['"near"'] * len(near)
            helper.leave_chan(1, name)
            helper.send_chan_message(0, name, "after")
            assert await member.fence() == []
            assert name not in helper.get_chan_list()
            assert helper.get_chan_list_by_client_id(1) == []
            helper.leave_chan(2, *near)
            assert run.keys() == empty
            # Once more, and out of it by the end of the connection.
            helper.join_chan(1, name)
            await member.close()
            await run.settled()
            assert run.keys() == empty
        assert told(caplog) == []


async def test_names_that_look_alike_are_different_channels(redis_server: RedisServer) -> None:
    pairs = [("\u00e9", "e\u0301"), ("Room", "room"), ("\u212b", "\u00c5"), ("\ufb01", "fi"), ("a", "\u0430")]
    async with running(redis_server) as run:
        first, second = await run.connect(1), await run.connect(2)
        with ImHelper(redis_server.url) as helper:
            for one, two in pairs:
                assert one != two
                helper.join_chan(1, one)
                helper.join_chan(2, two)
                helper.send_chan_message(0, one, "one")
                assert await first.fence() == ['"one"']
                assert await second.fence() == []


# ---- GUIDs


async def test_a_guid_matches_in_whatever_case_it_is_written(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(redis_server, ids="guid") as run:
        token = run.token(GUID.upper())
        peer = await run.connect_with(token, GUID)
        other = await run.connect(OTHER_GUID)
        assert run.online == {GUID: "1", OTHER_GUID: "1"}
        run.join(GUID, "room")
        run.join(OTHER_GUID, "room")
        listen(caplog)
        run.publish(direct([GUID.upper()], "direct", run.system))
        assert await peer.fence() == ['"direct"']
        run.publish(direct([GUID.upper(), OTHER_GUID], "not to its sender", GUID))
        run.publish(direct([GUID, OTHER_GUID.upper()], "not to its sender", GUID.upper()))
        run.publish(channel_message("room", "not to its sender", GUID.upper()))
        assert await peer.fence() == []
        assert await other.fence() == ['"not to its sender"'] * 3
        run.publish(direct([OTHER_GUID.upper()], "with a receipt", GUID.upper(), receipt=True))
        assert await other.fence() == ['"with a receipt"']
        receipt = {"content": '"with a receipt"', "receipt": "发送成功"}
        assert [json.loads(text) for text in await peer.fence()] == [receipt]
        run.publish(FORCE + GUID.upper().encode())
        assert await peer.ended() == (1001, "disconnect")
        await run.settled()
        assert run.online == {OTHER_GUID: "1"}
        assert await other.fence() == []
        assert told(caplog) == []


GUID_GARBAGE: dict[str, tuple[bytes, str]] = {
    "a number as the sender": (fields(item1="5", item2=f'["{GUID}"]'), NO_GUID),
    "a number as a receiver": (fields(item1="null", item2=f'["{GUID}",5]'), NO_GUID),
    "null as a receiver": (fields(item1="null", item2=f'["{GUID}",null]'), NO_GUID),
    "a bool as a receiver": (fields(item1="null", item2=f'["{GUID}",true]'), NO_GUID),
    "a GUID without its last digit": (fields(item1="null", item2=f'["{GUID}","{GUID[:-1]}"]'), NO_GUID),
    "a GUID with one digit more": (fields(item1="null", item2=f'["{GUID}","{GUID}0"]'), NO_GUID),
    "a GUID with a letter too far": (fields(item1="null", item2=f'["{GUID}","{GUID[:-1]}g"]'), NO_GUID),
    "a GUID of other digits": (fields(item1="null", item2=f'["{GUID}","{GUID[:-1]}¹"]'), NO_GUID),
    "an empty text": (fields(item1='""', item2=f'["{GUID}"]'), NO_GUID),
    "a GUID without quotes": (fields(item1="null", item2=f"[{GUID}]"), NOT_JSON),
    "a number to a channel": (chan(item1="5"), NO_GUID),
    "an order to force offline a number": (FORCE + b"5", NO_GUID),
    "an order to force offline nobody": (FORCE, NO_GUID),
    "an order to force offline half a GUID": (FORCE + GUID[:18].encode(), NO_GUID),
    "an order to force offline two": (FORCE + f"{GUID},{OTHER_GUID}".encode(), NO_GUID),
}


@pytest.mark.parametrize("what", GUID_GARBAGE)
async def test_garbage_in_a_guid_deployment_is_dropped_with_one_warning(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    async with running(redis_server, ids="guid") as run:
        for client in (GUID, OTHER_GUID):
            await run.connect(client)
            run.join(client, "room")
        await assert_dropped(run, caplog, *GUID_GARBAGE[what])


async def test_an_order_with_a_guid_that_is_cut_off_anywhere_is_dropped(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("freeim.node.bus.BAD_PAYLOADS_PER_MINUTE", 10_000)
    async with running(redis_server, ids="guid") as run:
        peer = await run.connect(GUID)
        listen(caplog)
        payload = FORCE + GUID.encode()
        run.publish_all([payload[:size] for size in range(len(payload))])
        assert await peer.fence() == []
        assert len(told(caplog)) == len(payload)
        run.publish(payload)
        assert await peer.ended() == (1001, "disconnect")
