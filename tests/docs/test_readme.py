"""The README in both languages: the same content, and everything in it works as it stands there."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from bench.report import number
from freeim import AsyncImHelper, ImHelper
from tests.cli.command import Server, environment
from tests.docs.pages import README, ROOT, Block, Page, signature_text
from tests.servers import RedisServer

CHINESE = Page("README.zh-CN.md")
QUICKSTART = Page("docs/quickstart.md")


@pytest.fixture
def environ(redis_server: RedisServer) -> Iterator[dict[str, str]]:
    """The environment of a program that finds a node: that of `make run`, but for the addresses."""
    with Server("--bind", "127.0.0.1:0", "--redis-url", redis_server.url) as node:
        node.banner()
        yield environment() | {"FREEIM_REDIS_URL": redis_server.url, "PYTHONIOENCODING": "utf-8"}


def test_both_languages_have_the_same_headings_and_links() -> None:
    assert [level for level, _ in README.headings] == [level for level, _ in CHINESE.headings]
    assert [link for link in README.links if link[:6] != "README"] == [
        link for link in CHINESE.links if link[:6] != "README"
    ]


def test_both_languages_have_the_same_code() -> None:
    assert [(block.language, block.text) for block in README.blocks] == [
        (block.language, block.text) for block in CHINESE.blocks
    ]


def test_both_languages_have_the_same_methods() -> None:
    assert [row[:2] for row in README.rows if "`" in row[1]] == [row[:2] for row in CHINESE.rows if "`" in row[1]]


@pytest.mark.parametrize("page", [README, CHINESE], ids=lambda page: page.name)
def test_the_figures_are_those_of_the_reports(page: Page) -> None:
    figures: dict[str, dict[str, Any]] = {}
    for report in (ROOT / "docs" / "benchmarks").rglob("latest.json"):
        for outcome in json.loads(report.read_text())["outcomes"]:
            if report.parent.name in ("benchmarks", outcome["scenario"]):
                figures |= {f"`{name}`": figure for name, figure in outcome["figures"].items()}
    shown = {row[0]: row[2] for row in page.rows if row[0] in figures}
    assert len(shown) > 5
    for name, value in shown.items():
        assert value == f"{number(figures[name]['median'])} {figures[name]['unit']}".strip(), name


def test_each_block_of_code_is_of_a_kind_that_a_test_runs_or_checks() -> None:
    # test_pages.py: sh, nginx; test_first_program.py: the first program; below: python, console. The picture is text.
    assert {block.language for block in README.blocks} == {"sh", "nginx", "python", "console", "text"}
    assert len(README.written_in("text")) == 1


SCRIPTS = [block for page in (README, QUICKSTART) for block in page.written_in("python") if "print(" in block.text]


@pytest.mark.parametrize("block", SCRIPTS, ids=str)
def test_each_program_prints_what_its_comments_say(block: Block, environ: dict[str, str], tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(block.text, encoding="utf-8")
    with contextlib.ExitStack() as stack:
        if "has_online(1))  # True" in block.text:  # the page has had a client 1 listen
            stack.enter_context(Listener(["python", "-m", "freeim", "listen", "1"], environ)).line()
        done = subprocess.run(
            [sys.executable, str(program)], env=environ, capture_output=True, encoding="utf-8", timeout=30, check=False
        )
    expected = re.findall(r"print\(.*\)  # (.+)", block.text)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == expected != []


class Listener:
    """A command that goes on: both of its outputs, line by line."""

    def __init__(self, words: list[str], environ: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            interpreter(words), env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8"
        )

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        with self.process:  # closes its pipes, and waits
            pass


def interpreter(words: list[str]) -> list[str]:
    """Return a command with this Python, without the current folder on its path."""
    assert words[0] == "python"
    return [sys.executable, "-P", *words[1:]]


def turns(block: Block) -> list[tuple[list[str], list[str]]]:
    """Return each command of a console, and the lines that it prints."""
    parts = re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]
    return [(shlex.split(part.partition("\n")[0]), part.splitlines()[1:]) for part in parts]


@pytest.mark.parametrize("page", [README, QUICKSTART], ids=lambda page: page.name)
def test_the_commands_print_what_the_page_shows(page: Page, environ: dict[str, str]) -> None:
    first, second = page.written_in("console")
    [(command, (connected, *arrives))] = turns(first)
    with Listener(command, environ) as listener:
        assert re.sub(r":\d+/", ":6001/", listener.line()) == connected
        for words, printed in turns(second):
            done = subprocess.run(
                interpreter(words), env=environ, capture_output=True, encoding="utf-8", timeout=30, check=False
            )
            assert (done.stdout.splitlines(), done.stderr, done.returncode) == (printed, "", 0)
        assert [listener.line() for _ in arrives] == arrives


def test_the_tables_show_the_methods_as_they_are() -> None:
    shown = re.findall(r"`(\w+)(\(.*?\))`", " ".join(row[1] for row in README.rows))
    for name, parameters in shown:
        for helper in (ImHelper, AsyncImHelper):
            assert parameters == signature_text(getattr(helper, name)), name
    public = {name for name in dir(ImHelper) if not name.startswith("_")}
    assert {name for name, _ in shown} == public - {"batch", "close"}
