"""Each promise of docs/guarantees.md names its tests, and each test of a fault stands there."""

from __future__ import annotations

import ast
import re

import pytest

from tests.docs.pages import ROOT, Page

PAGE = Page("docs/guarantees.md")
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE.text)


def found_in(file: str) -> set[str]:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    names = {node.name for node in tree.body if isinstance(node, kinds) and node.name.startswith("test_")}
    # Hypothesis makes the test of a state machine: TestX = XMachine.TestCase
    targets = [node.targets[0] for node in tree.body if isinstance(node, ast.Assign)]
    return names | {target.id for target in targets if isinstance(target, ast.Name) and target.id.startswith("Test")}


@pytest.mark.parametrize(("file", "name"), sorted(set(NAMED)))
def test_each_test_that_the_page_names_exists(file: str, name: str) -> None:
    assert name in found_in(file)


def test_each_row_names_a_test() -> None:
    heads = ("promise", "what breaks")
    rows = [row for row in PAGE.rows if row[0] not in heads]
    assert len(rows) > 30
    assert [row[0] for row in rows if "::test_" not in row[-1]] == []


def test_each_test_of_a_fault_is_on_the_page() -> None:
    # Of what a person writes into a URL or an option, not of a fault.
    others = {
        "test_a_node_says_what_is_wrong_with_its_sentinels",
        "test_a_client_of_redis_py_that_asks_sentinels_can_be_given_to_a_helper",
    }
    named = {name for _, name in NAMED}
    for path in sorted((ROOT / "tests" / "faults").glob("test_*.py")):
        missing = found_in(str(path.relative_to(ROOT))) - named - others
        assert missing == set(), path.name
