"""Measure freeim against a bare send loop: ``python -m bench [SCENARIO …]``. docs/benchmarks.md says what it means."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from bench import report
from bench.build import HERE, PROGRAMS, CannotBuild, program
from bench.processes import PER_PROCESS, BenchError
from bench.scenarios import LONG, SCENARIOS
from bench.stand import Settings
from freeim.embedded.join import join

FULL_LATENCY: Final = 50_000


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "scenarios",
        nargs="*",
        metavar="SCENARIO",
        help=f"of {', '.join(SCENARIOS)} (default: all but {', '.join(LONG)})",
    )
    parser.add_argument("--connections", type=int, default=10_000, help="to each side (default 10000)")
    parser.add_argument("--size", type=int, default=128, help="bytes of a message, at least 64 (default 128)")
    parser.add_argument("--rounds", type=int, default=5, help="how often each side is measured, in turn (default 5)")
    parser.add_argument("--workers", type=int, default=3, help="nodes of the scenario fifty (default 3)")
    parser.add_argument("--fifty", type=int, default=50_000, help="connections of that scenario (default 50000)")
    parser.add_argument(
        "--latency-connections",
        type=int,
        metavar="COUNT",
        help="of that scenario and of steps (default: --connections)",
    )
    parser.add_argument("--soak", type=float, metavar="SECONDS", help="of that scenario (default 600)")
    parser.add_argument("--full", action="store_true", help="all scenarios, latency and steps with 50000 connections")
    parser.add_argument("--quick", action="store_true", help="500 connections, 2 short rounds: to see that it works")
    parser.add_argument("--redis", metavar="URL", help="a Redis to use; by default the embedded one")
    parser.add_argument(
        "--peer-python", metavar="PATH", default=sys.executable, help="an interpreter that has the servers of `peers`"
    )
    parser.add_argument("--output", type=Path, default=HERE.parent / "docs" / "benchmarks", help="folder of the report")
    options = parser.parse_args(argv)
    unknown = [name for name in options.scenarios if name not in SCENARIOS]
    if unknown:
        parser.error(f"there is no scenario {', '.join(unknown)}; there are {', '.join(SCENARIOS)}")
    if options.fifty > options.workers * PER_PROCESS:
        parser.error(f"{options.fifty} connections need --workers {-(-options.fifty // PER_PROCESS)}")
    if not 1 <= options.connections <= PER_PROCESS:
        parser.error(f"--connections takes 1 to {PER_PROCESS}: a process may hold 20,000 descriptors")
    if options.latency_connections is not None and not 1 <= options.latency_connections <= 64 * PER_PROCESS:
        parser.error(f"--latency-connections takes 1 to {64 * PER_PROCESS}")
    if options.soak is not None and options.soak <= 0:
        parser.error("--soak takes a time above 0 s")
    return options


def chosen(options: argparse.Namespace) -> list[str]:
    """Return the names of the scenarios that are to run."""
    return options.scenarios or [name for name in SCENARIOS if options.full or name not in LONG]


def settings_of(options: argparse.Namespace, url: str) -> Settings:
    """Return how much is to be measured."""
    quick = options.quick
    latency = options.latency_connections or (FULL_LATENCY if options.full and not quick else 0)
    return Settings(
        url,
        connections=500 if quick else options.connections,
        size=options.size,
        workers=options.workers,
        peer_python=options.peer_python,
        fifty=1500 if quick else options.fifty,
        latency=latency,
        soak=options.soak or (3.0 if quick else 600.0),
        rounds=2 if quick else options.rounds,
        repeat=0.1 if quick else 1.0,
        progress=lambda line: print(f"{time.strftime('%X')} {line}", file=sys.stderr, flush=True),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run scenarios, print a table of each, and write the report; 1 if anything was lost."""
    options = parse(argv)
    with contextlib.ExitStack() as stack:
        try:
            for name in PROGRAMS:
                program(name)
            url = options.redis
            if url is None:
                embedded = join()
                stack.callback(embedded.close)
                url = embedded.url
            settings = settings_of(options, url)
            outcomes = [SCENARIOS[name](settings) for name in chosen(options)]
        except (BenchError, CannotBuild) as error:
            print(f"bench: {error}", file=sys.stderr)
            return 1
        where = report.describe(settings)
    print(report.as_markdown(where, outcomes))
    for path in report.write(options.output, where, outcomes):
        print(f"written: {path}", file=sys.stderr)
    return 0 if all(outcome.complete for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
