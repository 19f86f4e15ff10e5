"""The clock of a node's connections: it looks at deadlines, pings terminals, and sees how late the loop is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from freeim._core import Connection
from freeim.node.histogram import Histogram
from freeim.node.terminal import PING, Terminal
from freeim.node.timers import PingWheel

TICK: Final = 0.1
"""Seconds between two looks at the deadlines."""

STANDSTILL: Final = 0.5
"""Seconds that a look is late from which on the process stood still: it was stopped, or the machine had no time."""


class Clockwork:
    """Ticks from `start` to `stop`.

    Args:
        ping_interval: Seconds between two pings of one terminal.
        ping_timeout: Seconds to answer one, at most the interval.
        on_tick: Called every `TICK` with the loop's time.
        on_no_pong: Called with each connection that did not answer a ping in time.
    """

    def __init__(
        self,
        ping_interval: float,
        ping_timeout: float,
        on_tick: Callable[[float], None],
        on_no_pong: Callable[[Connection], None],
    ) -> None:
        self.lag = Histogram()
        """How late the loop was."""
        self._on_tick = on_tick
        self._on_no_pong = on_no_pong
        self._loop = asyncio.get_running_loop()
        self._pings: PingWheel[Terminal] = PingWheel(ping_interval, ping_timeout, self._ping, self._check_pong)
        self._ticking: asyncio.TimerHandle | None = None
        self._turning: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._stood_still = 0.0
        """Seconds in which this process did nothing, though it should have."""

    @property
    def patient_now(self) -> float:
        """The time by which peers are measured. While we stood still nobody could be heard: that is not their delay."""
        return self._loop.time() - self._stood_still

    def start(self) -> None:
        """Begin to tick."""
        self._due = self._loop.time()
        self._tick()
        self._turn()

    def stop(self) -> None:
        """End; also fine where it was not started."""
        for timer in (self._ticking, self._turning):
            if timer is not None:
                timer.cancel()

    def set_times(self, ping_interval: float, ping_timeout: float) -> None:
        """Change the times of pings while it ticks. Nobody is cut for a ping that is under way."""
        for terminal, slot in self._pings.set_times(ping_interval, ping_timeout):
            terminal.ping_slot = slot
            terminal.connection.awaiting_pong = False
        if self._turning is not None:
            self._turning.cancel()
            self._turn()

    def add(self, terminal: Terminal) -> None:
        """Ping a terminal from now on."""
        terminal.ping_slot = self._pings.add(terminal)

    def remove(self, terminal: Terminal) -> None:
        """Ping it no more."""
        self._pings.remove(terminal, terminal.ping_slot)

    def _tick(self) -> None:
        self._ticking = self._loop.call_later(TICK, self._tick)
        now = self._loop.time()
        late = max(now - self._due, 0.0)
        self.lag.observe(late)
        self._due = now + TICK
        if late > STANDSTILL:
            self._stood_still += late
        self._on_tick(now)

    def _turn(self) -> None:
        self._turning = self._loop.call_later(self._pings.turn_seconds, self._turn)
        self._pings.turn()

    def _ping(self, terminal: Terminal) -> None:
        terminal.connection.awaiting_pong = True
        terminal.connection.send_control(PING)

    def _check_pong(self, terminal: Terminal) -> None:
        connection = terminal.connection
        if connection.awaiting_pong and not connection.closing:
            self._on_no_pong(connection)
