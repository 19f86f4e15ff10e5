"""What SECURITY.md claims is held by something that exists."""

from __future__ import annotations

import re

from freeim.config import OPTIONS
from tests.docs.pages import ROOT, Page

PAGE = Page("SECURITY.md")
CLAIMS = [row for row in PAGE.rows if row[0] != "claim"]


def test_each_claim_names_a_test_or_an_option() -> None:
    assert len(CLAIMS) > 20
    for claim, held_by in CLAIMS:
        assert re.fullmatch(r"(`(tests/[\w/]+\.py::test_\w+|--[\w-]+)` ?)+", held_by), claim


def test_each_test_that_is_named_exists() -> None:
    for file, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE.text):
        text = (ROOT / file).read_text(encoding="utf-8")
        assert re.search(rf"^(async )?def {name}\(", text, re.MULTILINE), f"{file}::{name}"


def test_each_option_that_is_named_exists() -> None:
    options = {"--" + name.replace("_", "-") for name in OPTIONS}
    found = set(re.findall(r"`(--[\w-]+)`", PAGE.text))
    assert found
    assert found <= options


def test_both_readmes_lead_to_it() -> None:
    for name in ("README.md", "README.zh-CN.md"):
        assert "SECURITY.md" in Page(name).links
