"""Two apps that were given different lists of nodes: who notices, and that nobody else is harmed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from websockets.sync.client import connect

from freeim import ImHelper, NodesMismatch
from tests.cli.command import Server, free_ports
from tests.helper.buses import wait_for
from tests.helper.conftest import MakeHelper
from tests.servers import RedisServer


@pytest.fixture
def nodes(redis_server: RedisServer) -> Iterator[list[str]]:
    """Two nodes that run and have registered, in the order of their names."""
    port = free_ports(2)
    with Server("--bind", f"127.0.0.1:{port}", "--workers", "2", "--redis-url", redis_server.url) as group:
        group.banner()
        yield [f"127.0.0.1:{port}", f"127.0.0.1:{port + 1}"]


CALLS: list[Callable[[Any], Any]] = [
    lambda helper: helper.prev_connect_server(1),
    lambda helper: helper.send_message(0, [1, 2], "astray"),
    lambda helper: helper.send_chan_message(0, "room", "astray"),
    lambda helper: helper.send_broadcast_message("astray"),
    lambda helper: helper.force_offline(1),
    lambda helper: helper.join_chan(1, "astray"),
    lambda helper: helper.leave_chan(1, "room"),
    lambda helper: helper.clear_chan_client("room"),
    lambda helper: helper.get_chan_list(),
    lambda helper: helper.has_online(1),
]


@pytest.mark.parametrize(
    "change", [lambda n: n[::-1], lambda n: n[:1], lambda n: [*n, "c:1"]], ids=["order", "less", "more"]
)
def test_the_app_with_another_list_is_refused_at_each_call_and_the_other_goes_on(
    make: MakeHelper, redis_server: RedisServer, nodes: list[str], change: Callable[[list[str]], list[str]]
) -> None:
    wrong = make(redis_server.url, nodes=change(nodes))
    with ImHelper(redis_server.url, nodes=nodes) as right:
        right.join_chan(1, "room")
        with connect(right.prev_connect_server(1)) as one, connect(right.prev_connect_server(2)) as two:
            before = redis_server.hash("im_v2_wsChanroom")
            for call in CALLS:
                with pytest.raises(NodesMismatch, match="same list in the same order"):
                    call(wrong)
            assert redis_server.hash("im_v2_wsChanroom") == before
            assert redis_server.command("EXISTS", "im_v2_wsChanastray") == 0
            assert redis_server.command("KEYS", "im_v2_wsToken*") == []
            right.send_broadcast_message("to all")
            assert [one.recv(5), two.recv(5)] == ['"to all"'] * 2


def test_an_app_with_a_list_of_its_own_notices_that_the_nodes_were_started_with_another(
    make: MakeHelper, redis_server: RedisServer
) -> None:
    port = free_ports(2)
    old, new = f"127.0.0.1:{port}", f"127.0.0.1:{port + 1}"
    own = make(redis_server.url, nodes=[old], node_list_ttl=0.2)
    reader = make(redis_server.url, node_list_ttl=0.2)
    with Server("--bind", old, "--redis-url", redis_server.url) as node:
        node.banner()
        assert own.send_broadcast_message("x").heard == reader.send_broadcast_message("x").heard == 1
    redis_server.command("DEL", f"im_v2_wsLease{old}")  # as when its lease has run out
    with Server("--bind", new, "--redis-url", redis_server.url, "--nodes", new) as node:
        node.banner()
        wait_for(lambda: reader.send_broadcast_message("x").heard == 1)
        with pytest.raises(NodesMismatch, match="same list in the same order"):
            own.send_broadcast_message("x")


def test_where_nothing_is_registered_a_list_that_names_a_node_too_many_is_reported_with_each_message(
    make: MakeHelper, redis_server: RedisServer
) -> None:
    """As .NET nodes leave it. Two that swap the same names cannot be told apart."""
    helper = make(redis_server.url, nodes=["a", "b"])
    assert helper.send_message(0, [1, 2], "x").silent == ("b", "a")
