"""Two nodes with one list: each client has one owner, and a message finds it wherever it is."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from freeim.helper import ImHelper
from freeim.names import ClientId, IdKind, new_token
from tests.node.harness import Peer, Running, event, running, token_json, told, until
from tests.servers import RedisServer

NODES = ("a", "b")


@dataclass(frozen=True)
class Clients:
    """Two clients of each node, whose owners are written out here rather than computed."""

    kind: IdKind
    a1: ClientId
    a2: ClientId
    b1: ClientId
    b2: ClientId


KINDS = {
    "positive": Clients("int", 2, 9223372036854775806, 3, 9223372036854775807),
    "negative": Clients("int", -2, -9223372036854775808, -1, -9223372036854775807),
    "guid": Clients(
        "guid",
        "ffffffff-ffff-ffff-ffff-fffffffffffe",
        "00000001-0000-0000-0000-000000000000",
        "12345678-9abc-4def-8012-3456789abcdf",
        "00000000-0000-0000-0000-000000000001",
    ),
}


@pytest.fixture(params=KINDS.values(), ids=list(KINDS))
def clients(request: pytest.FixtureRequest) -> Clients:
    found: Clients = request.param
    return found


@pytest.fixture
def helper(redis_server: RedisServer, clients: Clients) -> Iterator[ImHelper]:
    with ImHelper(redis_server.unix_url, ids=clients.kind) as found:
        yield found


@contextlib.asynccontextmanager
async def two_nodes(server: RedisServer, kind: IdKind = "int") -> AsyncIterator[tuple[Running, Running]]:
    """Start the nodes a and b, on any free ports: a name is no address."""
    options: dict[str, Any] = {"nodes": NODES, "ids": kind, "public_url": "ws://127.0.0.1:{port}"}
    async with running(server, node="a", **options) as a, running(server, node="b", **options) as b:
        yield a, b


async def connect(run: Running, helper: ImHelper, client: ClientId) -> Peer:
    """Connect a terminal with the URL that the helper hands out; it must be this node's."""
    url = helper.prev_connect_server(client, "m")
    head, _, token = url.partition("?token=")
    assert head == f"ws://127.0.0.1:{run.node.port}/ws"
    return await run.connect_with(token, client)


async def connect_all(a: Running, b: Running, helper: ImHelper, clients: Clients) -> list[Peer]:
    return [
        await connect(run, helper, client)
        for run, client in ((a, clients.a1), (a, clients.a2), (b, clients.b1), (b, clients.b2))
    ]


async def test_the_helper_hands_out_the_url_of_the_owner_which_lets_its_client_in(
    redis_server: RedisServer, clients: Clients, helper: ImHelper
) -> None:
    async with two_nodes(redis_server, clients.kind) as (a, b):
        await connect_all(a, b, helper, clients)
        assert sorted(value.partition(" ")[0] for value in a.share.values()) == sorted(
            map(str, [clients.a1, clients.a2])
        )
        assert sorted(value.partition(" ")[0] for value in b.share.values()) == sorted(
            map(str, [clients.b1, clients.b2])
        )
        assert sorted(helper.get_client_list_by_online(), key=str) == sorted(
            [clients.a1, clients.a2, clients.b1, clients.b2], key=str
        )


async def test_another_nodes_client_gets_421_with_the_right_url_and_its_token_stays_good(
    redis_server: RedisServer, clients: Clients
) -> None:
    async with two_nodes(redis_server, clients.kind) as (a, b):
        for wrong, right, client in (
            *((a, b, clients.b1), (a, b, clients.b2)),
            *((b, a, clients.a1), (b, a, clients.a2)),
        ):
            token = wrong.token(client)
            for _ in range(2):
                status, _, body = await wrong.http(wrong.request(token))
                assert status == 421
                assert body.decode() == (
                    f"this client belongs to the node {right.node.name}: "
                    f"connect to ws://127.0.0.1:{right.node.port}/ws?token=...\n"
                )
            assert wrong.share == {}
            assert 0 < redis_server.command("TTL", right.names.token(token)) <= 10
            peer = await right.connect_with(token, client)
            assert await peer.fence() == []
            await peer.close()
            await until(lambda right=right: right.share == {}, "it is out")  # type: ignore[misc]


async def test_without_a_public_url_the_right_url_is_the_nodes_name(redis_server: RedisServer) -> None:
    async with running(redis_server, node="a", nodes=("a", "im.example.com:6002")) as run:
        status, _, body = await run.http(run.request(run.token(1)))
        assert status == 421
        assert body.endswith(b": connect to ws://im.example.com:6002/ws?token=...\n")


async def test_misdirected_clients_are_told_once_in_the_log(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with two_nodes(redis_server) as (a, b):
        for client in (1, 3, 5):
            token = a.token(client)
            assert (await a.http(a.request(token)))[0] == 421
            assert token not in caplog.text
        (line,) = told(caplog, 30)
        assert f"it must connect to ws://127.0.0.1:{b.node.port}/ws?token=..." in line


async def test_a_message_to_clients_of_both_nodes_reaches_each_once(
    redis_server: RedisServer, clients: Clients, helper: ImHelper
) -> None:
    async with two_nodes(redis_server, clients.kind) as (a, b):
        peers = await connect_all(a, b, helper, clients)
        second = await connect(b, helper, clients.b1)
        both = helper.send_message(0 if clients.kind == "int" else None, [clients.b1, clients.a2, clients.b1], "both")
        assert (both.addressed, both.heard, both.silent) == (2, 2, ())
        one = helper.send_message(None, clients.b2, {"only": "b2"})
        assert (one.addressed, one.heard) == (1, 1)
        assert [await peer.fence() for peer in (*peers, second)] == [
            [],
            ['"both"'],
            ['"both"'],
            ['{"only":"b2"}'],
            ['"both"'],
        ]


async def test_channel_and_broadcast_messages_reach_both_nodes(
    redis_server: RedisServer, clients: Clients, helper: ImHelper
) -> None:
    async with two_nodes(redis_server, clients.kind) as (a, b):
        peers = await connect_all(a, b, helper, clients)
        helper.join_chan(clients.a1, "room")
        helper.join_chan(clients.b2, "room")
        assert helper.send_chan_message(None, "room", "members").heard == 2
        assert helper.send_broadcast_message("all").heard == 2
        # The sender has one connection, so it is left out; on whichever node it is.
        helper.send_chan_message(clients.a1, "room", "from a1")
        helper.send_chan_message(clients.b2, "room", "from b2")
        assert [await peer.fence() for peer in peers] == [
            ['"members"', '"all"', '"from b2"'],
            ['"all"'],
            ['"all"'],
            ['"members"', '"all"', '"from a1"'],
        ]


async def test_receipts_cross_the_nodes(redis_server: RedisServer, clients: Clients, helper: ImHelper) -> None:
    async with two_nodes(redis_server, clients.kind) as (a, b):
        a1, b1 = await connect(a, helper, clients.a1), await connect(b, helper, clients.b1)
        delivered = '{"content":"\\"hi\\"","receipt":"发送成功"}'
        offline = '{"content":"\\"hi\\"","receipt":"用户不在线"}'
        for sender, receiver in ((a1, b1), (b1, a1)):
            helper.send_message(sender.client, receiver.client, "hi", receipt=True)
            assert await receiver.fence() == ['"hi"']
            assert await sender.next() == delivered
            assert await sender.fence() == []
            for absent in (clients.a2, clients.b2):
                helper.send_message(sender.client, absent, "hi", receipt=True)
                assert await sender.next() == offline
            assert await sender.fence() == []
            assert await receiver.fence() == []


async def test_a_forced_offline_reaches_the_owner_alone(
    redis_server: RedisServer, clients: Clients, helper: ImHelper
) -> None:
    async with two_nodes(redis_server, clients.kind) as (a, b), b.events() as events:
        peers = await connect_all(a, b, helper, clients)
        await events.heard()
        published = helper.force_offline(clients.b1)
        assert (published.addressed, published.heard) == (1, 1)
        assert await peers[2].ended() == (1001, "disconnect")
        assert await events.next() == [(b.names.event_offline, event(clients.b1, 0))]
        for peer in (peers[0], peers[1], peers[3]):
            assert await peer.fence() == []


async def test_a_channel_counts_the_members_of_both_nodes_until_each_has_left(
    redis_server: RedisServer, clients: Clients, helper: ImHelper
) -> None:
    async with two_nodes(redis_server, clients.kind) as (a, b), a.events() as events:
        peers = await connect_all(a, b, helper, clients)
        everybody: list[ClientId] = [clients.a1, clients.a2, clients.b1, clients.b2]
        for client in everybody:
            helper.join_chan(client, "room")
        await events.heard()
        while peers:
            assert helper.get_chan_online("room") == len(peers)
            assert sorted(helper.get_chan_client_list("room"), key=str) == sorted(everybody, key=str)
            await peers.pop(0).close()
            assert await events.next() == [(a.names.event_offline, event(everybody.pop(0), 0))]
        assert helper.get_chan_list() == {}
        assert helper.get_client_list_by_online() == []


async def test_a_node_that_stops_takes_its_own_clients_out_and_no_other(
    redis_server: RedisServer, clients: Clients, helper: ImHelper
) -> None:
    async with two_nodes(redis_server, clients.kind) as (a, b), a.events() as events:
        peers = await connect_all(a, b, helper, clients)
        for client in (clients.a1, clients.b1):
            helper.join_chan(client, "room")
        await events.heard()
        await a.node.stop()
        assert sorted(await events.heard()) == sorted(
            (a.names.event_offline, event(client, 0)) for client in (clients.a1, clients.a2)
        )
        assert b.online == {str(clients.b1): "1", str(clients.b2): "1"}
        assert helper.get_chan_client_list("room") == [clients.b1]
        for peer in peers[:2]:
            assert await peer.ended() == (1012, "service restart")
        published = helper.send_broadcast_message("still here")
        assert (published.addressed, published.heard, published.silent) == (2, 1, ("a",))
        for peer in peers[2:]:
            assert await peer.fence() == ['"still here"']


async def test_a_guid_in_capitals_is_the_same_client(redis_server: RedisServer) -> None:
    guid = "12345678-9ABC-4DEF-8012-3456789ABCDF"
    async with two_nodes(redis_server, "guid") as (a, b):
        token = new_token()
        value = token_json(guid)
        redis_server.command("SET", b.names.token(token), value, "EX", 10)
        assert (await a.http(a.request(token)))[0] == 421
        peer = await b.connect_with(token, guid.lower())
        assert b.online == {guid.lower(): "1"}
        with ImHelper(redis_server.unix_url, ids="guid") as helper:
            helper.send_message(None, guid, "hi")
        assert await peer.fence() == ['"hi"']
