"""Runs programs whose wall clock the test sets, while they run."""

from __future__ import annotations

import mmap
import os
import struct
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("wall_clock.c")


class WallClock:
    """A clock that is so many seconds off. All programs that run with its `environment` go by it.

    Args:
        folder: Where its files go.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / "wall-clock"
        self._file.write_bytes(bytes(8))
        self._library = folder / "wall_clock.so"
        compiler = os.environ.get("CC") or "cc"
        flags = ("-std=gnu11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC")
        subprocess.run([compiler, *flags, str(SOURCE), "-o", str(self._library)], check=True)

    @property
    def environment(self) -> dict[str, str]:
        """What to add to a program's environment."""
        return {"LD_PRELOAD": str(self._library), "WALL_CLOCK": str(self._file)}

    def program(self, binary: str) -> str:
        """Return a program that runs another one with this clock, as the same process."""
        script = self._file.with_name(f"{Path(binary).name}-with-clock")
        variables = " ".join(f"{name}='{value}'" for name, value in self.environment.items())
        script.write_text(f'#!/bin/sh\n{variables} exec "{binary}" "$@"\n', encoding="utf-8")
        script.chmod(0o755)
        return str(script)

    def set(self, seconds: int) -> None:
        """Let it jump to so many seconds after the real time, or before it."""
        with self._file.open("r+b") as file, mmap.mmap(file.fileno(), 8) as page:
            page[:] = struct.pack("=q", seconds)
