"""The pages of the documentation, taken apart."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from freeim.config import Options
from freeim.config_load import load

ROOT = Path(__file__).resolve().parents[2]

_FENCE = re.compile(r"^(`{3,})(\w*)[^\n]*\n(.*?)^\1[ ]*$", re.DOTALL | re.MULTILINE)
_CODE_SPAN = re.compile(r"`[^`\n]*`")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^(#+) +(.+?) *$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A block of code: its page, its line there, its language, its text."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def lines(self) -> list[str]:
        """The lines that are neither empty nor comments."""
        return [line for line in self.text.splitlines() if line.strip() and not line.startswith("#")]


class Page:
    """One Markdown file."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.text = (ROOT / name).read_text(encoding="utf-8")
        self.blocks = [
            Block(name, self.text.count("\n", 0, match.start()) + 1, match[2], match[3])
            for match in _FENCE.finditer(self.text)
        ]
        self.prose = _FENCE.sub("", self.text)
        self.headings = [(len(match[1]), match[2]) for match in _HEADING.finditer(self.prose)]
        self.links: list[str] = _LINK.findall(_CODE_SPAN.sub("", self.prose))

    @property
    def anchors(self) -> set[str]:
        """What links to a heading of this page end with."""
        titles = (re.sub(r"[^\w\- ]", "", title.lower()) for _, title in self.headings)
        return {title.replace(" ", "-") for title in titles}

    @property
    def rows(self) -> list[list[str]]:
        """The cells of all rows of all tables, without those that separate the heads."""
        lines = [line for line in self.prose.splitlines() if line.startswith("|") and not line.startswith("|--")]
        return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]

    def written_in(self, language: str) -> list[Block]:
        """The blocks of one language."""
        return [block for block in self.blocks if block.language == language]


PAGES = [Page(str(path.relative_to(ROOT))) for path in sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])]
README = Page("README.md")


def blocks_in(language: str) -> list[Block]:
    """The blocks of one language on all pages."""
    return [block for page in PAGES for block in page.written_in(language)]


def options_of(words: list[str], environ: dict[str, str] | None = None) -> Options:
    """Return the options of a command line of freeim-server, those of each worker checked too."""
    options = load(words, environ or {})[0]
    for index in range(options.workers):
        options.for_worker(index)
    return options


def signature_text(function: Any) -> str:
    """Return a method's parameters as the tables write them: without self and without types."""
    found = inspect.signature(function)
    parameters = [each.replace(annotation=each.empty) for name, each in found.parameters.items() if name != "self"]
    return str(found.replace(parameters=parameters, return_annotation=found.empty)).replace("'", '"')
