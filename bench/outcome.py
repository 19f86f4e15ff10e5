"""What a scenario has found."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from bench.tally import Tally

TOO_BUSY: Final = 0.85
"""A generator that spends more of a core than this may have been what was slow."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure: the median of what was measured, with the spread.

    Attributes:
        name: Its name in the report.
        better: ``"higher"``, ``"lower"``, or empty.
        meaning: What it is, in a line; ratios name both sides.
        values: One a round.
        unit: Empty for ratios.
    """

    name: str
    better: str
    meaning: str
    values: Sequence[float]
    unit: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def spread(self) -> tuple[float, float]:
        return min(self.values), max(self.values)


@dataclass(slots=True)
class Outcome:
    """The figures of one scenario, and whether they may be quoted.

    Attributes:
        scenario: Its name.
        size: What was connected and sent, for people.
        expected: Messages and handshakes that the generator was to see.
        received: Those that it saw.
        faults: What must not happen and did.
        busiest: CPU of the busiest process of the generator, as a share of a core, while the server had time left.
        notes: What else a reader should know, a line each.
        sender: CPU of the busiest sender, as a share of a core.
        slow: Why a sender may have been what was slow, where its CPU does not say so.
        left_out: Parts without figures, each a sentence that says why; the others stand.
    """

    scenario: str
    size: str
    figures: list[Figure] = field(default_factory=list)
    expected: int = 0
    received: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    busiest: float = 0.0
    notes: list[str] = field(default_factory=list)
    sender: float = 0.0
    slow: str = ""
    left_out: list[str] = field(default_factory=list)

    def check(self, tally: Tally, expected: int, server_cpu: float = 0.0) -> Tally:
        """Take over what a step of a measured round was to deliver, and what it delivered.

        Args:
            tally: What was delivered.
            expected: How many messages were to be.
            server_cpu: CPU seconds of the server meanwhile. One that was never idle did not wait for the generator,
                however busy that was.
        """
        self.expected += expected
        self.received += tally.frames
        self.faults.update({fault: count for fault, count in tally.faults.items() if count})
        self.faults.update({f"close {code}": count for code, count in tally.closes.items()})
        if server_cpu < TOO_BUSY * tally.seconds:
            self.busiest = max(self.busiest, tally.busy)
        return tally

    def absorb(self, part: Outcome) -> None:
        """Take over what a part has measured: its figures, or why it has none while all else stands."""
        self.expected += part.expected
        self.received += part.received
        self.faults += part.faults
        if part.objection:
            self.left_out.append(f"{part.scenario}: {part.objection}")
            return
        self.busiest = max(self.busiest, part.busiest)
        self.sender = max(self.sender, part.sender)
        self.figures += part.figures

    def check_some(self, tally: Tally) -> Tally:
        """Take over what came to clients of whom nobody can say which messages are theirs: they come and go.

        A message that they lack is no fault, nor does it count as received; whatever else can go wrong is one.
        """
        self.faults.update({fault: count for fault, count in tally.faults.items() if count and fault != "lost"})
        self.faults.update({f"close {code}": count for code, count in tally.closes.items()})
        return tally

    def check_opened(self, tally: Tally, expected: int) -> Tally:
        """Take over how many connections were to open, and did."""
        self.expected += expected
        self.received += tally.histogram.total()
        self.faults.update({f"http {status}": count for status, count in tally.refused.items()})
        self.faults.update({fault: count for fault, count in tally.faults.items() if count})
        return tally

    @property
    def complete(self) -> bool:
        """Tell whether all that was to arrive did, once, in order and well-formed."""
        return self.expected == self.received and not self.faults

    @property
    def objection(self) -> str | None:
        """Why the figures may not be quoted, or None."""
        if not self.complete:
            faults = ", ".join(f"{fault}: {count}" for fault, count in self.faults.items()) or "no other fault"
            return f"{self.received} of {self.expected} arrived ({faults})"
        if self.busiest > TOO_BUSY:
            return f"the load generator was busy for {self.busiest:.0%} of the time: it may have been the bottleneck"
        if self.sender > TOO_BUSY:
            return f"the sender was busy for {self.sender:.0%} of the time: it may have been the bottleneck"
        return self.slow or None


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Return the ratio of each round."""
    return [a / b for a, b in zip(above, below, strict=True)]
