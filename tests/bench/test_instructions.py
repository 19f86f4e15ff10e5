"""What the instructions are counted of: the node's own hot path, which must deliver what it is said to deliver."""

from __future__ import annotations

import pytest

from bench import instructions
from bench.hotpath import BURST, KINDS, run
from bench.processes import BenchError


@pytest.mark.parametrize("kind", KINDS)
async def test_the_path_delivers_each_message_to_each_receiver(kind: str) -> None:
    assert await run(kind, 2 * BURST, 3 * BURST) == 2 * BURST * KINDS[kind]


def test_without_valgrind_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(BenchError, match="valgrind, which is not on PATH"):
        instructions.instructions("direct", 1, 1)
    assert instructions.main([]) == 1
    assert "apt install valgrind" in capsys.readouterr().err


def test_the_page_shows_each_path_with_its_count() -> None:
    counts = {kind: 1000.0 + number for number, kind in enumerate(KINDS)}
    page = instructions.page(counts)
    for number, kind in enumerate(KINDS):
        assert f"| `{kind}` | {1000 + number:,} | {instructions.MEANINGS[kind]} |" in page
