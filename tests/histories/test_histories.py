"""open, close, bury, beat, take and release in any order, with crashes, cuts, freezes, lost leases and replays.

After each script Redis must agree with the model in what it answers and publishes. Beside the model stands what is
true: which sockets are open. No Offline is published for a connection whose socket is open and whose node lives, none
twice. At the end everybody comes to rest, and Redis must hold the living, all of them, and nobody else.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from freeim.node import presence
from freeim.node.presence import Stance
from tests.histories.actors import NODES, Conn, Instance
from tests.histories.desk import Desk
from tests.servers import RedisServer

CLIENTS = ["1", "-2", "9223372036854775807"]
CHANNELS = ["red", "blue"]
STEPS = 120
PROCESSES = 4
"""At a time."""

Pair = tuple[str, str]


class History:
    """One random history.

    Args:
        desk: Redis and the model, empty.
        chance: Where all choices come from.
    """

    def __init__(self, desk: Desk, chance: random.Random) -> None:
        self.desk = desk
        self.chance = chance
        self.sure: dict[Pair, bool] = {}
        """Memberships that the last call has decided, since every node that has the client has heard of it."""
        self.actions: list[tuple[int, Callable[[], None]]] = [
            (30, self.execute),
            (25, self.read),
            (10, self.open),
            (6, self.drop),
            (5, self.change_membership),
            (5, self.beat),
            (4, self.reconnect),
            (3, self.start),
            (4, self.hand_over),
            (4, self.send_away),
            (2, self.give_up),
            (2, self.cut),
            (2, self.expire),
            (3, self.bury),
            (2, self.freeze),
            (2, self.thaw),
            (1, self.kill),
            (1, self.stop),
            (2, self.replay),
            (1, self.flush),
        ]
        self._deck = [action for weight, action in self.actions for _ in range(weight)]

    async def play(self) -> None:
        try:
            self.start()
            for _ in range(STEPS):
                await self.turn()
                self.chance.choice(self._deck)()
                self.forget_the_absent()
            await self.come_to_rest()
        finally:
            await self.turn()
            self.desk.end()
            await self.turn()

    async def turn(self) -> None:
        for _ in range(4):
            await asyncio.sleep(0)
        self.forget_the_absent()

    def log(self, what: str) -> None:
        self.desk.log.append(what)

    def pick(self, wanted: Callable[[Instance], object]) -> Instance | None:
        found = [each for each in self.desk.instances if each.here and wanted(each)]
        return self.chance.choice(found) if found else None

    # ---- what may happen

    def start(self) -> None:
        if sum(each.here for each in self.desk.instances) < PROCESSES:
            instance = Instance(self.desk, self.chance.choice(NODES), takeover=self.chance.random() < 0.3)
            self.log(f"{instance.epoch} starts as {instance.name}")
            self.desk.instances.append(instance)

    def hand_over(self) -> None:
        """A second process is started for the name of one that serves, which hands over to it."""
        instance = self.pick(
            lambda each: (
                each.serves
                and not each.draining
                and not each.frozen
                and each.presence.stance != Stance.DRAINS
                and not (each.successor and each.successor.here)
                and not (each.predecessor and each.predecessor.here)
                and not each.awaited
            )
        )
        if instance and self.desk.free:
            successor = Instance(self.desk, instance.name, predecessor=instance)
            self.log(f"{instance.epoch} hands {instance.name} over to {successor.epoch}")
            self.desk.instances.append(successor)

    def send_away(self) -> None:
        """An instance that drains closes a connection, or ends where there is none left."""
        instance = self.pick(lambda each: each.presence.stance == Stance.DRAINS and not each.frozen and not each.busy)
        if instance and instance.conns:
            conn = self.chance.choice(instance.conns)
            conn.socket = False
            self.log(f"{instance.epoch} sends {conn.number} away")
            instance.gone(conn)
        elif instance and instance.pipe.up:
            self.log(f"{instance.epoch} has drained")
            instance.begin(instance.release())

    def give_up(self) -> None:
        instance = self.pick(lambda each: each.awaited and not each.frozen)
        if instance:
            self.log(f"{instance.epoch} waits no longer for {instance.awaited}")
            instance.give_up()

    def execute(self) -> None:
        instance = self.pick(lambda each: each.pipe.sent)
        if instance:
            self.desk.execute(instance)

    def read(self) -> None:
        instance = self.pick(lambda each: each.pipe.replies and not each.frozen)
        if instance:
            callback, reply = instance.pipe.replies.popleft()
            callback(reply)

    def open(self) -> None:
        instance = self.pick(lambda each: each.pipe.up and not each.frozen and not each.draining)
        if instance:
            stolen = [conn.token for conn in self.desk.conns.values()]
            token = self.chance.choice(stolen) if stolen and self.chance.random() < 0.1 else None
            conn = instance.open(self.chance.choice(CLIENTS), token)
            self.log(f"{instance.epoch} opens {conn.number} for {conn.client.id.decode()}")

    def drop(self) -> None:
        instance = self.pick(lambda each: any(conn.socket for conn in each.conns))
        if instance:
            conn = self.chance.choice([conn for conn in instance.conns if conn.socket])
            conn.socket = False
            self.log(f"{instance.epoch} loses the socket of {conn.number}")
            if not instance.frozen:
                instance.gone(conn)

    def change_membership(self) -> None:
        client, channel = self.chance.choice(CLIENTS), self.chance.choice(CHANNELS)
        joins = self.chance.random() < 0.7
        self.log(f"{client} {'joins' if joins else 'leaves'} {channel}")
        (self.desk.join if joins else self.desk.leave)(client, channel)
        holders = [
            each
            for each in self.desk.instances
            if each.here and any(conn.client.id.decode() == client for conn in each.conns)
        ]
        self.sure.pop((client, channel), None)
        if holders and all(each.hears for each in holders):
            self.sure[client, channel] = joins

    def forget_the_absent(self) -> None:
        """Membership ends with the last connection; how far that has come is the model's business."""
        here = {conn.client.id.decode() for conn in self.connected()}
        self.sure = {pair: value for pair, value in self.sure.items() if pair[0] in here}

    def connected(self) -> list[Conn]:
        model = self.desk.model
        # One that was given up while another took its name puts nothing back: it sends its terminals away.
        lost = [each for each in self.desk.instances if each.epoch not in model.alive and each.name in model.lease]
        return [
            conn
            for each in self.desk.instances
            if each.here and each not in lost
            for conn in each.living.values()
            if conn.socket
        ]

    def beat(self) -> None:
        instance = self.pick(lambda each: each.pipe.up and not each.frozen and not each.busy)
        if instance:
            instance.begin(instance.beat())

    def reconnect(self) -> None:
        instance = self.pick(lambda each: not each.pipe.connected and not each.frozen and not each.busy)
        if instance:
            self.log(f"{instance.epoch} connects again")
            instance.begin(instance.recover())

    def cut(self) -> None:
        instance = self.pick(lambda each: each.pipe.connected)
        if instance:
            self.log(f"{instance.epoch} is cut")
            instance.cut()

    def expire(self) -> None:
        if self.desk.model.alive:
            epoch = self.chance.choice(sorted(self.desk.model.alive))
            self.log(f"the lease of {epoch} runs out")
            self.desk.expire(epoch)

    def bury(self) -> None:
        instance = self.pick(lambda each: each.pipe.up and not each.frozen and not each.busy)
        shares = sorted(self.desk.model.shares)
        if instance and shares:
            instance.begin(instance.bury(self.chance.choice(shares)))

    def freeze(self) -> None:
        instance = self.pick(lambda each: not each.frozen)
        if instance:
            self.log(f"{instance.epoch} freezes")
            instance.frozen = True

    def thaw(self) -> None:
        instance = self.pick(lambda each: each.frozen)
        if instance:
            self.log(f"{instance.epoch} thaws")
            instance.thaw()

    def kill(self) -> None:
        instance = self.pick(lambda each: True)
        if instance:
            self.log(f"{instance.epoch} is killed")
            instance.kill()

    def stop(self) -> None:
        instance = self.pick(lambda each: each.pipe.up and not each.frozen and not each.busy)
        if instance:
            self.log(f"{instance.epoch} stops")
            instance.drain()

    def replay(self) -> None:
        self.desk.replay(self.chance.choice)

    def flush(self) -> None:
        if self.chance.random() < 0.3:
            self.log("Redis loses everything")
            self.desk.flush()

    # ---- the end

    async def settle(self) -> None:
        """Let everything that is under way arrive."""
        for _ in range(10_000):
            await self.turn()
            moving = [each for each in self.desk.instances if each.here and (each.pipe.sent or each.pipe.replies)]
            if not moving:
                if not any(each.here and each.busy for each in self.desk.instances):
                    return
                continue
            for instance in moving:
                if instance.pipe.sent:
                    self.desk.execute(instance)
                while instance.pipe.replies:
                    callback, reply = instance.pipe.replies.popleft()
                    callback(reply)
                self.forget_the_absent()
        raise AssertionError("it never comes to rest")

    async def come_to_rest(self) -> None:
        self.log("everybody comes to rest")
        present = [each for each in self.desk.instances if each.here]
        for instance in present:
            if instance.frozen:
                instance.thaw()
        await self.settle()
        for _ in range(3):  # a beat may tell that another took the name, and a start may have waited for a burial
            for instance in self.desk.instances:
                if instance.here:
                    instance.begin(instance.beat() if instance.pipe.up else instance.recover())
            await self.settle()
        for instance in self.desk.instances:
            if instance.here and instance.presence.stance == Stance.DRAINS:
                instance.drain()
        await self.settle()
        for instance in self.desk.instances:
            if instance.here and instance.draining:
                instance.begin(instance.release())
            elif instance.here:
                instance.give_up()
        await self.settle()
        living = [each for each in self.desk.instances if each.here]
        for epoch in sorted(set(self.desk.model.alive) - {each.epoch for each in living}):
            self.desk.expire(epoch)
        for epoch in sorted(self.desk.model.shares):
            while self.desk.bury(epoch) > 0:
                pass
        self.check_the_end(living)

    def check_the_end(self, living: list[Instance]) -> None:
        model = self.desk.model
        self.desk.compare()
        assert all(conn.socket for each in living for conn in each.conns)
        expected = Counter(conn.client.id.decode() for each in living for conn in each.living.values())
        assert +model.online == expected, "the living are online, and nobody else"
        assert set(model.shares) == {each.epoch for each in living}
        counted = {mark for mark, conn in self.desk.conns.items() if conn.counted}
        assert counted == {f"{each.epoch}/{number}" for each in living for number in each.living}, (
            "events tell who is here"
        )
        online = {client for client, connections in self.desk.said.items() if connections}
        assert online == set(expected) & set(self.desk.said), "by the last event of each client it is here or not"
        self.forget_the_absent()
        for pair, value in self.sure.items():
            assert (pair in model.members) == value, f"the membership {pair}"


@pytest.fixture(scope="module")
def desk(session_redis_server: RedisServer) -> Iterator[Desk]:
    desk = Desk(session_redis_server)
    with pytest.MonkeyPatch.context() as patch:
        for limit in ("OPENS_PER_TURN", "OPENS_PER_BEAT"):  # so that much happens while connections are put back
            patch.setattr(presence, limit, 1)
        patch.setattr(presence, "_HEIR_LOOKS", 1)
        patch.setattr(presence, "_HEIR_SECONDS", 0)
        yield desk
    desk.close()


@pytest.mark.slow
@pytest.mark.timeout(400)
@settings(max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.randoms(use_true_random=False))
def test_no_ghost_stays_and_nobody_who_lives_is_lost_in_any_history(desk: Desk, chance: random.Random) -> None:
    desk.clear()
    try:
        uvloop.run(History(desk, chance).play())
    except AssertionError as error:
        error.add_note("\n".join(desk.log))
        raise
