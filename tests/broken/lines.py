"""The lines of lines.toml."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

ROOT: Final = Path(__file__).resolve().parents[2]
CORE: Final = (".pyx", ".pxi", ".pxd")


@dataclass(frozen=True)
class Break:
    """A line to break, and the test that is to notice."""

    page: Literal["guarantees", "security"]
    test: str
    """As pytest wants it, below tests/."""
    file: str
    """Below the checkout."""
    old: str
    """What is there once."""
    new: str
    """What replaces it."""

    @property
    def in_core(self) -> bool:
        """Whether the core is to be built again for it."""
        return self.file.endswith(CORE)

    def apply(self, text: str) -> str:
        """Return the text of the file with the line broken.

        Raises:
            ValueError: The old text is not there exactly once, or what comes out is no Python.
        """
        if (count := text.count(self.old)) != 1:
            raise ValueError(f"{self.file} has this {count} times, and not once: {self.old}")
        broken = text.replace(self.old, self.new)
        if self.file.endswith(".py"):
            try:
                compile(broken, self.file, "exec")
            except SyntaxError as error:
                raise ValueError(f"{self.file}: no Python any more: {error}") from error
        return broken


@dataclass(frozen=True)
class Without:
    """A promise for which no single line can be broken."""

    page: Literal["guarantees", "security"]
    promise: str
    """The beginning of its row."""
    reason: str


def load() -> tuple[list[Break], list[Without]]:
    """Return the lines, and the promises without one."""
    found = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
    return [Break(**each) for each in found["broken"]], [Without(**each) for each in found.get("without", ())]
