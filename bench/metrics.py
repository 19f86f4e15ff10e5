"""What a node tells about itself while it is measured."""

from __future__ import annotations

import urllib.request
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

from bench.stand import free_ports

SECONDS: Final = 20.0
"""How long a node under load may take to answer."""


class Watched:
    """A port for a node's metrics, and looks at them."""

    def __init__(self) -> None:
        [port] = free_ports(1)
        self._bind = f"127.0.0.1:{port}"
        self.options = ("--admin-bind", self._bind)

    def look(self) -> Look:
        """Ask for all of them."""
        with urllib.request.urlopen(f"http://{self._bind}/metrics", timeout=SECONDS) as answer:
            return Look(answer.read().decode())


class Look:
    """All metrics at one moment.

    Args:
        page: What the node answered.
    """

    def __init__(self, page: str) -> None:
        self._samples = [each for family in text_string_to_metric_families(page) for each in family.samples]

    def __call__(self, name: str, **labels: str) -> float:
        """Return a metric, without ``freeim_`` in its name: the sum of its samples that have these labels."""
        full = f"freeim_{name}"
        return sum(each.value for each in self._samples if each.name == full and labels.items() <= each.labels.items())
