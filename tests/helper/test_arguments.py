"""Wrong arguments are refused before anything is sent."""

from __future__ import annotations

import datetime
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freeim import AsyncImHelper, ImHelper
from freeim.names import group_by_owner, owners, parse_client_id
from tests.helper.conftest import MakeHelper

NOWHERE = "redis://127.0.0.1:1"
"""Nobody listens there: any I/O would be a RedisUnavailable."""

GUID = str(uuid.UUID(int=7))

BAD_IDS: list[tuple[Any, type[Exception]]] = [
    (0, ValueError),
    (True, TypeError),
    (1.0, TypeError),
    ("1", TypeError),
    (b"1", TypeError),
    (None, TypeError),
    (2**63, ValueError),
    (-(2**63) - 1, ValueError),
]
BAD_GUIDS: list[tuple[Any, type[Exception]]] = [
    (1, TypeError),
    (b"x", TypeError),
    (None, TypeError),
    ("", ValueError),
    (GUID + "0", ValueError),
    (uuid.UUID(int=0), ValueError),
    (str(uuid.UUID(int=0)), ValueError),
]
BAD_CHANNELS: list[tuple[Any, type[Exception]]] = [
    ("", ValueError),
    (None, TypeError),
    (5, TypeError),
    (b"room", TypeError),
    (["room"], TypeError),
    ("\ud800", ValueError),
]


def id_calls(helper: Any, value: Any) -> list[tuple[str, Any]]:
    return [
        ("prev_connect_server", lambda: helper.prev_connect_server(value)),
        ("send_message", lambda: helper.send_message(None, [value], "x")),
        ("send_message among good ones", lambda: helper.send_message(None, [helper.good, value], "x")),
        ("force_offline", lambda: helper.force_offline(value)),
        ("has_online", lambda: helper.has_online(value)),
        ("has_online_many", lambda: helper.has_online_many([value])),
        ("join_chan", lambda: helper.join_chan(value, "a")),
        ("leave_chan", lambda: helper.leave_chan(value, "a")),
        ("leave_chan_clients", lambda: helper.leave_chan_clients("a", value)),
        ("get_chan_list_by_client_id", lambda: helper.get_chan_list_by_client_id(value)),
    ]


@pytest.mark.parametrize(
    ("ids", "good", "value", "error"),
    [("int", 1, *bad) for bad in BAD_IDS] + [("guid", GUID, *bad) for bad in BAD_GUIDS],
)
def test_what_is_no_client_id_is_refused_everywhere(
    make: MakeHelper, ids: str, good: Any, value: Any, error: type[Exception]
) -> None:
    helper = make(NOWHERE, nodes=["a"], ids=ids)
    helper.good = good
    for name, call in id_calls(helper, value):
        try:
            call()
        except error as caught:
            assert type(caught) is error, name
        else:
            pytest.fail(f"{name} took {value!r}")


@pytest.mark.parametrize(("value", "error"), BAD_CHANNELS)
def test_what_is_no_channel_is_refused_everywhere(make: MakeHelper, value: Any, error: type[Exception]) -> None:
    helper = make(NOWHERE, nodes=["a"])
    for call in (
        lambda: helper.send_chan_message(0, value, "x"),
        lambda: helper.join_chan(1, "a", value),
        lambda: helper.leave_chan(1, "a", value),
        lambda: helper.leave_chan_clients(value, 1),
        lambda: helper.clear_chan_client(value),
        lambda: helper.get_chan_client_list(value),
        lambda: helper.get_chan_online(value),
    ):
        with pytest.raises(error):
            call()


@pytest.mark.parametrize("receivers", ["12", b"12", 1.5, None, True])
def test_receivers_must_be_ids_or_an_iterable_of_them(make: MakeHelper, receivers: Any) -> None:
    with pytest.raises(TypeError):
        make(NOWHERE, nodes=["a"]).send_message(0, receivers, "x")


@pytest.mark.parametrize("ids", ["12", b"12", 5, None])
def test_has_online_many_takes_an_iterable(make: MakeHelper, ids: Any) -> None:
    with pytest.raises(TypeError):
        make(NOWHERE, nodes=["a"]).has_online_many(ids)


@pytest.mark.parametrize("sender", [True, 1.0, "1", 2**63])
def test_a_sender_is_an_id_or_the_system(make: MakeHelper, sender: Any) -> None:
    helper = make(NOWHERE, nodes=["a"])
    for call in (lambda: helper.send_message(sender, 1, "x"), lambda: helper.send_chan_message(sender, "a", "x")):
        with pytest.raises((TypeError, ValueError)):
            call()


@pytest.mark.parametrize("message", [b"x", float("nan"), float("inf"), datetime.date(2020, 1, 1)])
def test_a_message_that_is_no_json_is_refused_by_each_way_of_sending(make: MakeHelper, message: Any) -> None:
    helper = make(NOWHERE, nodes=["a"])
    for call in (
        lambda: helper.send_message(0, 1, message),
        lambda: helper.send_message(0, [], message),
        lambda: helper.send_chan_message(0, "a", message),
        lambda: helper.send_broadcast_message(message),
    ):
        with pytest.raises(TypeError):
            call()


@pytest.mark.parametrize("metadata", [1, b"x", {"a": 1}])
def test_metadata_is_text_or_none(make: MakeHelper, metadata: Any) -> None:
    with pytest.raises(TypeError, match="metadata"):
        make(NOWHERE, nodes=["a"]).prev_connect_server(1, metadata)


@pytest.mark.parametrize("kind", [ImHelper, AsyncImHelper])
@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"nodes": "a"}, TypeError),
        ({"nodes": []}, ValueError),
        ({"nodes": ["a", "a"]}, ValueError),
        ({"nodes": ["a", ""]}, ValueError),
        ({"nodes": [1]}, TypeError),
        ({"nodes": {"a"}}, TypeError),
        ({"ids": "long"}, ValueError),
        ({"path": "ws"}, ValueError),
        ({"path": "/ws?x"}, ValueError),
        ({"path": "/w s"}, ValueError),
        ({"path": "/health"}, ValueError),
        ({"path": None}, TypeError),
        ({"prefix": ""}, ValueError),
        ({"prefix": "a b"}, ValueError),
        ({"prefix": 1}, TypeError),
        ({"token_ttl": 0}, ValueError),
        ({"token_ttl": "10"}, TypeError),
        ({"timeout": -1}, ValueError),
        ({"timeout": True}, TypeError),
        ({"timeout": float("inf")}, ValueError),
        ({"node_list_ttl": -1}, ValueError),
        ({"json_dumps": "json"}, TypeError),
        ({"on_send": 1}, TypeError),
        ({"redis": "http://x"}, ValueError),
        ({"redis": 5}, TypeError),
    ],
)
def test_impossible_options_are_refused_when_the_helper_is_made(
    kind: Any, options: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        kind(**options)


def test_on_send_must_not_be_a_coroutine_function() -> None:
    async def on_send(event: object) -> None: ...

    with pytest.raises(TypeError, match="plain function"):
        AsyncImHelper(on_send=on_send)  # type: ignore[arg-type]


int_ids = st.integers(-(2**63), 2**63 - 1).filter(bool)
guid_ids = st.uuids().map(str)


@given(st.lists(int_ids | st.integers(1, 50), unique=True) | st.lists(guid_ids, unique=True), st.integers(1, 9))
def test_grouping_many_clients_agrees_with_the_owner_of_each(client_ids: list[Any], size: int) -> None:
    nodes = [f"n{number}" for number in range(size)]
    one_by_one: dict[str, list[Any]] = {}
    for client_id in client_ids:
        for node in owners(client_id, nodes):
            one_by_one.setdefault(node, []).append(client_id)
    grouped = group_by_owner(client_ids, nodes)
    assert [(node, list(ids)) for node, ids in grouped.items()] == list(one_by_one.items())


@given(st.lists(guid_ids, min_size=1), st.data())
def test_many_guids_are_checked_like_one(client_ids: list[str], data: st.DataObject) -> None:
    helper = ImHelper(NOWHERE, nodes=["a"], ids="guid")
    position = data.draw(st.integers(0, len(client_ids) - 1))
    for bad in ("", client_ids[0] + "," + client_ids[0], client_ids[0][:-1], client_ids[0] + "\n"):
        with pytest.raises(ValueError, match="GUID"):
            helper.has_online_many([*client_ids[:position], bad, *client_ids[position:]])


@pytest.mark.parametrize("text", ["", "x", "1_0", "١", "9223372036854775808", "1.0", "0x1"])
def test_a_field_that_is_no_number_is_no_client_id(text: str) -> None:
    assert parse_client_id(text, "int") is None
