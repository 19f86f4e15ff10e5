"""Helper processes of a test: each is a module of this package, told by JSON, ended by the end of its stdin."""

from __future__ import annotations

import asyncio
import json
import os
import select
import subprocess
import sys
import time
from types import TracebackType
from typing import Any, Self


class Helper:
    """A process ``python -m <module> '<json>'`` that answers in lines of JSON.

    Args:
        module: A module of this package, or the full name of another one.
        arguments: What it is told.
    """

    def __init__(self, module: str, **arguments: Any) -> None:
        self.module = module
        self.process = subprocess.Popen(
            [sys.executable, "-m", module if "." in module else f"tests.membership.{module}", json.dumps(arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._buffer = b""

    def answer(self, seconds: float = 30) -> dict[str, Any]:
        """Return its next line."""
        assert self.process.stdout is not None
        fd = self.process.stdout.fileno()
        deadline = time.monotonic() + seconds
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{self.module} did not answer within {seconds} s"
            data = os.read(fd, 65536)
            assert data, f"{self.module} ended with {self.process.wait(5)} before its answer"
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        result = json.loads(line)
        assert isinstance(result, dict)
        return result

    def tell(self, **what: Any) -> None:
        """Send it a line."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(what).encode() + b"\n")
        self.process.stdin.flush()

    def end(self) -> int:
        """Close its stdin and wait for it."""
        self.process.communicate(timeout=20)
        return self.process.returncode

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self.process.poll() is None and error is None:
                self.end()
        finally:
            if self.process.poll() is None:
                self.process.kill()
            self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout):
                if pipe is not None:
                    pipe.close()


async def stdin_closed() -> None:
    """Wait until the test has closed our stdin, or is gone."""
    loop = asyncio.get_running_loop()
    closed = loop.create_future()

    def read() -> None:
        if not os.read(0, 65536) and not closed.done():
            closed.set_result(None)

    loop.add_reader(0, read)
    try:
        await closed
    finally:
        loop.remove_reader(0)
