"""The standard input of a worker, by which its supervisor holds it.

Each line is the options of its node, the first one those to start with, each later one those to go on with; a line that
holds nothing but ``null`` says that options were read again and could not be used. The end of it all means that the
supervisor is gone, however it went.
"""

from __future__ import annotations

import dataclasses
import json
import os
from typing import Any, Final

from freeim.config import Options

REFUSED: Final = b"null\n"
"""The line that says that new options could not be used."""


def pack(options: Options) -> bytes:
    """Return options as a line."""
    return json.dumps(dataclasses.asdict(options)).encode() + b"\n"


def unpack(line: bytes) -> Options | None:
    """The reverse of `pack`; None for `REFUSED`."""
    found = json.loads(line)
    if found is None:
        return None
    # JSON knows no tuples.
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}
    return Options(**values)


class Lifeline:
    """The worker's end.

    Args:
        descriptor: Where to read.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._read = b""

    def first(self) -> bytes:
        """Wait for the first line; nothing where the other side left before it."""
        while b"\n" not in self._read:
            if not self._receive():
                return b""
        line, _, self._read = self._read.partition(b"\n")
        return line

    def receive(self) -> list[bytes] | None:
        """Read what has come, and return all whole lines, those from before too; None at the end.

        Waits where nothing has come since the last call.
        """
        if not self._receive():
            return None
        return self.take()

    def take(self) -> list[bytes]:
        """Return the whole lines that came together with the first one, without waiting."""
        *lines, self._read = self._read.split(b"\n")
        return lines

    def _receive(self) -> bool:
        part = os.read(self.descriptor, 65536)
        self._read += part
        return bool(part)
