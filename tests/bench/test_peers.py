"""Other servers are measured as freeim is; one that is missing, fails or loses is said to, and spoils nothing."""

from __future__ import annotations

import socketserver
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar, cast

import pytest

from bench import report
from bench.outcome import Outcome
from bench.peers import PEERS
from bench.peers.base import Peer, PeerError, PythonPeer, RedisSender, Run, Sender, Server
from bench.peers.nchan import NchanPeer
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
    ("name", "how"),
    [("nchan", "apt install nginx libnginx-mod-nchan memcached"), ("centrifugo", "go install github.com/centri")],
)
def test_programs_that_are_missing_say_how_to_install_them(name: str, how: str) -> None:
    (kind,) = (kind for kind in PEERS if kind.name == name)
    assert (kind().missing() or "").startswith(how)


@pytest.mark.usefixtures("bare_path")
def test_nchan_misses_memcached_too(tmp_path: Path) -> None:
    for name in ("nginx", "ngx_nchan_module.so", "memcached"):
        assert NchanPeer().missing() is not None
        (tmp_path / name).touch(0o755)
    assert NchanPeer().missing() is None


class _Memcached(socketserver.StreamRequestHandler):
    """Keeps what it is told to store; answers as memcached does if all was well-formed."""

    answer = b"VERSION 1.6"
    stored: ClassVar[list[bytes]] = []

    def handle(self) -> None:
        while (line := self.rfile.readline()) != b"version\r\n":
            self.stored.append(line)
        self.wfile.write(self.answer + b"\r\n")


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    status = 403

    def do_GET(self) -> None:
        self.send_error(self.status)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def memcached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Listens where the adapter's would."""
    monkeypatch.setattr(_Memcached, "stored", [])
    with socketserver.UnixStreamServer(str(tmp_path / "memcached"), _Memcached) as server:
        threading.Thread(target=server.serve_forever, args=[0.01]).start()
        yield
        server.shutdown()


@pytest.fixture
def nginx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Server]]:
    """Starts what answers every handshake with one status."""
    with socketserver.TCPServer(("127.0.0.1", 0), _Answer) as server:

        def answer(status: int) -> Server:
            monkeypatch.setattr(_Answer, "status", status)
            return cast(Server, SimpleNamespace(port=server.server_address[1], run=Run("", "", tmp_path)))

        threading.Thread(target=server.serve_forever, args=[0.01]).start()
        yield answer
        server.shutdown()


@pytest.mark.usefixtures("memcached")
def test_nchan_knows_a_token_of_each_client(nginx: Callable[[int], Server]) -> None:
    shown = NchanPeer().tokens(nginx(403), 2)
    assert [each.partition("&token=")[0] for each in shown] == ["client1", "client2"]
    keys = [each.replace("&token=", ":") for each in shown]
    stored = "".join(f"set {key} 0 600 1 noreply\r\n1\r\n" for key in keys)
    assert b"".join(_Memcached.stored).decode() == stored


@pytest.mark.usefixtures("memcached")
@pytest.mark.parametrize("status", [101, 404, 500])
def test_nchan_that_does_not_refuse_a_wrong_token_is_not_measured(status: int, nginx: Callable[[int], Server]) -> None:
    with pytest.raises(PeerError, match="nchan does not refuse wrong tokens"):
        NchanPeer().tokens(nginx(status), 1)


@pytest.mark.usefixtures("memcached")
def test_nchan_is_not_measured_without_its_tokens(
    nginx: Callable[[int], Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Memcached, "answer", b"ERROR")
    with pytest.raises(PeerError, match="memcached stores no tokens: ERROR"):
        NchanPeer().tokens(nginx(403), 1)


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
