"""Counts the instructions of the hot path under callgrind: ``python -m bench.instructions [--output FILE]``.

Unlike times they are the same on a busy machine, so a change can be compared anywhere with the same compiler and
Python. Each count is the difference of two runs that make the same messages and deliver more or less of them; the
kernel is not in it.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from bench.build import HERE
from bench.hotpath import BURST, CONNECTIONS, KINDS, ROOM, SIZE
from bench.processes import BenchError
from bench.report import versions_of

DELIVERIES: Final = 10_000
"""What the longer run delivers more than the shorter one."""

MEANINGS: Final = {
    "direct": "a message to one client, a read from Redis each: parse, decode, route, frame, flush",
    "room": f"a message to a channel of {ROOM}, one a read",
    "broadcast": f"a message to all {CONNECTIONS}, one a read",
    "burst": f"{BURST} messages to all {CONNECTIONS} in one read",
    "join": f"no delivery: a client joins or leaves a channel of {ROOM}: invalidation, re-read, tables",
    "join_all": f"the same with a channel of {CONNECTIONS}",
}


def instructions(kind: str, messages: int, made: int) -> int:
    """Return how many instructions `bench.hotpath` takes to make messages and deliver so many, its start included.

    Raises:
        BenchError: There is no valgrind, or it failed.
    """
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        raise BenchError("instructions are counted by valgrind, which is not on PATH (Debian: apt install valgrind)")
    with tempfile.TemporaryDirectory() as folder:
        command = [valgrind, "--tool=callgrind", f"--callgrind-out-file={folder}/out"]
        command += [sys.executable, "-m", "bench.hotpath", kind, str(messages), str(made)]
        # The order of sets and dicts, and with it the count, is not to depend on chance.
        environ = {**os.environ, "PYTHONHASHSEED": "0"}
        done = subprocess.run(command, capture_output=True, text=True, env=environ, cwd=HERE.parent)
    collected = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode or collected is None:
        raise BenchError(f"callgrind failed:\n{done.stderr[-2000:]}")
    return int(collected[1])


def per_delivery(kind: str, deliveries: int = DELIVERIES) -> float:
    """Return the instructions of one delivery."""
    short = BURST
    more = max(BURST, deliveries // KINDS[kind])
    longer = instructions(kind, short + more, short + more)
    return (longer - instructions(kind, short, short + more)) / (more * KINDS[kind])


def page(counts: dict[str, float]) -> str:
    """Return the counts as Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in versions_of(("freeim", "hiredis", "Cython")).items())
    lines = [
        "# Instructions of the hot path",
        "",
        f"User instructions for a delivery of {SIZE} bytes, from the bytes that Redis sends to the call of `send(2)`.",
        "Counted by callgrind (`python -m bench.instructions`); what the kernel spends is not in it.",
        "",
        f"{platform.python_implementation()} {platform.python_version()}, {platform.machine()}, {versions}.",
        "",
        "| path | instructions | what it is |",
        "|---|---|---|",
    ]
    return "\n".join([*lines, *(f"| `{kind}` | {count:,.0f} | {MEANINGS[kind]} |" for kind, count in counts.items())])


def main(argv: Sequence[str] | None = None) -> int:
    """Count, and write the page."""
    parser = argparse.ArgumentParser(prog="python -m bench.instructions", description=__doc__)
    target = HERE.parent / "docs" / "benchmarks" / "instructions.md"
    parser.add_argument("--output", type=Path, default=target, help="the page that is written")
    options = parser.parse_args(argv)
    try:
        counts = {kind: per_delivery(kind) for kind in KINDS}
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    options.output.write_text(page(counts) + "\n", encoding="utf-8")
    print(page(counts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
