"""Shows that tests can fail: breaks one line of the code at a time, and runs the test that is to notice.

``make broken`` runs it. The lines are in lines.toml, one or more for each promise of guarantees.md and SECURITY.md.
The checkout is left alone: everything happens in copies of it.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from queue import SimpleQueue
from typing import Final, Literal

from tests.broken.lines import CORE, ROOT, Break, load

_IGNORED: Final = shutil.ignore_patterns(".*", "build", "dist", "dev", "*.egg-info", "__pycache__", "found")
_FAILED: Final = re.compile(r"^(?=.*\b\d+ failed\b).* in [\d.]+s", re.MULTILINE)
_CUT: Final = re.compile(r"Timeout \(>[\d.]+s\) from pytest-timeout|\+ Timeout \+")

Outcome = Literal["passed", "failed", "hung", "error"]


class Copy:
    """A copy of the checkout in which lines can be broken and tests run."""

    def __init__(self, folder: Path, limit: float) -> None:
        self._root = folder / "tree"
        self._limit = limit
        self._runtime = folder / "run"  # of the embedded Redis: another run's must not be found
        self._log = folder / "log"
        shutil.copytree(ROOT, self._root, ignore=_IGNORED)
        sources = [path for path in self._root.glob("freeim/_core*") if path.suffix in CORE]
        built = [path.stat().st_mtime for path in self._root.glob(f"freeim/_core{EXTENSION_SUFFIXES[0]}")]
        if not built or built[0] < max(path.stat().st_mtime for path in sources):
            self.build()
        self._core = {path: path.read_bytes() for path in self._root.glob("freeim/_core*.so")}

    def build(self) -> None:
        """Build the core.

        Raises:
            subprocess.CalledProcessError: The compiler refused.
        """
        command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
        subprocess.run(command, cwd=self._root, check=True, capture_output=True, text=True)

    def run(self, test: str) -> Outcome:
        """Run one test, and say what came out of it."""
        own = str(Path(sys.executable).parent)
        env = {**os.environ, "PYTHONPATH": str(self._root), "FREEIM_RUNTIME_DIR": str(self._runtime)}
        env["PATH"] = os.pathsep.join([own, env["PATH"]])
        options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "tests.strict", "-o", f"timeout={self._limit}"]
        command = [sys.executable, "-P", "-m", "pytest", *options, f"tests/{test}"]
        with self._log.open("wb") as log:
            # In a group of its own, so that a test that hangs can be ended with all that it has started.
            program = subprocess.Popen(
                command, cwd=self._root, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                code = program.wait(self._limit + 20)
            except subprocess.TimeoutExpired:
                return "hung"
            finally:
                with suppress(ProcessLookupError):  # nothing of it is left, as it should be
                    os.killpg(program.pid, signal.SIGKILL)
                program.wait()
        text = self.output()
        if code == 0:
            return "passed"
        if _CUT.search(text):
            return "hung"
        return "failed" if code == 1 and _FAILED.search(text) else "error"

    def output(self) -> str:
        """Return what the last test printed."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    @contextmanager
    def broken(self, line: Break) -> Iterator[None]:
        """Break a line, and build the core with it where it is there, for as long as the context lasts.

        Raises:
            subprocess.CalledProcessError: The compiler refused.
        """
        path = self._root / line.file
        whole = path.read_text(encoding="utf-8")
        path.write_text(line.apply(whole), encoding="utf-8")
        try:
            if line.in_core:
                self.build()
            yield
        finally:
            path.write_text(whole, encoding="utf-8")
            if line.in_core:
                for file, content in self._core.items():
                    file.write_bytes(content)


class Trials:
    """Breaks lines and counts what comes of it.

    Args:
        trust: Whether to believe that each test passes without a broken line.
    """

    def __init__(self, *, trust: bool) -> None:
        self.counts: Counter[str] = Counter()
        self._trust = trust
        self._unbroken: dict[str, Outcome] = {}

    def try_line(self, copy: Copy, breaks: list[Break]) -> None:
        """Try one line with all tests that are to notice it."""
        tests = [each.test for each in breaks if self._passes(copy, each.test)]
        line = breaks[0]
        try:
            with copy.broken(line):
                for test in tests:
                    start = time.monotonic()
                    outcome = copy.run(test)
                    self._tell(line, test, outcome, f"{outcome} ({time.monotonic() - start:.0f} s)", copy)
        except subprocess.CalledProcessError as error:
            for test in tests:
                self._tell(line, test, "error", f"the core does not build:\n{error.stderr}")

    def _passes(self, copy: Copy, test: str) -> bool:
        if self._trust:
            return True
        if test not in self._unbroken:
            self._unbroken[test] = outcome = copy.run(test)
            if outcome != "passed":
                print(copy.output())
        if self._unbroken[test] == "passed":
            return True
        self.counts["unfit"] += 1
        print(f"✘ tests/{test}: {self._unbroken[test]} without a broken line", flush=True)
        return False

    def _tell(self, line: Break, test: str, outcome: Outcome, what: str, copy: Copy | None = None) -> None:
        self.counts[outcome] += 1
        if outcome in ("error", "hung") and copy is not None:
            print(copy.output())
        mark = "✔" if outcome == "failed" else "✘"
        shown = textwrap.indent(f"- {line.old.strip()}\n+ {line.new.strip()}", "    ")
        print(f"{mark} tests/{test}: {what}\n  {line.file}\n{shown}", flush=True)


def main() -> int:
    """Try the lines that were chosen, and return the exit code: 1 where a test did not fail as it should."""
    parser = argparse.ArgumentParser(prog="python -m tests.broken", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("-k", metavar="TEXT", default="", help="only those with this text in the page, file or test")
    parser.add_argument("-j", metavar="N", type=int, default=1, help="how many tests run at a time, in a copy each")
    parser.add_argument("--limit", metavar="S", type=float, default=180, help="seconds that a test may take")
    parser.add_argument("--trust", action="store_true", help="do not run each test first without a broken line")
    options = parser.parse_args()
    chosen, without = load()
    chosen = [each for each in chosen if options.k in f"{each.page} {each.file} tests/{each.test}"]
    if not chosen:
        parser.error(f"no line has {options.k!r} in its page, file or test")
    # Tests of the same line run one after the other, so that the core is built once for them.
    lines: dict[tuple[str, str, str], list[Break]] = {}
    for each in chosen:
        each.apply((ROOT / each.file).read_text(encoding="utf-8"))
        lines.setdefault((each.file, each.old, each.new), []).append(each)

    trials = Trials(trust=options.trust)
    with tempfile.TemporaryDirectory(prefix="broken-") as folder, ThreadPoolExecutor(options.j) as pool:
        copies: SimpleQueue[Copy] = SimpleQueue()
        for number in range(options.j):
            copies.put(Copy(Path(folder) / str(number), options.limit))

        def try_line(breaks: list[Break]) -> None:
            copy = copies.get()
            try:
                trials.try_line(copy, breaks)
            finally:
                copies.put(copy)

        list(pool.map(try_line, lines.values()))

    print("\nPromises without a line that could be broken:")
    for promise in without:
        print(f"– {promise.page}: {promise.promise} …\n{textwrap.indent(promise.reason.strip(), '  ')}")
    counts = trials.counts
    words = ("failed as they should", "passed all the same", "hung", "ended otherwise", "failed without it")
    results = zip(("failed", "passed", "hung", "error", "unfit"), words, strict=True)
    print(f"\n{len(chosen)} tests of a broken line: " + ", ".join(f"{counts[key]} {word}" for key, word in results))
    return 0 if counts["failed"] == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
