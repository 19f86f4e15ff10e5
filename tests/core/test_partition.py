"""The partition: who owns a client, and that one module alone knows."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

import freeim
from freeim.names import INT64_MAX, INT64_MIN, ClientId, group_by_owner, owners

VECTORS = Path(__file__).parent.parent / "vectors"
NODES = ("a", "b", "c")


def connects(file: str) -> list[tuple[ClientId, list[str], str | None]]:
    """Return client, nodes and the chosen node (None where FreeIM threw) of every connect that was recorded."""
    found = []
    for entry in json.loads((VECTORS / file).read_text()):
        if entry["call"] == "prev_connect_server":
            node = urlsplit(entry["returns"]).netloc if "returns" in entry else None
            found.append((entry["args"][0], entry["servers"], node))
    assert found
    return found


@pytest.mark.parametrize("file", ["helper.json", "helper-guid.json"])
def test_every_client_that_freeim_could_place_is_placed_alike(file: str) -> None:
    for client_id, nodes, node in connects(file):
        if node is not None:
            assert owners(client_id, nodes) == (node,), client_id
        else:
            assert isinstance(client_id, int)
            assert client_id < 0, "FreeIM fails for negative ids only"
            assert owners(client_id, nodes)[0] in nodes


@pytest.mark.parametrize("file", ["helper.json", "helper-guid.json"])
def test_every_recorded_message_names_only_receivers_that_its_node_owns(file: str) -> None:
    seen = 0
    for entry in json.loads((VECTORS / file).read_text()):
        if entry["call"] != "send_message":
            continue
        for command in entry["commands"]:
            if command[0] != "PUBLISH":
                continue
            node = re.sub(r"^.*?Server", "", command[1])
            for receiver in json.loads(command[2])["Item2"]:
                assert owners(receiver, entry["servers"]) == (node,)
                seen += 1
    assert seen > 5


@pytest.mark.parametrize(
    ("client_id", "node"),
    [
        (1, "b"),
        (3, "a"),
        (0, "a"),
        (-1, "c"),
        (-2, "b"),
        (-3, "a"),
        (INT64_MAX, "b"),
        (INT64_MIN, "b"),
        (-INT64_MAX, "c"),
        ("00000000-0000-0000-0000-00000000ffff", "a"),
        ("ffffffff-ffff-ffff-ffff-ffffffff0001", "b"),
        ("ffffffff-ffff-ffff-ffff-ffffffff0000", "a"),
    ],
)
def test_ids_are_placed_by_floored_modulo_and_guids_by_their_last_four_digits(client_id: ClientId, node: str) -> None:
    assert owners(client_id, NODES) == (node,)


@given(st.integers(INT64_MIN, INT64_MAX), st.integers(1, 12))
def test_where_dotnets_remainder_is_an_index_ours_is_the_same(client_id: int, count: int) -> None:
    nodes = [f"n{i}" for i in range(count)]
    remainder = abs(client_id) % count * (1 if client_id >= 0 else -1)  # C#: the sign of the dividend
    (owner,) = owners(client_id, nodes)
    assert owner in nodes
    if remainder >= 0:
        assert owner == nodes[remainder]


@given(
    st.one_of(
        st.lists(st.integers(INT64_MIN, INT64_MAX), unique=True, max_size=30),
        st.lists(st.uuids().map(str), unique=True, max_size=30),
    ),
    st.integers(1, 9),
)
def test_grouping_many_clients_is_the_same_as_asking_for_each(client_ids: list[ClientId], count: int) -> None:
    nodes = [f"n{i}" for i in range(count)]
    groups = group_by_owner(client_ids, nodes)
    assert sorted(map(str, client_ids)) == sorted(str(each) for group in groups.values() for each in group)
    for node, group in groups.items():
        assert list(group) == [each for each in client_ids if owners(each, nodes) == (node,)]
        assert group


def test_nothing_else_in_the_package_computes_a_remainder_by_the_number_of_nodes() -> None:
    folder = Path(freeim.__file__).parent
    sources = sorted(folder.rglob("*.py"))
    assert len(sources) > 10
    by_a_count = re.compile(r"\blen\(|nodes|count|size|servers", re.IGNORECASE)
    found = []
    for path in sources:
        for node in ast.walk(ast.parse(path.read_text())):
            by = None
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod):
                text = isinstance(node.left, (ast.Constant, ast.JoinedStr)) and not isinstance(
                    getattr(node.left, "value", None), int
                )
                by = None if text else node.right
            elif isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) in (
                *("divmod", "mod", "fmod", "remainder"),
            ):
                by = node.args[-1]
            if by is not None and by_a_count.search(ast.unparse(by)):
                found.append(str(path.relative_to(folder)))
    assert set(found) == {"names.py"}, found
    for path in [*folder.glob("*.pyx"), *folder.glob("*.pxi")]:
        for line in path.read_text().splitlines():
            code = line.split("#")[0]
            assert not re.search(r"%\s*(\w*\.)*_?(len\(|nodes|servers|node_count)", code), f"{path.name}: {line}"
