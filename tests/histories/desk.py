"""Executes commands on a real Redis and on the model, and compares what came back and what was published."""

from __future__ import annotations

import itertools
import json
from typing import Any

import hiredis

from freeim.names import Names
from freeim.scripts import load_script
from tests.histories.actors import Command, Conn, Instance, Pipe
from tests.histories.model import Model
from tests.servers import RedisServer, ServerError, Wire

BURIED_AT_ONCE = 2
"""In place of 100, so that a burial takes several scripts and others come in between."""


def _short_burials() -> str:
    """Return close.lua with small slices; and from the front, since a history must run the same way twice."""
    text = load_script("close").text
    shorter = text.replace(
        "redis.call('HRANDFIELD', KEYS[1], 100)", f"{{unpack(redis.call('HKEYS', KEYS[1]), 1, {BURIED_AT_ONCE})}}"
    )
    assert shorter != text
    return shorter


class Desk:
    """Redis, the model, and what is true whatever either says. Use `clear` before each history."""

    def __init__(self, server: RedisServer) -> None:
        self.names = Names("h")
        self.model = Model()
        self.conns: dict[str, Conn] = {}
        self.instances: list[Instance] = []
        self.log: list[str] = []
        self.said: dict[str, int] = {}
        """How many connections each client had by its last event; without those whom Redis has forgotten since."""
        self._tokens = itertools.count(1)
        self._epochs = itertools.count(10)
        self._fences = itertools.count(1)
        self._wire = server.wire()
        self._events = server.wire()
        self._events("SUBSCRIBE", "fence")
        for channel in (self.names.event_online, self.names.event_offline):
            self._events("SUBSCRIBE", channel)
        self._subscribers: list[Wire] = [server.wire() for _ in range(8)]
        self._subscribed: dict[Instance, Wire] = {}
        self._bury = _short_burials()
        self._replayable: list[tuple[Instance, Command]] = []

    def close(self) -> None:
        for wire in (self._wire, self._events, *self._subscribers):
            wire.close()

    def end(self) -> None:
        """End all processes, inside their loop."""
        for instance in self.instances:
            instance.predecessor = instance.successor = None
            if instance.here:
                instance.kill()

    def clear(self) -> None:
        """Begin a history."""
        self.instances.clear()
        self.conns.clear()
        self.log.clear()
        self.said.clear()
        self._replayable.clear()
        self.model = Model()
        self._tokens = itertools.count(1)
        self._epochs = itertools.count(10)
        self._wire("FLUSHALL")
        self._drain()

    # ---- subscriptions, by which take.lua knows a process

    def subscribe(self, instance: Instance) -> None:
        wire = self._subscribed[instance] = self._subscribers.pop()
        wire("SUBSCRIBE", self.names.server(instance.name))

    def unsubscribe(self, instance: Instance) -> None:
        wire = self._subscribed.pop(instance, None)
        if wire is not None:
            wire.send("UNSUBSCRIBE")
            while wire.read()[0] != b"unsubscribe":
                pass
            self._subscribers.append(wire)

    @property
    def free(self) -> int:
        """Processes that may still be started."""
        return len(self._subscribers)

    # ---- helpers' calls

    def new_epoch(self) -> str:
        return f"{next(self._epochs):x}"

    def new_token(self) -> str:
        token = str(next(self._tokens))
        self._wire("SET", self.names.token(token), "x")
        self.model.tokens.add(token)
        return token

    def join(self, client: str, channel: str) -> None:
        self._membership("join", client, channel)
        self.model.join(client, channel)
        self._heard()

    def leave(self, client: str, channel: str) -> None:
        self._membership("leave", client, channel)
        self.model.leave(client, channel)
        self._heard()

    def _membership(self, script: str, client: str, channel: str) -> None:
        keys = [self.names.list_chan, self.names.chan(channel), self.names.client(int(client))]
        self._wire("EVAL", load_script(script).text, len(keys), *keys, client, channel)

    # ---- what time and failures do to Redis

    def expire(self, epoch: str) -> None:
        """A lease runs out: the life of an instance, and the name where that instance has it."""
        name = self.model.shares[epoch]
        for instance in self.instances:
            instance.losses += instance.epoch == epoch
        self._wire("DEL", self.names.alive(epoch))
        self.model.alive.discard(epoch)
        if self.model.lease.get(name) == epoch:
            self._wire("DEL", self.names.lease(name))
            del self.model.lease[name]

    def flush(self) -> None:
        """Redis comes back empty."""
        self._wire("FLUSHALL")
        self.model.flush()
        self.said.clear()
        for conn in self.conns.values():
            conn.counted = False
        for instance in self.instances:
            instance.losses += 1

    # ---- commands of instances

    def execute(self, instance: Instance) -> None:
        """Let Redis execute the next command of an instance."""
        pipe: Pipe = instance.pipe
        command, callback = pipe.sent.popleft()
        reply = self._execute(instance, command)
        pipe.replies.append((callback, reply))
        script, keys, _ = command
        # A beat is never late: its process waits for the answer. An opening without a token is never sent again.
        if script is None:
            return
        if script.name in ("close", "drain") or (script.name == "open" and len(keys) > 6 and reply > 0):
            self._replayable.append((instance, command))

    def replay(self, choose: Any) -> None:
        """Let Redis execute again what it has executed at any time before."""
        if self._replayable:
            instance, command = choose(self._replayable)
            self.log.append(f"replay {command[0].name} of {instance.epoch}")
            self._execute(instance, command)

    def bury(self, epoch: str) -> int:
        """Bury as an instance without connections would."""
        names = self.names
        keys: list[str | bytes] = [
            *(names.share(epoch), names.online, names.list_chan, names.shares, names.alive(epoch), names.gone),
        ]
        return int(self._execute(None, (load_script("close"), keys, (names.prefix, names.event_offline, epoch))))

    def _execute(self, instance: Instance | None, command: Command) -> Any:
        script, keys, args = command
        buries = script is not None and script.name == "close" and args[2] != ""
        shown = "bury" if buries else script.name if script else "a plain command"
        self.log.append(f"{instance.epoch if instance else 'nobody'}: {shown} {args[1:] if script else args}")
        self.model.events.clear()
        before = set(self.model.alive)
        if buries:
            self._before_burial = self._wire("HKEYS", keys[0])
        try:
            if script is None:
                return self._wire(*args)
            text = self._bury if buries else script.text
            reply = self._wire("EVAL", text, len(keys), *keys, *args)
        except ServerError as error:
            return hiredis.ReplyError(str(error))
        events = self._drain()
        expected = self._predict(instance, script.name, keys, args)
        found = reply[0] if script.name == "take" else reply
        assert found == expected, f"{script.name} answered {found!r}, not {expected!r}"
        assert events == self.model.events, f"{script.name} published {events}, not {self.model.events}"
        for kind, payload in events:
            self._check_event(kind, payload, before)
        self._heard()
        return reply

    def _predict(
        self,
        instance: Instance | None,
        script: str,
        keys: list[str | bytes],
        args: tuple[str | bytes | int, ...],
    ) -> Any:
        model = self.model
        if script == "close" and args[2] != "":
            return self._predict_burial(str(args[2]))
        assert instance is not None
        name, epoch = instance.name, instance.epoch
        texts = [each.decode() if isinstance(each, bytes) else str(each) for each in args]
        if script == "open":
            token = str(keys[6]).removeprefix(self.names.token("")) if len(keys) > 6 else None
            reply = model.open(epoch, texts[1], texts[2], texts[3], token, texts[5:])
            known = any(conn.client.id.decode() == texts[2] for conn in instance.living.values())
            if reply > 0 and instance.pipe.connected and not known:
                self._read_channels(instance, texts[2])  # a client's first: HKEYS goes to Redis at the same moment
            return reply
        if script == "close":
            return sum(model.close(epoch, number) for number in texts[3:])
        if script == "drain":
            return self._predict_drain(name, epoch, texts[2], texts[5:])
        if script == "beat":
            return model.beat(name, epoch, texts[7], texts[8])
        subscribers = sum(other.name == name for other in self._subscribed)
        if script == "dead":
            return model.dead(str(keys[0]).removeprefix(self.names.alive("")), subscribers)
        if script == "release":
            return model.release(name, epoch)
        assert script == "take"
        owner_lives = model.lease.get(name) in model.alive and subscribers > 1
        return model.take(name, epoch, owner_lives, bool(instance.presence._options.takeover), texts[10])

    def _predict_drain(self, name: str, epoch: str, heir: str, numbers: list[str]) -> int:
        """What is taken out without an event is not counted from then on; whoever has the name is told who is gone."""
        before = set(self.model.share[epoch])
        reply, heir, gone = self.model.drain(name, epoch, heir, numbers)
        for number in before - set(self.model.share[epoch]):
            conn = self.conns[f"{epoch}/{number}"]
            conn.counted, conn.handed_over = False, True
        for instance in self.instances:
            if gone and instance.epoch == heir and instance.here and instance.pipe.connected:
                instance.await_return(gone)
        return reply

    def _predict_burial(self, epoch: str) -> int:
        """Which connections go first is Redis's affair."""
        model = self.model
        if epoch in model.alive:
            return -1
        if not model.share[epoch]:
            model.shares.pop(epoch, None)
            return 0
        first = [each.decode() for each in self._before_burial[:BURIED_AT_ONCE]]
        size = sum(model.close(epoch, number) for number in first)
        if not model.share[epoch]:
            model.shares.pop(epoch, None)
        return size

    def _drain(self) -> list[tuple[str, str]]:
        """Return all events since the last look."""
        mark = str(next(self._fences)).encode()
        self._wire("PUBLISH", "fence", mark)
        events: list[tuple[str, str]] = []
        while True:
            _, channel, payload = self._events.read()
            if channel == b"fence":
                if payload == mark:
                    return events
                continue
            kind = "Online" if channel.decode() == self.names.event_online else "Offline"
            events.append((kind, payload.decode()))

    # ---- what is true

    def _check_event(self, kind: str, payload: str, alive: set[str]) -> None:
        mark, connections = json.loads(payload)["Item2"], json.loads(payload)["Item3"]
        conn = self.conns[mark]
        client = conn.client.id.decode()
        if kind == "Offline" and conn.handed_over:
            # Said by the instance that has the name now, for the client and not for the connection.
            assert connections == 0, f"{client} has come back"
            assert not any(each.counted for each in self.conns.values() if each.client.id == conn.client.id)
        else:
            assert conn.counted == (kind == "Offline"), f"a second {kind} of {mark}"
            conn.counted = kind == "Online"
            conn.handed_over = False
        assert connections or self.said.get(client) != 0, f"{client} was offline already"
        self.said[client] = connections
        if kind == "Offline":
            assert not conn.socket or mark.partition("/")[0] not in alive, f"{mark} lives, and so does its node"

    def _heard(self) -> None:
        """Redis tells those who hear that Client hashes have changed."""
        for instance in self.instances:
            if instance.hears:
                for client in {conn.client.id.decode() for conn in instance.living.values()}:
                    self._read_channels(instance, client)

    def _read_channels(self, instance: Instance, client: str) -> None:
        channels = sorted(channel for who, channel in self.model.index if who == client)
        instance._clients[client].channel_names = [channel.encode() for channel in channels]

    def compare(self) -> None:
        """Compare all of Redis with the model."""
        model, names = self.model, self.names
        found: dict[str, Any] = {}
        for raw in self._wire("KEYS", f"{names.prefix}*"):
            key = raw.decode()
            if self._wire("TYPE", key) == b"hash":
                flat = [each.decode() for each in self._wire("HGETALL", key)]
                found[key] = dict(zip(flat[::2], flat[1::2], strict=True))
            elif key not in (names.nodes, names.urls):
                found[key] = self._wire("GET", key).decode()
        expected: dict[str, Any] = {names.token(token): "x" for token in model.tokens}
        expected |= {names.lease(name): epoch for name, epoch in model.lease.items()}
        expected |= {names.alive(epoch): model.shares[epoch] for epoch in model.alive}
        for epoch, share in model.share.items():
            expected[names.share(epoch)] = {number: f"{who} {text}" for number, (who, text) in share.items()}
        expected[names.shares] = dict(model.shares)
        expected[names.gone] = dict(model.gone)
        expected[names.online] = {client: str(count) for client, count in model.online.items() if count}
        counts = {channel: str(sum(pair[1] == channel for pair in model.members)) for _, channel in model.members}
        expected[names.list_chan] = counts
        for client, channel in model.members:
            expected.setdefault(names.chan(channel), {})[client] = "0"
        for client, channel in model.index:
            expected.setdefault(names.client(int(client)), {})[channel] = "0"
        assert found == {key: value for key, value in expected.items() if value}
