"""Order: what one connection publishes in order, each receiver gets in order, whatever it is and whoever joins."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict

import pytest

from freeim.names import owners
from tests.membership.cluster import nodes_on
from tests.membership.flips import Command, direct, flip, load_scripts, run, to_channel
from tests.membership.terminals import Terminal, grant
from tests.servers import RedisServer

PUBLISHERS = 3
CHANNELS = ["red", "blue", "green"]
STEADY = {1: {"red"}, 2: {"red", "blue"}, 3: {"red", "blue", "green"}, 4: set[str]()}
FLAPPING = [5, 6, 7, 8]
OUTSIDERS = [51, 52, 53]


@pytest.mark.parametrize("round_trip", [0.0, 0.003])
async def test_each_receiver_gets_what_one_connection_publishes_in_its_order(
    either_redis: RedisServer, round_trip: float
) -> None:
    with nodes_on(either_redis, round_trip=round_trip) as nodes, either_redis.wire() as wire:
        load_scripts(wire)
        dice = random.Random(7)
        for client_id, channels in STEADY.items():
            run(wire, [flip(client_id, channel, join=True) for channel in channels])
        terminals = {
            client_id: await Terminal.connect(owners(client_id, nodes)[0], grant(wire, client_id))
            for client_id in (*STEADY, *FLAPPING)
        }
        publishers = [either_redis.wire() for _ in range(PUBLISHERS)]
        sent: list[list[tuple[str, object]]] = [[] for _ in publishers]
        for _ in range(400):
            publisher = dice.randrange(PUBLISHERS)
            commands: list[Command] = []
            for _ in range(dice.choice([1, 2, 5, 20])):
                kind = dice.choice(["direct", "direct", "channel", "channel", "broadcast", "flip", "flip"])
                text = f"{publisher}.{len(sent[publisher])}"
                if kind == "flip":
                    who = dice.choice([*FLAPPING, *OUTSIDERS])
                    commands.append(flip(who, dice.choice(CHANNELS[:2]), dice.random() < 0.5, dice.random() < 0.5))
                    continue
                target: object = None
                if kind == "direct":
                    target = dice.choice(list(terminals))
                    commands.append(direct(nodes, target, text))
                elif kind == "channel":
                    target = dice.choice(CHANNELS)
                    commands += to_channel(nodes, target, text)
                else:
                    commands += to_channel(nodes, None, text)
                sent[publisher].append((kind, target))
            run(publishers[publisher], commands)
            await asyncio.sleep(0)
        for publisher, own in enumerate(publishers):
            run(own, to_channel(nodes, None, f"{publisher}.end"))

        for client_id, terminal in terminals.items():
            got: dict[int, list[int]] = defaultdict(list)
            ends = 0
            while ends < PUBLISHERS:
                publisher_text, number = (await terminal.next()).strip('"').split(".")
                if number == "end":
                    ends += 1
                else:
                    got[int(publisher_text)].append(int(number))
            for publisher in range(PUBLISHERS):
                numbers = got[publisher]
                assert numbers == sorted(set(numbers)), f"client {client_id} got them out of order, or twice"
                channels = STEADY.get(client_id, set())
                certain = [
                    number
                    for number, (kind, target) in enumerate(sent[publisher])
                    if kind == "broadcast" or target == client_id or target in channels
                ]
                if client_id in STEADY:
                    assert numbers == certain
                else:
                    assert set(certain) <= set(numbers)
                    more = {sent[publisher][number] for number in set(numbers) - set(certain)}
                    assert more == {("channel", "red"), ("channel", "blue")}, "it joined these two, and now and then"
            await terminal.close()
        for each in publishers:
            each.close()
