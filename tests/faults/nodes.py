"""Nodes as processes, with a lease that is short enough to wait for, and crowds of terminals on them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Iterable, Iterator
from http.client import HTTPConnection
from typing import Any

from freeim.names import new_token
from tests.cli.command import MODULE, Server
from tests.membership.terminals import NAMES, Terminal
from tests.node.harness import Listener, channel_message, direct, until
from tests.servers import RedisServer, encode_command, free_port

BEAT = 0.4
LEASE = 3 * BEAT
BURIED_SECONDS = 60.0
"""How long a burial may take: seven beats, but on a busy machine beats are late, and lives count as broken."""

# All that the lease consists of, 12.5 times as fast as by default.
_CODE = f"""
import sys
from freeim.node import burial, presence, session
vars(session).update(BEAT_INTERVAL={BEAT}, SILENCE_LIMIT={2 * BEAT}, MAX_BACKOFF={BEAT})
vars(presence).update(LEASE_MS={int(LEASE * 1000)})
vars(burial).update(BEAT_INTERVAL={BEAT}, LEASE_MS={int(LEASE * 1000)}, LATE={1.5 * BEAT})
from freeim.cli import main
sys.exit(main())
"""
SHORT = (sys.executable, "-P", "-c", _CODE)
DEFAULT = MODULE


def start(redis: RedisServer, name: str, names: list[str], *args: str, program: tuple[str, ...] = SHORT) -> Server:
    """Start a node; it serves once its banner is there."""
    return Server(
        *("--bind", name, "--node", name, "--nodes", ",".join(names), "--redis-url", redis.unix_url, *args),
        program=program,
    )


@contextlib.contextmanager
def nodes_on(redis: RedisServer, count: int, *, program: tuple[str, ...] = SHORT) -> Iterator[dict[str, Server]]:
    """Run nodes; give them by name, in the order of the partition."""
    names = [f"127.0.0.1:{free_port()}" for _ in range(count)]
    with contextlib.ExitStack() as stack:
        servers = {name: stack.enter_context(start(redis, name, names, program=program)) for name in names}
        for server in servers.values():
            server.banner()
        yield servers


def ask(name: str, path: str = "/ready", seconds: float = 5.0) -> tuple[int, str]:
    """Return status and body of what a node answers."""
    host, _, port = name.rpartition(":")
    connection = HTTPConnection(host, int(port), timeout=seconds)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def pipeline(redis: RedisServer, commands: Iterable[tuple[str | int, ...]]) -> list[Any]:
    """Run many commands in one write."""
    packed = [encode_command(command) for command in commands]
    with redis.wire() as wire:
        wire.sock.sendall(b"".join(packed))
        return [wire.read() for _ in packed]


def metadata(client: int) -> str:
    return f"metadata of {client}"


async def connect_all(redis: RedisServer, name: str, clients: Iterable[int], *channels: str) -> dict[int, Terminal]:
    """Authorise clients, make them members of channels, and connect each of them to a node."""
    tokens = {client: new_token() for client in clients}
    commands: list[tuple[str | int, ...]] = []
    for client, token in tokens.items():
        value = json.dumps({"Item1": client, "Item2": metadata(client)}, separators=(",", ":"))
        commands.append(("SET", NAMES.token(token), value, "EX", 60))
        for channel in channels:
            commands.append(("HSET", NAMES.chan(channel), client, 0))
            commands.append(("HSET", NAMES.client(client), channel, 0))
            commands.append(("HINCRBY", NAMES.list_chan, channel, 1))
    pipeline(redis, commands)
    terminals: dict[int, Terminal] = {}
    pairs = list(tokens.items())
    for first in range(0, len(pairs), 250):
        some = pairs[first : first + 250]
        opened = await asyncio.gather(*(Terminal.connect(name, token) for _, token in some))
        terminals |= zip((client for client, _ in some), opened, strict=True)
    return terminals


def tell(redis: RedisServer, name: str, client: int, message: object) -> None:
    """Publish a direct message on a node's channel."""
    redis.command("PUBLISH", NAMES.server(name), direct([client], message))


def tell_channel(redis: RedisServer, names: Iterable[str], channel: str, message: object) -> None:
    """Publish a channel message as the helper does: on each node's channel."""
    for name in names:
        redis.command("PUBLISH", NAMES.server(name), channel_message(channel, message))


class Events(Listener):
    """Hears the Online and Offline events, as (client, connections) and with the right metadata each."""

    def __init__(self, redis: RedisServer) -> None:
        super().__init__(redis, NAMES.event_online, NAMES.event_offline)

    def _of(self, channel: str) -> list[tuple[int, int]]:
        events = [json.loads(payload) for where, payload in self._heard if where == channel]
        assert all(event["Item2"] == metadata(event["Item1"]) for event in events)
        return [(event["Item1"], event["Item3"]) for event in events]

    @property
    def online(self) -> list[tuple[int, int]]:
        return self._of(NAMES.event_online)

    @property
    def offline(self) -> list[tuple[int, int]]:
        return self._of(NAMES.event_offline)

    async def some(self, count: int, seconds: float) -> None:
        """Wait until so many events have been heard."""
        await until(lambda: self.waiting >= count, f"{count} events", seconds)


def no_ghosts(redis: RedisServer, living: Iterable[int], channel: str) -> None:
    """Show that Redis knows of exactly these clients: in presence, in the channel, its count and their hashes."""
    clients = {str(client) for client in living}
    assert set(redis.hash(NAMES.online)) == clients
    assert set(redis.hash(NAMES.chan(channel))) == clients
    assert redis.hash(NAMES.list_chan) == ({channel: str(len(clients))} if clients else {})
    keys = {key.decode() for key in redis.command("KEYS", NAMES.client("") + "*")}
    assert keys == {NAMES.client(client) for client in clients}
    counted = [redis.command("HLEN", NAMES.share(epoch)) for epoch in redis.hash(NAMES.shares)]
    assert sum(counted) == len(clients)
    shares = {key.decode() for key in redis.command("KEYS", NAMES.share("") + "*")} - {NAMES.shares}
    assert shares <= {NAMES.share(epoch) for epoch in redis.hash(NAMES.shares)}
