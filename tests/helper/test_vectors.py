"""Every call that FreeIM was seen to make, made by both helpers, through a proxy that writes the commands down."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.recording import RecordingRedis
from tests.servers import RedisServer

VECTORS = Path(__file__).parent.parent / "vectors"

OUR_OWN = re.compile(r"(?:Nodes|Urls|Bus)$")
"""Keys of our own that the helper may read beside FreeIM's."""

NEGATIVE_IDS = "negative ids are partitioned here; FreeIM throws unless the node count divides them"
EMPTY_CHANNEL = "an empty channel is refused; FreeIM makes it a broadcast"

DIFFERENCES: dict[str, dict[int, str]] = {
    "helper.json": {4: NEGATIVE_IDS, 33: NEGATIVE_IDS, 37: EMPTY_CHANNEL},
    "helper-guid.json": {},
}
"""File -> entry -> why it is not run; each of them has a test of its own below."""

SEEDS: dict[str, list[tuple[str, ...]]] = {
    "helper.json": [("HSET", "im_v2_wsOnline", "12", "1", "21", "1")],
    "helper-guid.json": [
        ("HSET", "wsim_wsOnline", "6b0d549b-6f03-475a-9600-a35a099950d8", "1"),
        ("HSET", "wsim_wsChanroom", "6b0d549b-6f03-475a-9600-a35a099950d8", "0", "junk", "0"),
    ],
}

Entry = dict[str, Any]


def load(file: str) -> list[Entry]:
    entries: list[Entry] = json.loads((VECTORS / file).read_text(encoding="utf-8"))
    return entries


def mask(text: str) -> str:
    return re.sub(r"[0-9a-f]{128}", "<token>", text)


def comparable(command: list[str]) -> list[str]:
    """Return a command with the token masked, and floats with an exponent in one way of writing."""
    if command[0] == "PUBLISH":
        command = [*command[:2], re.sub(r"(\d)E([+-])0*(\d+)", r"\1e\2\3", re.sub(r"e([+-])0+", r"e\1", command[2]))]
    return [mask(part) for part in command]


def arguments(entry: Entry) -> tuple[list[Any], dict[str, Any]]:
    """Return an entry's arguments as our methods take them."""
    call, args = entry["call"], list(entry["args"])
    if call == "send_message":
        return args[:3], {"receipt": args[3]}
    if call in ("join_chan", "leave_chan", "leave_chan_clients"):
        return [args[0], *(name for name in args[1] if name != "")], {}
    if call == "event_bus":
        return [lambda event: None], {}
    return args, {}


def state(server: RedisServer) -> dict[str, dict[str, str]]:
    """Return every hash with its fields."""
    keys = sorted(key.decode() for key in server.command("KEYS", "*") if server.command("TYPE", key) == b"hash")
    return {key: server.hash(key) for key in keys}


class FreeIm:
    """What FreeIM's scripts leave behind, in Python: the state that our own scripts must lead to."""

    def __init__(self, state: dict[str, dict[str, str]]) -> None:
        self.state = {key: dict(fields) for key, fields in state.items()}

    def run(self, command: list[str]) -> None:
        if command[:2] in (["EVAL", "<join>"], ["EVAL", "<leave>"]):
            chan, client, listing, client_id, channel = command[3:]
            if command[1] == "<join>" and client_id not in self.hash(chan):
                self.hash(chan)[client_id] = "0"
                self.hash(client)[channel] = "0"
                self.count(listing, channel, 1)
            elif command[1] == "<leave>" and client_id in self.hash(chan):
                del self.hash(chan)[client_id]
                self.hash(client).pop(channel, None)
                self.count(listing, channel, -1)
        elif command[0] == "HDEL":
            # FreeIM's clear; ours mends the member's other hash and the count as well.
            chan, client_id = command[1:]
            prefix, channel = chan.split("Chan")
            del self.hash(chan)[client_id]
            self.hash(f"{prefix}Client{client_id}").pop(channel, None)
            self.count(f"{prefix}ListChan", channel, -1)

    def hash(self, key: str) -> dict[str, str]:
        return self.state.setdefault(key, {})

    def count(self, listing: str, channel: str, change: int) -> None:
        count = int(self.hash(listing).get(channel, "0")) + change
        self.hash(listing)[channel] = str(count)
        if count <= 0:
            del self.hash(listing)[channel]

    def result(self) -> dict[str, dict[str, str]]:
        return {key: self.state[key] for key in sorted(self.state) if self.state[key]}


def run_entry(entry: Entry, recorder: RecordingRedis, server: RedisServer, make: Callable[..., Any], ids: str) -> None:
    helper = make(recorder.url, nodes=entry["servers"], path=entry["path"], ids=ids)
    args, options = arguments(entry)
    model = FreeIm(state(server))
    recorder.take()
    if entry["call"] == "event_bus":
        run_event_bus(helper, server, entry)
    else:
        result = getattr(helper, entry["call"])(*args, **options)
        check_result(entry, result)
    sent = [comparable(command) for command in recorder.take()]
    ours = [command for command in sent if not OUR_OWN.search(command[1])]
    if entry["call"] in ("join_chan", "leave_chan", "leave_chan_clients", "clear_chan_client"):
        assert len(ours) == (1 if entry["commands"] else 0), "one call is one script"
        for command in entry["commands"]:
            model.run(command)
        assert state(server) == model.result()
    else:
        assert ours == [comparable(command) for command in entry["commands"]]
        assert state(server) == model.result()


def run_event_bus(helper: Any, server: RedisServer, entry: Entry) -> None:
    channel = entry["commands"][0][1]
    if hasattr(helper, "aclose"):

        async def use() -> None:
            async with helper.helper.event_bus() as bus:
                assert await bus.wait_subscribed(5.0)
                assert server.subscribers(channel) == 1

        helper._runner.run(use())
    else:
        with helper.event_bus() as bus:
            assert bus.wait_subscribed(5.0)
            assert server.subscribers(channel) == 1
    server.wait_subscribers(channel, 0)


def check_result(entry: Entry, result: Any) -> None:
    expected = entry["returns"]
    if entry["call"] == "prev_connect_server":
        assert mask(result) == expected
    elif entry["call"].startswith("send_") or entry["call"] == "force_offline":
        count = len(entry["commands"])
        nodes = tuple(command[1].partition("Server")[2] for command in entry["commands"])
        assert result == (count, 0, nodes, None), "FreeIM returns nothing; ours tells that nobody heard"
    elif entry["call"] == "get_chan_list":
        assert sorted(result.items()) == sorted(map(tuple, expected))
    elif entry["call"] in ("get_chan_client_list", "get_chan_list_by_client_id", "get_client_list_by_online"):
        assert sorted(result) == sorted(expected)
    else:
        assert result == expected
        assert type(result) is type(expected)


@pytest.mark.parametrize(("file", "ids"), [("helper.json", "int"), ("helper-guid.json", "guid")])
def test_each_call_sends_and_returns_what_freeim_does(
    file: str, ids: str, make: Callable[..., Any], redis_server: RedisServer
) -> None:
    entries = load(file)
    executed = []
    with RecordingRedis(redis_server) as recorder:
        for number, entry in enumerate(entries):
            if entry["call"] == "has_online" and not redis_server.hash("im_v2_wsOnline"):
                for command in SEEDS[file]:
                    redis_server.command(*command)
            if number not in DIFFERENCES[file]:
                try:
                    run_entry(entry, recorder, redis_server, make, ids)
                except Exception as error:
                    error.add_note(f"{file}, entry {number}: {json.dumps(entry, ensure_ascii=False)}")
                    raise
                executed.append(number)
    assert sorted([*executed, *DIFFERENCES[file]]) == list(range(len(entries))), "executed and excused are all entries"


def test_negative_ids_that_freeim_cannot_send_to_are_partitioned_here(
    make: Callable[..., Any], redis_server: RedisServer
) -> None:
    connect, send = (load("helper.json")[number] for number in (4, 33))
    with RecordingRedis(redis_server) as recorder:
        helper = make(recorder.url, nodes=connect["servers"])
        assert mask(helper.prev_connect_server(*connect["args"])) == "ws://10.0.0.3:6001/ws?token=<token>"
        recorder.take()
        helper.send_message(*send["args"][:3])
        assert [command[1:] for command in recorder.take()] == [
            # -4 % 3 = 2; 4611686018427387904 % 3 = 1
            ["im_v2_wsServer10.0.0.3:6001", '{"Item1":1,"Item2":[-4],"Item3":"\\"odd ids\\"","Item4":false}'],
            [
                "im_v2_wsServer10.0.0.2:6001",
                '{"Item1":1,"Item2":[4611686018427387904],"Item3":"\\"odd ids\\"","Item4":false}',
            ],
        ]


def test_an_empty_channel_that_freeim_broadcasts_to_is_refused(
    make: Callable[..., Any], redis_server: RedisServer
) -> None:
    entry = load("helper.json")[37]
    with RecordingRedis(redis_server) as recorder:
        helper = make(recorder.url, nodes=entry["servers"])
        with pytest.raises(ValueError, match="must not be empty"):
            helper.send_chan_message(*entry["args"])
        assert recorder.take() == []
