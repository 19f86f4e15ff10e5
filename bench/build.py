"""Compiles the C programs of the suite into a cache folder."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
PROGRAMS: Final = ("load", "yardstick", "publish", "delay", "steps")
FLAGS: Final = ("-std=gnu11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-Werror")
MORE_FLAGS: Final = {"steps": ("-shared", "-fPIC")}
"""Of what is no program but a library."""


class CannotBuild(Exception):
    """There is no compiler, or it refused."""


def cache_folder() -> Path:
    """Return where programs are kept: they are built once, and never written into a package or a checkout."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "freeim-bench"


@functools.cache
def program(name: str) -> str:
    """Return the path of a program of `PROGRAMS`, compiled if its source has changed.

    Raises:
        CannotBuild: With a sentence that says what to do.
    """
    compiler = os.environ.get("CC") or "cc"
    flags = (*FLAGS, *MORE_FLAGS.get(name, ()))
    sources = [HERE / f"{name}.c", *sorted(HERE.glob("*.h"))]
    state = hashlib.sha256(" ".join((compiler, *flags)).encode())
    for source in sources:
        state.update(source.read_bytes())
    target = cache_folder() / f"{name}-{state.hexdigest()[:16]}"
    if target.exists():
        return str(target)
    if shutil.which(compiler) is None:
        raise CannotBuild(
            f"the benchmarks need a C compiler, and there is no {compiler} on PATH (Debian: apt install gcc libc6-dev; "
            "CC names another)"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_name(f"{target.name}.{os.getpid()}")  # renamed when complete: others may build as well
    done = subprocess.run([compiler, *flags, str(sources[0]), "-o", str(fresh)], capture_output=True, text=True)
    if done.returncode != 0:
        raise CannotBuild(f"{compiler} cannot compile {sources[0]}:\n{done.stderr}")
    fresh.replace(target)
    return str(target)
