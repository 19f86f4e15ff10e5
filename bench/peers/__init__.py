"""Other servers that push to many: each is started and published to in its own way, and measured alike."""

from __future__ import annotations

from typing import Final

from bench.peers.base import Peer
from bench.peers.broadcaster import BroadcasterPeer
from bench.peers.centrifugo import CentrifugoPeer
from bench.peers.nchan import NchanPeer
from bench.peers.socketify import SocketifyPeer
from bench.peers.websockets import WebsocketsPeer

PEERS: Final[tuple[type[Peer], ...]] = (
    WebsocketsPeer,
    BroadcasterPeer,
    SocketifyPeer,
    NchanPeer,
    CentrifugoPeer,
)
