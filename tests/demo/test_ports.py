"""The ports that tests take are ports to which a browser connects."""

from __future__ import annotations

import pytest

from tests import servers
from tests.servers import BAD_PORTS, free_port


def test_a_free_port_is_none_that_browsers_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    offered = iter([*sorted(BAD_PORTS), 50_000])
    monkeypatch.setattr(servers, "_any_port", lambda: next(offered))
    assert free_port() == 50_000
