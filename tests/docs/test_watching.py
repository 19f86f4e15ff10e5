"""The page about watching names what there is."""

from __future__ import annotations

import json
import re
from pathlib import Path

from freeim.log import JsonFormatter
from tests.cli.test_log import record
from tests.docs.pages import Page
from tests.node.harness import running
from tests.node.scrape import scrape
from tests.servers import RedisServer

WATCHING = Page("docs/watching.md")
METRICS = [row for row in WATCHING.rows if len(row) == 4 and row[0] != "metric"]
TESTS = Path(__file__).parents[1] / "node" / "test_metrics.py"


async def test_the_tables_name_each_metric_its_kind_and_its_labels(redis_server: RedisServer) -> None:
    async with running(redis_server) as run:
        families = (await scrape(run)).families
    there = {}
    for family in families.values():
        labels = {label for each in family.samples for label in each.labels if label != "le"}
        name = family.name + ("_total" if family.type == "counter" else "")
        there[f"`{name}`"] = (family.type, ", ".join(f"`{label}`" for label in sorted(labels)))
    assert {row[0]: (row[1], row[2]) for row in METRICS} == there


def test_a_test_reads_each_metric_of_the_page() -> None:
    text = TESTS.read_text(encoding="utf-8")
    for row in METRICS:
        assert row[0].strip("`").removeprefix("freeim_") in text, row[0]


def test_each_alert_is_about_metrics_of_the_page_and_is_explained() -> None:
    names = {row[0].strip("`") for row in METRICS}
    names |= {f"{row[0].strip('`')}_bucket" for row in METRICS if row[1] == "histogram"}
    [_, rules] = WATCHING.written_in("yaml")
    for expression in re.findall(r"expr: (.*)", rules.text):
        used = re.findall(r"\b(?:freeim|process)_\w+", expression)
        assert used or expression.startswith("up{"), expression
        assert set(used) <= names
    alerts = re.findall(r"alert: (\w+)", rules.text)
    explained = [name for row in WATCHING.rows if len(row) == 3 for name in row[0].split(", ")]
    assert sorted(alerts) == sorted(set(explained) - {"alert"})


def test_prometheus_is_told_of_each_worker_of_the_page() -> None:
    [targets, _] = WATCHING.written_in("yaml")
    ports = re.findall(r'"127\.0\.0\.1:(\d+)"', targets.text)
    assert ports == ["9101", "9102", "9103", "9104"]
    assert any("--workers 4" in line and "--admin-bind 127.0.0.1:9101" in line for line in commands())


def commands() -> list[str]:
    return [line for block in WATCHING.written_in("sh") for line in block.lines]


def test_the_json_line_of_the_page_has_the_keys_that_a_line_has() -> None:
    [block] = WATCHING.written_in("json")
    [line] = block.lines
    shown, made = json.loads(line), json.loads(JsonFormatter("n").format(record(20, "x")))
    keys = [row[0].strip("`") for row in WATCHING.rows if len(row) == 2 and row[0] != "key"]
    assert [key for key in keys if key in shown] == list(shown)
    assert [key for key in keys if key != "exception"] == list(made)
