"""The README in both languages: the same content, and everything in it works as it stands there."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

from freeim import AsyncImHelper, ImHelper
from tests.cli.command import Server, environment
from tests.docs.pages import README, ROOT, Block, Page, signature_text
from tests.servers import RedisServer

CHINESE = Page("README.zh-CN.md")


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


def test_each_block_of_code_is_of_a_kind_that_a_test_runs_or_checks() -> None:
    # test_pages.py: sh, nginx; below: python, console. The picture is the one text.
    assert {block.language for block in README.blocks} == {"sh", "nginx", "python", "console", "text"}
    assert len(README.written_in("text")) == 1


@pytest.mark.parametrize("block", README.written_in("python"), ids=str)
def test_each_program_prints_what_its_comments_say(block: Block, environ: dict[str, str], tmp_path: Path) -> None:
    program = tmp_path / "first.py"
    program.write_text(block.text, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(program)], env=environ, capture_output=True, encoding="utf-8", timeout=30, check=False
    )
    expected = re.findall(r"print\(.*\)  # (.+)", block.text)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == expected != []


class Chatter:
    """One terminal of the chat, run as the README shows it, and the lines that are to be seen there."""

    def __init__(self, block: Block, environ: dict[str, str]) -> None:
        command, *self.lines = block.text.splitlines()
        python, script, *self.ids = shlex.split(command.removeprefix("$ "))
        assert python == ".venv/bin/python"
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / script), *self.ids],
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
        )

    @property
    def types_next(self) -> bool:
        """Whether the next line is one that the user types: only those have a receipt."""
        return bool(self.lines) and f"  (delivered: {self.lines[0]})" in self.lines

    def expect(self) -> str:
        """Read the next line; it must be the one of the README."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline().rstrip("\n")
        assert line == self.lines.pop(0)
        return line

    def type(self) -> str:
        """Type the next line of the README."""
        assert self.process.stdin is not None
        line = self.lines.pop(0)
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        return line

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        with self.process:  # closes its pipes, and waits
            pass


def test_the_chat_runs_as_it_is_shown(environ: dict[str, str]) -> None:
    first, second = README.written_in("console")
    with Chatter(first, environ) as one, Chatter(second, environ) as two:
        assert one.ids == two.ids[::-1]
        one.expect()
        two.expect()
        while one.lines or two.lines:
            writer, reader = (one, two) if one.types_next else (two, one)
            assert writer.types_next
            text = writer.type()
            assert writer.expect() == f"  (delivered: {text})"
            assert reader.expect() == f"{writer.ids[0]}: {text}"
        for chatter in (one, two):
            assert chatter.process.stdin is not None
            chatter.process.stdin.close()
            assert chatter.process.wait(10) == 0


def test_the_tables_show_the_methods_as_they_are() -> None:
    shown = re.findall(r"`(\w+)(\(.*?\))`", " ".join(row[1] for row in README.rows))
    for name, parameters in shown:
        for helper in (ImHelper, AsyncImHelper):
            assert parameters == signature_text(getattr(helper, name)), name
    public = {name for name in dir(ImHelper) if not name.startswith("_")}
    assert {name for name, _ in shown} == public - {"batch", "close"}
