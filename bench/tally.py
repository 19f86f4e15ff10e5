"""What the load generator has counted, of one process or of several together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

SUB_BITS: Final = 6
"""As in verify.h: each power of two is divided into 64 buckets."""

FAULTS: Final = ("lost", "duplicates", "reordered", "misdelivered", "bad_frames", "bad_payloads", "cut", "unreachable")
"""What must never happen; the names are those of the generator's answers."""


@dataclass(slots=True)
class Tally:
    """Counts since the generator's last ``begin`` or ``connect``.

    Attributes:
        frames: Messages that arrived, each verified.
        pings: Pings, all answered.
        receipts: Receipts for messages that arrived, each verified.
        living: Connections that are open.
        faults: How often each of `FAULTS` happened.
        refused: Handshakes without a valid 101, by HTTP status; 0 is a malformed or false answer.
        closes: Close frames by code.
        busy: CPU time against time until the last message, of the busiest process.
        seconds: Time until the last message.
        slowest: The longest time from publishing to arrival, or from connecting to the 101, in seconds.
    """

    frames: int = 0
    pings: int = 0
    receipts: int = 0
    living: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    refused: Counter[int] = field(default_factory=Counter)
    closes: Counter[int] = field(default_factory=Counter)
    busy: float = 0.0
    seconds: float = 0.0
    slowest: float = 0.0
    histogram: Counter[int] = field(default_factory=Counter)

    def quantile(self, share: float) -> float:
        """Return the time, in seconds, within which this share of all arrived; within 1.6 % of the truth."""
        rest = share * self.histogram.total()
        for bucket in sorted(self.histogram):
            rest -= self.histogram[bucket]
            if rest <= 0:
                return min(bucket_top(bucket) / 1e9, self.slowest)
        return self.slowest


def bucket_top(bucket: int) -> int:
    """Return the largest number of nanoseconds that falls into a bucket."""
    shift, rest = divmod(bucket, 1 << SUB_BITS)
    if shift == 0:
        return rest
    return (((1 << SUB_BITS) + rest + 1) << (shift - 1)) - 1


def merge(states: Iterable[Mapping[str, Any]]) -> Tally:
    """Add up the answers of all processes of a crowd."""
    tally = Tally()
    for state in states:
        tally.frames += state["frames"]
        tally.pings += state["pings"]
        tally.receipts += state["receipts"]
        tally.living += state["living"]
        for fault in FAULTS:
            tally.faults[fault] += state[fault]
        for status, count in state["refused"].items():
            tally.refused[int(status)] += count
        for code, count in state["closes"].items():
            tally.closes[int(code)] += count
        tally.busy = max(tally.busy, state["cpu_s"] / max(state["wall_s"], 1e-9))
        tally.seconds = max(tally.seconds, state["wall_s"])
        tally.slowest = max(tally.slowest, state["slowest_ns"] / 1e9)
        for bucket, count in state["histogram"]:
            tally.histogram[bucket] += count
    return tally
