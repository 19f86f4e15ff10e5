"""One publishing process of the hammer: flips memberships of its clients, sends, and compares what arrives.

A *pair* is one join or leave, whatever is sent after it, and the fence: a direct message published last, by the same
connection to the same client. Between the flip and the fence nothing else changes that membership, so exactly one
outcome is right.
"""

from __future__ import annotations

import json
import random
import sys
import time
from typing import Any

from freeim import ImHelper
from freeim.names import owners
from tests.membership.flips import Command, direct, flip, load_scripts, run, to_channel
from tests.membership.terminals import BlockingTerminal, grant
from tests.servers import Wire

MODES = ("returned",) * 4 + ("pipelined",) * 2 + ("transaction",) * 2 + ("helper",)
"""returned: the flip is answered before anything is sent. pipelined, transaction: Redis gets both at once, so that no
time at all passes between them. helper: as returned, by an application's means."""


class Hammered:
    """One client of this process, and what it is a member of."""

    def __init__(self, client_id: int, terminal: BlockingTerminal, channels: list[str]) -> None:
        self.id = client_id
        self.terminal = terminal
        self.member = dict.fromkeys(channels, False)


def main(socket_path: str, nodes: list[str], process: int, clients: list[int], seconds: float, pairs: int) -> None:
    dice = random.Random(process)
    wire = Wire(socket_path, 20)
    load_scripts(wire)
    helper = ImHelper(f"unix://{socket_path}", nodes=nodes)
    hammered = []
    for place, client_id in enumerate(clients):
        terminal = BlockingTerminal(owners(client_id, nodes)[0], grant(wire, client_id))
        # A room is shared by one client of each process, the hall by everybody.
        hammered.append(Hammered(client_id, terminal, [f"room{place}", "hall"]))
    print(json.dumps({"ready": process}), flush=True)
    sys.stdin.readline()
    result: dict[str, Any] = dict.fromkeys(("pairs", "missed", "strays", "disordered", "in_rooms", "directs"), 0)
    result["examples"] = []
    started = time.monotonic()
    number = 0
    while result["pairs"] < pairs and time.monotonic() - started < seconds:
        mode = dice.choice(MODES)
        before: list[Command] = []
        after: list[Command] = []
        expected: list[tuple[Hammered, list[str], bytes]] = []
        for each in hammered:
            number += 1
            tag = f"{process}.{each.id}.{number}"
            by_helper = helper if mode == "helper" else None
            room, hall = each.member
            channel = dice.choice([room, room, hall])
            join = each.member[channel] = not each.member[channel]
            change = flip(each.id, channel, join, dotnet=dice.random() < 0.5)
            if by_helper:
                (by_helper.join_chan if join else by_helper.leave_chan)(each.id, channel)
            texts: list[str] = []
            sends: list[Command] = []
            if dice.random() < 0.3:
                if by_helper:
                    by_helper.send_message(0, each.id, f"{tag}.d")
                sends.append(direct(nodes, each.id, f"{tag}.d"))
                texts.append(f"{tag}.d")
                result["directs"] += 1
            for name in [channel] if dice.random() < 0.8 else dice.sample([*each.member], 2):
                if by_helper:
                    by_helper.send_chan_message(0, name, f"{tag}.{name}")
                sends += to_channel(nodes, name, f"{tag}.{name}")
                result["in_rooms"] += name != "hall"
                if each.member[name]:
                    texts.append(f"{tag}.{name}")
            sends.append(direct(nodes, each.id, f"{tag}.fence"))
            if by_helper:
                by_helper.send_message(0, each.id, f"{tag}.fence")
            if mode == "returned":
                before.append(change)
                after += sends
            elif mode == "pipelined":
                after += [change, *sends]
            elif mode == "transaction":
                after += [("MULTI",), change, *sends, ("EXEC",)]
            expected.append((each, texts, f'"{tag}.fence"'.encode()))
        run(wire, before)
        run(wire, after)
        for each, texts, fence in expected:
            mine = f'"{process}.{each.id}.'.encode()
            got = []
            while (text := each.terminal.next()) != fence:
                if text.startswith(mine):
                    got.append(text.decode().strip('"'))
            result["pairs"] += 1
            if got == texts:
                continue
            missed, strays = set(texts) - set(got), [text for text in got if text not in texts]
            result["missed"] += len(missed)
            result["strays"] += len(strays)
            result["disordered"] += not missed and not strays
            if len(result["examples"]) < 5:
                result["examples"].append({"mode": mode, "wanted": texts, "got": got})
    result["seconds"] = time.monotonic() - started
    print(json.dumps(result), flush=True)
    sys.stdin.read()  # the connections stay until the test has counted what the bystanders got


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
