"""Asks a node for its metrics as Prometheus does, and reads the answer with Prometheus's own parser."""

from __future__ import annotations

import asyncio
import http.client
import urllib.request

from prometheus_client.parser import text_string_to_metric_families

from tests.node.harness import SECONDS, Running

Sample = tuple[str, tuple[tuple[str, str], ...]]


def sample(name: str, **labels: str) -> Sample:
    return name, tuple(sorted(labels.items()))


class Scrape:
    """One look at all metrics.

    Args:
        page: What ``/metrics`` answered.
    """

    def __init__(self, page: str) -> None:
        self.families = {family.name: family for family in text_string_to_metric_families(page)}
        self.samples = {
            sample(each.name, **each.labels): each.value for family in self.families.values() for each in family.samples
        }

    def __call__(self, name: str, **labels: str) -> float:
        """Return the value of a sample, without ``freeim_`` in its name; 0 where this label has not been seen yet."""
        full = f"freeim_{name}"
        assert any(known == full for known, _ in self.samples), full
        return self.samples.get(sample(full, **labels), 0.0)

    def labelled(self, name: str) -> dict[tuple[str, ...], float]:
        """Return all values of a metric that are not 0, by the values of its labels in the order of their names."""
        return {
            tuple(value for _, value in labels): number
            for (known, labels), number in self.samples.items()
            if known == f"freeim_{name}" and number
        }

    def buckets(self, name: str) -> dict[str, float]:
        """Return how many observations a histogram has in each bucket that has some, by its upper bound."""
        last = 0.0
        found = {}
        for (known, labels), total in self.samples.items():
            if known == f"freeim_{name}_bucket":
                if total > last:
                    found[dict(labels)["le"]] = total - last
                last = total
        return found


def fetch(url: str, accept: str = "text/plain") -> tuple[bytes, str]:
    """Return the page at a URL, and its content type."""
    request = urllib.request.Request(url, headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=SECONDS) as answer:
        assert isinstance(answer, http.client.HTTPResponse)
        return answer.read(), answer.headers["Content-Type"]


async def scrape(run: Running) -> Scrape:
    """Look at the metrics of a node that runs in this loop."""
    assert run.node.metrics_url is not None
    page, _ = await asyncio.to_thread(fetch, run.node.metrics_url)
    return Scrape(page.decode())
