"""The Lua scripts, one a file under ``lua/``; each file's head names its KEYS and ARGV."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script and the SHA-1 by which EVALSHA names it (40 lower-case hex characters)."""

    name: str
    text: str
    sha: str


@cache
def load_script(name: str) -> Script:
    """Return the script ``lua/<name>.lua``."""
    text = (files("freeim") / "lua" / f"{name}.lua").read_text(encoding="utf-8")
    return Script(name, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())
