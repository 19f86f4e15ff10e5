"""Event buses of both kinds behind one face."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from freeim import AsyncImHelper, Event, ImHelper
from tests.servers import RedisServer

ONLINE = "evt_im_v2_wsOnline"
OFFLINE = "evt_im_v2_wsOffline"


def wait_for(condition: Callable[[], object], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


class Both:
    """A bus of either kind, run where it belongs, seen from the test's own thread."""

    def __init__(self, kind: str, url: str, **callbacks: Any) -> None:
        self.kind = kind
        self.events: list[Event] = []
        self.resyncs = 0
        callbacks.setdefault("online", self.events.append)
        callbacks.setdefault("offline", self.events.append)
        callbacks.setdefault("resync", self.count)
        if kind == "sync":
            self.helper = ImHelper(url, nodes=["a"])
            self.bus: Any = self.helper.event_bus(**callbacks)
            return
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.ahelper = AsyncImHelper(url, nodes=["a"])

        async def start() -> Any:
            bus = self.ahelper.event_bus(**callbacks)
            await bus.__aenter__()
            return bus

        self.bus = self.run(start())

    def count(self) -> None:
        self.resyncs += 1

    def run(self, work: Awaitable[Any]) -> Any:
        async def wrapped() -> Any:
            return await work

        return asyncio.run_coroutine_threadsafe(wrapped(), self.loop).result(15)

    def stop(self) -> None:
        if self.kind == "sync":
            self.bus.stop(5)
        else:
            self.run(self.bus.stop(5))

    def close(self) -> None:
        if self.kind == "sync":
            self.helper.close()
            return
        self.run(self.ahelper.aclose())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(5)
        self.loop.close()


def publish(server: RedisServer, client_ids: Iterable[int]) -> None:
    """Publish an Online event of each client, as a node does."""
    with server.wire() as wire:
        for client_id in client_ids:
            wire("PUBLISH", ONLINE, f'{{"Item1":{client_id},"Item2":null,"Item3":1}}')
