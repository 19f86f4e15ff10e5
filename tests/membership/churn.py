"""Everybody else: clients that join, leave, connect and disconnect all the while, and bystanders that stay.

A bystander is a member of every room from before to after: it must get each message to a room once, those of one
publishing process in their order.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys

import uvloop

from freeim.names import owners
from tests.membership.flips import Command, flip, load_scripts, run, to_channel
from tests.membership.processes import stdin_closed
from tests.membership.terminals import Ended, Terminal, grant
from tests.servers import Wire

FLIPS_PER_TURN = 10
TURN = 0.004
CONNECTED = 40
LAST = "last"


class Bystander:
    def __init__(self, terminal: Terminal) -> None:
        self.terminal = terminal
        self.got = 0
        self.disordered = 0
        self._last: dict[str, int] = {}

    async def listen(self) -> None:
        while (text := (await self.terminal.next(3600)).strip('"')) != LAST:
            process, _client, number, _kind = text.split(".")
            self.got += 1
            # Within one process the numbers rise; a message to two channels has its number twice.
            if int(number) < self._last.get(process, 0):
                self.disordered += 1
            self._last[process] = int(number)


async def drain(terminal: Terminal) -> None:
    try:
        while True:
            await terminal.next(3600)
    except Ended:
        pass


async def main(socket_path: str, nodes: list[str], rooms: list[str], first_id: int) -> None:
    wire = Wire(socket_path, 20)
    load_scripts(wire)
    dice = random.Random(1)
    ids = [first_id + n for n in range(CONNECTED + 20)]  # the last twenty never connect
    bystanders = []
    for n in range(len(nodes)):
        client_id = first_id + 1000 + n
        bystander = Bystander(await Terminal.connect(owners(client_id, nodes)[0], grant(wire, client_id)))
        run(wire, [flip(client_id, room, join=True) for room in rooms])
        bystanders.append(bystander)
    listening = [asyncio.create_task(each.listen()) for each in bystanders]
    flips = connects = 0
    terminals: dict[int, Terminal] = {}
    drains: set[asyncio.Task[None]] = set()
    stopped = asyncio.create_task(stdin_closed())
    print(json.dumps({"ready": True}), flush=True)
    while not stopped.done():
        commands: list[Command] = [
            flip(dice.choice(ids), dice.choice([*rooms, "hall", "other"]), dice.random() < 0.5, dice.random() < 0.5)
            for _ in range(FLIPS_PER_TURN)
        ]
        run(wire, commands)
        flips += len(commands)
        client_id = dice.choice(ids[:CONNECTED])
        if (old := terminals.pop(client_id, None)) is not None:
            await old.close()
        else:
            terminals[client_id] = await Terminal.connect(owners(client_id, nodes)[0], grant(wire, client_id))
            task = asyncio.create_task(drain(terminals[client_id]))
            drains.add(task)
            task.add_done_callback(drains.discard)
            connects += 1
        await asyncio.sleep(TURN)
    # All that the test waits for was published before our stdin was closed, so it arrives before what follows.
    run(wire, to_channel(nodes, None, LAST))
    async with asyncio.timeout(20):
        await asyncio.gather(*listening)
    result = {
        "flips": flips,
        "connects": connects,
        "got": [each.got for each in bystanders],
        "disordered": sum(each.disordered for each in bystanders),
    }
    print(json.dumps(result), flush=True)
    for task in drains:
        task.cancel()
    await asyncio.gather(*drains, return_exceptions=True)


if __name__ == "__main__":
    uvloop.run(main(**json.loads(sys.argv[1])))
