"""Each promise has a line of the code that ``make broken`` can break to see its test fail."""

from __future__ import annotations

import re

import pytest

from tests.broken.lines import Break, load
from tests.docs.pages import ROOT, Page
from tests.docs.test_guarantees import found_in

BREAKS, WITHOUT = load()
PAGES = {"guarantees": Page("docs/guarantees.md"), "security": Page("SECURITY.md")}
TESTS = {name: [re.findall(r"`tests/([\w/]+\.py::\w+)`", row[-1]) for row in page.rows] for name, page in PAGES.items()}


@pytest.mark.parametrize("line", BREAKS, ids=lambda line: f"{line.test}-{line.file}")
def test_a_line_is_there_once_and_its_test_stands_on_the_page(line: Break) -> None:
    line.apply((ROOT / line.file).read_text(encoding="utf-8"))
    test = line.test.partition("[")[0]
    assert any(test in tests for tests in TESTS[line.page])
    file, _, name = test.partition("::")
    assert name in found_in(f"tests/{file}")


@pytest.mark.parametrize("page", PAGES)
def test_each_promise_has_a_line_or_a_reason_why_it_has_none(page: str) -> None:
    broken = {line.test.partition("[")[0] for line in BREAKS if line.page == page}
    without = [each for each in WITHOUT if each.page == page]
    promises = [(row[0], tests) for row, tests in zip(PAGES[page].rows, TESTS[page], strict=True) if tests]
    assert len(promises) > 30
    for promise, tests in promises:
        reasons = [each.reason for each in without if promise.startswith(each.promise)]
        assert bool(broken.intersection(tests)) != any(reasons), promise
    for each in without:
        assert [promise for promise, _ in promises if promise.startswith(each.promise)] != [], each.promise
