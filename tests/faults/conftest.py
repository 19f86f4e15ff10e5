"""What the tests of faults share."""

from __future__ import annotations

import pytest

import freeim.node.session

BEAT = 0.4


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that beats 12.5 times as fast as by default, and finds silence as much sooner."""
    monkeypatch.setattr(freeim.node.session, "BEAT_INTERVAL", BEAT)
    monkeypatch.setattr(freeim.node.session, "SILENCE_LIMIT", 2 * BEAT)
