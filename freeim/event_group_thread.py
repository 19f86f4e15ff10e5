"""A member of an event group in a synchronous program: the thread that keeps the lease while callbacks run."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from freeim.clock import boot_time
from freeim.event_group import GroupMember, RawEvent, beat_pause

if TYPE_CHECKING:
    import redis as redis_py

logger: Final = logging.getLogger("freeim")


class GroupThread:
    """A `GroupMember` for two threads: that of the bus, and one of its own that beats, on a connection of its own.

    Args:
        connect: Makes a client.
        member: The member.
    """

    def __init__(self, connect: Callable[[], redis_py.Redis], member: GroupMember) -> None:
        self.channel = member.channel
        self._connect = connect
        self._member = member
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="freeim-event-group", daemon=True)

    def start(self) -> None:
        """Begin to beat."""
        self._thread.start()

    def leave(self) -> None:
        """Give the lease back, and end the thread."""
        self.unsubscribed()
        self._ended.set()
        self._wake.set()
        self._thread.join()

    def leads(self) -> bool:
        """Tell whether this process certainly leads."""
        with self._lock:
            return self._member.leads(boot_time())

    def subscribed(self) -> None:
        """See `GroupMember.subscribed`."""
        with self._lock:
            self._member.subscribed()
        self._wake.set()

    def unsubscribed(self) -> None:
        """See `GroupMember.unsubscribed`."""
        with self._lock:
            self._member.unsubscribed()
        self._wake.set()

    def heard(self, channel: bytes, payload: bytes) -> None:
        """See `GroupMember.heard`."""
        with self._lock:
            if self._member.heard(channel, payload):
                self._wake.set()

    def next(self) -> tuple[bool, RawEvent | None, int]:
        """Return whether events may have been missed, else the next event to handle if any; and the fence."""
        with self._lock:
            now = boot_time()
            gap = self._member.take_gap(now)
            return gap, None if gap else self._member.next(now), self._member.fence

    def resynced(self) -> None:
        """See `GroupMember.resynced`."""
        with self._lock:
            self._member.resynced()

    def done(self) -> None:
        """See `GroupMember.done`."""
        with self._lock:
            self._member.done()

    def _beat(self) -> None:
        client: Any = self._connect()
        with contextlib.closing(client):
            failed = False
            while True:
                ended = self._ended.is_set()  # before the turn: the last one gives the lease back
                with self._lock:
                    turn = self._member.turn(boot_time())
                if turn is not None:
                    try:
                        reply = client.execute_command(*turn.command)
                    except Exception as error:
                        if not failed:
                            logger.warning("event group %r cannot renew its lease: %s", self._member.group, error)
                        failed = True
                    else:
                        failed = False
                        with self._lock:
                            self._member.answered(turn, reply)
                if ended:
                    return
                self._wake.wait(beat_pause())
                self._wake.clear()
