"""Other servers are measured as freeim is; one that is missing, fails or loses is said to, and spoils nothing."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from bench import report
from bench.outcome import Outcome
from bench.peers import PEERS
from bench.peers.base import Peer, PythonPeer, RedisSender, Sender, Server
from bench.peers.websockets import WebsocketsPeer
from bench.scenarios import peers
from bench.stand import Settings
from tests.docs.pages import ROOT

FIGURES = ("storm", "storm_bare", "fanout", "fanout_bare", "direct", "direct_bare", "memory", "memory_freeim")


class _NotInstalled(PythonPeer):
    name = "absent"
    modules = ("json", "no_such_module_anywhere")
    packages = ("no-such-package[extra]",)
    program = "serve_websockets.py"


class _Failing(WebsocketsPeer):
    name = "failing"
    program = "there_is_no_such_program.py"


class _Losing(WebsocketsPeer):
    """Its last message of many gets lost."""

    name = "losing"

    def sender(self, server: Server) -> Sender:
        return _LosingSender(server.run.url, f"{server.run.prefix}:push")


class _LosingSender(RedisSender):
    def send(self, packed: Sequence[bytes]) -> None:
        super().send(packed[:-1] if len(packed) > 50 else packed)


def run(monkeypatch: pytest.MonkeyPatch, url: str, *kinds: type[Peer]) -> Outcome:
    monkeypatch.setattr(peers, "PEERS", kinds)
    monkeypatch.setattr(peers, "LOST_SECONDS", 0.5)
    return peers.run(Settings(url, connections=50, rounds=1, repeat=0.005))


@pytest.fixture
def bare_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine on which no program is installed."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("bench.peers.nchan.FOLDERS", (str(tmp_path),))


def test_a_peer_is_measured_beside_freeim_and_loses_nothing(monkeypatch: pytest.MonkeyPatch, bench_url: str) -> None:
    outcome = run(monkeypatch, bench_url, WebsocketsPeer)
    assert outcome.complete
    # Of each of three sides: the handshakes, what is sent to everybody at once, and 100 messages to one each.
    assert outcome.received == 3 * (50 + 50 + 100)
    assert {figure.name for figure in outcome.figures} == {f"websockets_{each}" for each in FIGURES}
    assert outcome.notes[0].startswith("websockets: websockets 1")


def test_a_peer_that_is_missing_is_skipped_with_a_line_that_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, bench_url: str
) -> None:
    outcome = run(monkeypatch, bench_url, _NotInstalled)
    assert outcome.complete
    assert not outcome.figures
    (note,) = outcome.notes
    assert note.startswith(f"absent is not here: {sys.executable} -m pip install no-such-package[extra] (Module")
    assert f"- {note}" in report.as_markdown(report.describe(Settings(bench_url)), [outcome])


@pytest.mark.usefixtures("bare_path")
@pytest.mark.parametrize(
    ("name", "how"), [("nchan", "apt install nginx libnginx-mod-nchan"), ("centrifugo", "go install github.com/centri")]
)
def test_programs_that_are_missing_say_how_to_install_them(name: str, how: str) -> None:
    (kind,) = (kind for kind in PEERS if kind.name == name)
    assert (kind().missing() or "").startswith(how)


@pytest.mark.parametrize("kind", [kind for kind in PEERS if issubclass(kind, PythonPeer)])
def test_an_interpreter_that_has_nothing_misses_all_python_peers(kind: type[PythonPeer], tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    python.chmod(0o755)
    assert (kind(str(python)).missing() or "").startswith(f"{python} -m pip install ")


@pytest.mark.parametrize("kind", PEERS)
def test_the_page_says_how_to_install_a_peer_as_the_report_does(kind: type[Peer], bare_path: None) -> None:
    how = (kind("/nowhere/python").missing() or "").removeprefix("/nowhere/python -m ").partition(" (")[0]
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8").replace('"', "")
    assert f"`{how}`" in next(line for line in page.splitlines() if line.startswith(f"| `{kind.name}` |"))


def test_a_peer_that_does_not_start_is_noted_and_the_next_is_measured(
    monkeypatch: pytest.MonkeyPatch, bench_url: str
) -> None:
    outcome = run(monkeypatch, bench_url, _Failing, WebsocketsPeer)
    assert outcome.complete
    assert "failing has no figures: failing does not listen on port" in outcome.notes[1]
    assert {figure.name for figure in outcome.figures} == {f"websockets_{each}" for each in FIGURES}


def test_a_peer_that_loses_has_no_figures_and_spoils_none(monkeypatch: pytest.MonkeyPatch, bench_url: str) -> None:
    outcome = run(monkeypatch, bench_url, _Losing)
    assert outcome.complete
    assert not outcome.figures
    assert outcome.notes[1] == "losing has no figures: 199 of 200 arrived (no other fault)"
