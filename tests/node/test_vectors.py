"""What the real FreeIM 2.0.5 was seen to answer, event by event: a node of ours must answer the same."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.node.harness import Listener, Peer, Running, until
from tests.servers import RedisServer

EVENTS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "vectors" / "node.json").read_text(encoding="utf-8")
)
NAME = EVENTS[0]["name"]

DIFFERENT = {
    "client 2 closes one of two connections": (
        "FreeIM takes the client out of all its channels although a connection is left; ours keeps them until the last",
        {
            "Online": {"1": "1", "2": "1"},
            "Chanroom": {"2": "0"},
            "Client2": {"room": "0"},
            "ListChan": {"room": "1"},
        },
    )
}
"""Where this project differs on purpose: entry to reason and the keys that it leaves behind instead."""


def guid(number: str) -> str:
    return f"00000000-0000-0000-0000-{int(number):012x}"


class Dialect:
    """Turns the vectors, which hold numbers, into what a deployment of one kind of id says."""

    def __init__(self, ids: str) -> None:
        self.ids = ids

    def client(self, number: str) -> Any:
        return int(number) if self.ids == "int" else guid(number)

    def payload(self, text: str) -> str:
        if self.ids == "int":
            return text
        text = re.sub(r'("item1":)"?(\d+)"?', lambda m: f'{m[1]}"{guid(m[2])}"', text, flags=re.IGNORECASE)
        text = re.sub(
            r'("item2":\[)([^]]*)(\])',
            lambda m: m[1] + re.sub(r'"?(\d+)"?', lambda one: f'"{guid(one[1])}"', m[2]) + m[3],
            text,
            flags=re.IGNORECASE,
        )
        return re.sub(r"(\(ForceOffline\))(\d+)", lambda m: m[1] + guid(m[2]), text)

    def name(self, text: str) -> str:
        return text if self.ids == "int" else text.replace("im_v2_ws", "wsim_ws")

    def fields(self, found: dict[str, str]) -> dict[str, str]:
        return {self.id_text(key): value for key, value in found.items()}

    def id_text(self, text: str) -> str:
        return guid(text) if self.ids == "guid" and text.isdigit() else text


def without_count(payload: str) -> tuple[str, int]:
    """Return an event as FreeIM writes it, and the number of connections that ours carries besides."""
    found = re.fullmatch(r'(.*),"Item3":(\d+)}', payload)
    assert found is not None, f"an event without a count: {payload}"
    return found[1] + "}", int(found[2])


class Replay:
    """Plays the events on a node, one after the other, and compares what others can see."""

    def __init__(self, run: Running, listener: Listener, dialect: Dialect) -> None:
        self.run = run
        self.listener = listener
        self.dialect = dialect
        self.peers: dict[str, Peer] = {}
        self.connections: Counter[str] = Counter()

    async def play(self, event: dict[str, Any]) -> None:
        name = event["event"]
        if "token_value" in event:
            await self.connect(event)
        elif name == "client 2 closes one of two connections":
            await self.peers.pop("2").close()
        elif name == "client 2 closes the other":
            await self.peers.pop("2, second").close()
        elif "payload" in event:
            await self.publish(event)
        else:
            assert name == "node starts"
            assert self.run.server.subscribers(self.dialect.name(event["commands"][0][1])) == 2  # node and listener
        await self.compare_published(event)
        if "keys" in event:
            self.compare_keys(DIFFERENT[name][1] if name in DIFFERENT else event["keys"])

    async def connect(self, event: dict[str, Any]) -> None:
        number = re.findall(r"client (\d)", event["event"])[0]
        label = number if number not in self.peers else f"{number}, second"
        value = self.dialect.payload(event["token_value"])
        token = self.run.token(0, value=value)
        self.peers[label] = await self.run.connect_with(token, self.dialect.client(number))
        assert self.run.server.command("EXISTS", self.run.names.token(token)) == 0, "a token works once"

    async def publish(self, event: dict[str, Any]) -> None:
        if event["event"] == "channel message":
            self.run.join(self.dialect.client("2"), "room")
        self.run.publish(self.dialect.payload(event["payload"]))
        closes = {label for label, frames in event.get("frames", {}).items() if frames and isinstance(frames[0], dict)}
        for label in closes:
            close, end = event["frames"][label]
            assert end == "eof"
            assert await self.peers.pop(label).ended() == (close["close"], close["reason"])
        for peer in self.peers.values():
            await peer_fence(peer, keep=True)
        await self.run.settled()  # receipts have been published now
        expected = {label: frames for label, frames in event.get("frames", {}).items() if label not in closes}
        assert {label: await peer_fence(peer) for label, peer in self.peers.items()} == expected

    async def compare_published(self, event: dict[str, Any]) -> None:
        expected = [
            (self.dialect.name(command[1]), self.dialect.payload(command[2]))
            for command in event["commands"]
            if command[0] == "PUBLISH"
        ]
        own = [self.dialect.payload(event["payload"])] if "payload" in event else []
        published: list[tuple[str, str]] = []

        async def all_there() -> None:
            for channel, payload in await self.listener.heard():
                if "fence" in payload or "(Probe)" in payload:
                    continue
                if payload in own:
                    own.remove(payload)
                elif channel.startswith("evt_"):
                    plain, count = without_count(payload)
                    number = re.findall(r"Item1\D*?([\d-]+)", payload)[0]
                    self.connections[number] += 1 if channel.endswith("Online") else -1
                    assert count == self.connections[number]
                    published.append((channel, plain))
                else:
                    published.append((channel, payload))

        await all_there()
        if len(published) < len(expected):  # a close is published after the socket is gone
            await until(lambda: self.listener.waiting >= len(expected) - len(published), f"publishes of {event}")
            await all_there()
        assert published == expected
        assert own == []

    def compare_keys(self, keys: dict[str, dict[str, str]]) -> None:
        for key, fields in keys.items():
            name = re.sub(r"\d+$", lambda number: self.dialect.id_text(number[0]), key)
            assert self.run.server.hash(self.run.names.prefix + name) == self.dialect.fields(fields), key


async def peer_fence(peer: Peer, *, keep: bool = False) -> list[str]:
    seen = await peer.fence()
    if keep:
        peer.seen[:0] = seen
    return seen


@pytest.mark.parametrize("ids", ["int", "guid"])
async def test_a_node_answers_every_recorded_event_as_freeim_did(redis_server: RedisServer, ids: str) -> None:
    executed = []
    dialect = Dialect(ids)
    async with Running(redis_server, node=NAME, ids=ids) as run:
        names = run.names
        assert names.prefix == dialect.name("im_v2_ws")
        channels = (names.server(NAME), names.event_online, names.event_offline)
        async with Listener(redis_server, *channels) as listener:
            replay = Replay(run, listener, dialect)
            for event in EVENTS:
                await replay.play(event)
                executed.append(event["event"])
            assert replay.peers == {}
            assert not any(replay.connections.values())
    assert executed == [event["event"] for event in EVENTS]
    assert set(DIFFERENT) <= set(executed)


def test_every_difference_has_an_entry_and_a_reason() -> None:
    by_name = {event["event"]: event for event in EVENTS}
    assert len(by_name) == len(EVENTS)
    for name, (reason, keys) in DIFFERENT.items():
        assert reason
        assert keys.keys() == by_name[name]["keys"].keys()
        assert keys != by_name[name]["keys"], "no difference any more: take it out of the table"
