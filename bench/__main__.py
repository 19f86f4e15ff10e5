"""Measure freeim against a bare send loop: ``python -m bench [SCENARIO …]``. docs/benchmarks.md says what it means."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench import report
from bench.build import HERE, PROGRAMS, CannotBuild, program
from bench.processes import PER_PROCESS, BenchError
from bench.scenarios import SCENARIOS
from bench.stand import Settings
from freeim.embedded.join import join


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=f"of {', '.join(SCENARIOS)} (default: all)")
    parser.add_argument("--connections", type=int, default=10_000, help="to each side (default 10000)")
    parser.add_argument("--size", type=int, default=128, help="bytes of a message, at least 64 (default 128)")
    parser.add_argument("--rounds", type=int, default=5, help="how often each side is measured, in turn (default 5)")
    parser.add_argument("--workers", type=int, default=3, help="nodes of the scenario fifty (default 3)")
    parser.add_argument("--fifty", type=int, default=50_000, help="connections of that scenario (default 50000)")
    parser.add_argument("--quick", action="store_true", help="500 connections, 2 short rounds: to see that it works")
    parser.add_argument("--redis", metavar="URL", help="a Redis to use; by default the embedded one")
    parser.add_argument("--output", type=Path, default=HERE.parent / "docs" / "benchmarks", help="folder of the report")
    options = parser.parse_args(argv)
    unknown = [name for name in options.scenarios if name not in SCENARIOS]
    if unknown:
        parser.error(f"there is no scenario {', '.join(unknown)}; there are {', '.join(SCENARIOS)}")
    if options.fifty > options.workers * PER_PROCESS:
        parser.error(f"{options.fifty} connections need --workers {-(-options.fifty // PER_PROCESS)}")
    if not 1 <= options.connections <= PER_PROCESS:
        parser.error(f"--connections takes 1 to {PER_PROCESS}: a process may hold 20,000 descriptors")
    return options


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
            settings = Settings(
                url,
                connections=500 if options.quick else options.connections,
                size=options.size,
                workers=options.workers,
                fifty=1500 if options.quick else options.fifty,
                rounds=2 if options.quick else options.rounds,
                repeat=0.1 if options.quick else 1.0,
                progress=lambda line: print(f"{time.strftime('%X')} {line}", file=sys.stderr, flush=True),
            )
            outcomes = [SCENARIOS[name](settings) for name in options.scenarios or SCENARIOS]
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
