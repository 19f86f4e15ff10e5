"""Joining, leaving and sending as raw commands: with our scripts, and as a .NET helper does it."""

from __future__ import annotations

import hashlib

from freeim import envelope
from freeim.names import ClientId, owners
from freeim.scripts import load_script
from tests.membership.terminals import NAMES
from tests.servers import Wire, encode_command

DOTNET_JOIN = """
if redis.call('HSETNX', KEYS[1], ARGV[1], 0) == 1 then
  redis.call('HSET', KEYS[2], ARGV[2], 0)
  redis.call('HINCRBY', KEYS[3], ARGV[2], 1)
end
return 1"""
DOTNET_LEAVE = """
if redis.call('HDEL', KEYS[1], ARGV[1]) == 1 then
  redis.call('HDEL', KEYS[2], ARGV[2])
  if redis.call('HINCRBY', KEYS[3], ARGV[2], -1) <= 0 then redis.call('HDEL', KEYS[3], ARGV[2]) end
end
return 1"""
OURS = {True: load_script("join").text, False: load_script("leave").text}
DOTNET = {True: DOTNET_JOIN, False: DOTNET_LEAVE}
_SHA = {text: hashlib.sha1(text.encode()).hexdigest() for text in (*OURS.values(), *DOTNET.values())}

Command = tuple[str | bytes | int, ...]


def load_scripts(wire: Wire) -> None:
    """Let Redis know the scripts that `flip` names."""
    for text in _SHA:
        wire("SCRIPT", "LOAD", text)


def flip(client_id: ClientId, channel: str, join: bool, dotnet: bool = False) -> Command:
    """Return the command that makes a client join or leave a channel."""
    chan, client, count = NAMES.chan(channel), NAMES.client(client_id), NAMES.list_chan
    if dotnet:
        return "EVALSHA", _SHA[DOTNET[join]], 3, chan, client, count, client_id, channel
    return "EVALSHA", _SHA[OURS[join]], 3, count, chan, client, client_id, channel


def direct(nodes: list[str], receiver: ClientId, text: str) -> Command:
    """Return the command that sends a message of the system to one client."""
    payload = envelope.direct(0, [receiver], envelope.direct_tail(f'"{text}"', False))
    return "PUBLISH", NAMES.server(owners(receiver, nodes)[0]), payload


def to_channel(nodes: list[str], channel: str | None, text: str) -> list[Command]:
    """Return the commands that send a message of the system to a channel, None for everybody."""
    payload = envelope.channel(0, channel, f'"{text}"')
    return [("PUBLISH", NAMES.server(node), payload) for node in nodes]


def run(wire: Wire, commands: list[Command]) -> list[object]:
    """Send commands in one write, and return their replies."""
    wire.sock.sendall(b"".join(map(encode_command, commands)))
    return [wire.read() for _ in commands]
