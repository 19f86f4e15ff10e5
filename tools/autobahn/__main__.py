"""Run the Autobahn testsuite against a node, say what it found, and keep what it sent.

Usage: ``python -m tools.autobahn PYTHON PACKAGES VECTORS``, with a Python 2.7, the PYTHONUSERBASE in which it has
autobahntestsuite, and the file to write, tests/vectors/autobahn.json. tests/node/test_autobahn_cases.py replays it.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.node.harness import running
from tests.servers import RedisServer

TOKENS = 1000
"""More than there are cases."""


def vector(result: dict[str, Any]) -> dict[str, Any]:
    """Return what a replay has to know of a case: what was sent, and what the suite wants to see."""
    pongs = [payload for kind, *payload in result["expected"].get("OK", ()) if kind == "pong"]
    return {
        "case": result["case"],
        "about": result["about"],
        "sent": result["sent"],
        "pongs": [payload[0] for payload in pongs],
        "codes": result["close"]["closeCode"],
    }


async def run_suite(python: str, packages: str, report: Path) -> None:
    with RedisServer() as server:
        async with running(server, max_inbound=1 << 20) as run:
            tokens = "\n".join(run.token(client, seconds=3600) for client in range(1, TOKENS + 1))
            suite = str(Path(__file__).with_name("suite.py"))
            process = await asyncio.create_subprocess_exec(
                *(python, suite, str(run.node.port), str(report)),
                env={**os.environ, "PYTHONUSERBASE": packages},
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.DEVNULL,
            )
            await process.communicate(tokens.encode())
            if process.returncode:
                raise SystemExit(f"the suite ended with {process.returncode}")


def main() -> None:
    python, packages, vectors = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        asyncio.run(run_suite(python, packages, report))
        results = json.loads(report.read_text(encoding="utf-8"))
    lines = ",\n".join(json.dumps(vector(result), ensure_ascii=True) for result in results)
    Path(vectors).write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    counted: dict[str, list[str]] = {}
    for result in results:
        counted.setdefault(f"{result['verdict']}, close {result['verdict_close']}", []).append(result["case"])
    for verdict, cases in sorted(counted.items()):
        print(f"{verdict}: {len(cases)}: {' '.join(cases)}")


if __name__ == "__main__":
    main()
