"""Text of others, as it may be shown: in a log, and at the command line."""

from __future__ import annotations


def printable(text: str) -> str:
    r"""Return text with all that a terminal would not just show, as line ends and escape sequences, as in ``\x1b``."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
