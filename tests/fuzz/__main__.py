"""Fuzz every way into the program under AddressSanitizer, with libFuzzer.

Usage: ``python -m tests.fuzz [--seconds N] [--keep] [--planted] [TARGET ...]``, with a freeim, a hiredis and a picows
that were built for it: see ``sanitize`` in noxfile.py. An input that breaks something is kept in tests/fuzz/found.
"""

from __future__ import annotations

import argparse
import glob
import importlib.util
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).parent.resolve()
CORPUS: Final = HERE / "corpus"
FOUND: Final = HERE / "found"
TARGETS: Final = sorted(os.listdir(CORPUS))
"""Not imported: what is sanitized can be loaded by a sanitized process alone."""

# An array of a billion elements, announced in a few bytes, must be a MemoryError here and not the end of the machine.
ASAN_OPTIONS: Final = (
    "detect_leaks=0:verify_asan_link_order=0:allocator_may_return_null=1:max_allocation_size_mb=512:handle_abort=1"
    f":suppressions={HERE / 'suppressions.txt'}"
)


def environment(folder: str) -> dict[str, str]:
    """Return what a sanitized process needs: gcc's libasan, and the counters of coverage.c before it."""
    counters = os.path.join(folder, "coverage.so")
    subprocess.run(["gcc", "-O2", "-shared", "-fPIC", "-o", counters, str(HERE / "coverage.c")], check=True)
    # libstdc++ for atheris: its exceptions pass libasan, which looks for them when the process starts.
    libraries = [
        subprocess.check_output(["gcc", f"-print-file-name={name}"], text=True).strip()
        for name in ("libasan.so", "libstdc++.so.6")
    ]
    spec = importlib.util.find_spec("atheris")
    assert spec is not None
    assert spec.origin is not None
    [fuzzer] = glob.glob(os.path.join(os.path.dirname(spec.origin), "core_with_libfuzzer.*.so"))
    return {
        **os.environ,
        "ASAN_OPTIONS": ASAN_OPTIONS,
        "FREEIM_FUZZER": fuzzer,
        "LD_PRELOAD": " ".join([counters, *libraries]),
        "PYTHONMALLOC": "malloc",  # so that each object has its own fences
    }


def fuzz(target: str, seconds: int, env: dict[str, str], keep: bool) -> bool:
    """Fuzz one target; False where something was found. What runs new code may join the corpus."""
    corpus = CORPUS / target
    with tempfile.TemporaryDirectory() as new:
        command = [sys.executable, "-m", "tests.fuzz.sanitized", target, new, str(corpus)]
        options = [f"-max_total_time={seconds}", "-max_len=1024", "-rss_limit_mb=0", "-print_final_stats=1"]
        options += ["-timeout=20", f"-artifact_prefix={FOUND}/{target}-"]
        result = subprocess.run([*command, *options], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        text = result.stdout.decode(errors="replace")
        runs = [line.split()[-1] for line in text.splitlines() if line.startswith("stat::number_of_executed_units")]
        if result.returncode == 0:
            print(f"{target}: {runs[0] if runs else 'no'} inputs in {seconds} s, nothing found", flush=True)
            if keep:
                merge = [sys.executable, "-m", "tests.fuzz.sanitized", target, "-merge=1", str(corpus), new]
                subprocess.run(merge, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
            return True
    shown = [line for line in text.splitlines() if not line.startswith("INFO: ") and "pybind11" not in line]
    print("\n".join([f"{target}: found something", *shown[-80:]]), flush=True)
    return False


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz under AddressSanitizer.")
    parser.add_argument("--seconds", type=int, default=4, help="for each target (default: 4)")
    parser.add_argument("--keep", action="store_true", help="add to the corpus what runs new code")
    parser.add_argument("--planted", action="store_true", help="fail where nothing is found")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)} (default: all)")
    options = parser.parse_args()
    FOUND.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        env = environment(folder)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            targets = options.targets or TARGETS
            clean = list(pool.map(lambda target: fuzz(target, options.seconds, env, options.keep), targets))
    if options.planted and any(clean):
        print("a fault that was planted has not been found: this fuzzing is worth nothing")
    return int(any(clean) if options.planted else not all(clean))


if __name__ == "__main__":
    sys.exit(main())
