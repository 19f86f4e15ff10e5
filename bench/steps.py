"""How long the steps of a node's event loop take: what steps.c, loaded into the node, writes into a file."""

from __future__ import annotations

import mmap
import os
import struct
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from bench.build import program

LONG_MS: Final = 10
"""As in steps.c: a step longer than twice the slice of a walk over the connections is counted as a long one."""

_FIELDS: Final = struct.Struct("=7Q")
_ASKED: Final = struct.Struct("=Q")


@dataclass(frozen=True, slots=True)
class Seen:
    """The steps since the last reset.

    Attributes:
        count: How many there were.
        longest: CPU of the longest, in seconds.
        long: How many spent more than `LONG_MS` of CPU.
        longest_wall: The longest by the clock, in seconds.
        long_wall: How many took more than `LONG_MS` by the clock.
    """

    count: int
    longest: float
    long: int
    longest_wall: float
    long_wall: int


class Steps:
    """The file, which is only in memory, and the environment of a process that is to write into it."""

    def __init__(self) -> None:
        self._file = os.memfd_create("steps")
        os.truncate(self._file, _FIELDS.size)
        self._memory = mmap.mmap(self._file, _FIELDS.size)
        self.environment = {"LD_PRELOAD": program("steps"), "BENCH_STEPS": f"/proc/{os.getpid()}/fd/{self._file}"}

    def reset(self) -> None:
        """Forget what was seen; the step that is under way is not counted any more."""
        asked, *_ = self._read()
        _ASKED.pack_into(self._memory, 0, asked + 1)

    def seen(self) -> Seen:
        """Return what was seen since the last reset."""
        asked, done, count, longest, long, longest_wall, long_wall = self._read()
        if done != asked:  # not one step has ended since
            return Seen(0, 0.0, 0, 0.0, 0)
        return Seen(count, longest / 1e9, long, longest_wall / 1e9, long_wall)

    def _read(self) -> tuple[int, ...]:
        return _FIELDS.unpack_from(self._memory)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._memory.close()
        os.close(self._file)
