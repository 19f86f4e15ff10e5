"""The origins of pages (RFC 6454) that may connect: how they are written, and which one matches."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

_ORIGIN: Final = re.compile(r"([a-z][a-z0-9+.-]*)://((?:\*\.)?)([a-z0-9._~-]+|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?")
_DEFAULT_PORTS: Final = {"http": "80", "https": "443"}

NULL: Final = "null"
"""What browsers send for pages without an origin of their own: files, sandboxed frames."""


def _split(origin: str) -> tuple[str, bool, str, str] | None:
    """Return scheme, whether it stands for all names below, host and port; None where it is no origin."""
    found = _ORIGIN.fullmatch(origin.lower())
    if found is None or (found[2] and found[3].startswith("[")):
        return None
    return found[1], bool(found[2]), found[3], found[4] or _DEFAULT_PORTS.get(found[1], "")


def is_origin(text: str) -> bool:
    """Whether a text is a single origin, as a browser sends it."""
    parts = _split(text)
    return text == NULL or (parts is not None and not parts[1])


def check_origin(text: str) -> None:
    """Check one entry of the list.

    Raises:
        ValueError: It is none; the text is the end of a sentence.
    """
    if text != NULL and _split(text) is None:
        raise ValueError(
            "must hold origins such as https://app.example.com, https://*.example.com (all names below it), "
            f"http://localhost:8000 or null, without a path, not {text!r}"
        )


class Origins:
    """The list of those that may connect.

    Args:
        entries: Entries that `check_origin` let pass.
    """

    def __init__(self, entries: Iterable[str]) -> None:
        self._null = False
        self._exact: set[tuple[str, str, str]] = set()
        self._below: list[tuple[str, str, str]] = []
        for entry in entries:
            parts = _split(entry)
            if parts is None:
                self._null = True
            elif parts[1]:
                self._below.append((parts[0], f".{parts[2]}", parts[3]))
            else:
                self._exact.add((parts[0], parts[2], parts[3]))

    def allow(self, origin: str) -> bool:
        """Tell whether a page may connect, by the value of its request's Origin header."""
        if origin == NULL:
            return self._null
        parts = _split(origin)
        if parts is None or parts[1]:
            return False
        scheme, _, host, port = parts
        return (scheme, host, port) in self._exact or any(
            scheme == each and host.endswith(suffix) and host != suffix and port == number
            for each, suffix, number in self._below
        )
