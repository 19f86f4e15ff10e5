"""What a node counts in Redis: connections, events, memberships, and the keys that say which node counted what."""

from __future__ import annotations

import json

import pytest

from freeim.helper import ImHelper
from freeim.names import Names
from tests.node.harness import Running, channel_message, direct, event, running, token_json, until
from tests.servers import RedisServer, encode_command

EXTREME_IDS = [2**63 - 1, -(2**63), 2**53 + 1, -(2**53) - 1, 1234567890123456789, -1]
"""Ids that a double cannot hold, and negative ones: a script that took them for numbers would change them."""


# ---- counts and events


async def test_online_counts_connections_and_each_event_says_how_many_a_client_has(redis_server: RedisServer) -> None:
    async with running(redis_server) as run, run.events() as events:
        online, offline = run.names.event_online, run.names.event_offline
        peers = []
        for count in (1, 2, 3):
            peers.append(await run.connect(7))
            assert run.online == {"7": str(count)}  # it was counted before the 101
            assert await events.heard() == [(online, event(7, count))]  # and published
        await run.connect(8)
        assert run.online == {"7": "3", "8": "1"}
        assert await events.heard() == [(online, event(8, 1))]
        for count in (2, 1, 0):
            await peers.pop().close()
            assert await events.next() == [(offline, event(7, count))]
            assert run.online == {"8": "1"} | ({"7": str(count)} if count else {})


async def test_a_terminal_that_vanishes_is_taken_out_too(redis_server: RedisServer) -> None:
    async with running(redis_server) as run, run.events() as events:
        raw = await run.raw_client(7)
        await events.heard()
        raw.cut()
        assert await events.next() == [(run.names.event_offline, event(7, 0))]
        assert run.online == {}


async def test_connections_that_close_together_are_each_taken_out_once(redis_server: RedisServer) -> None:
    async with running(redis_server) as run, run.events() as events:
        raws = [await run.raw_client(client) for client in range(1, 251)]  # more than one script takes
        await events.heard()
        for raw in raws:
            raw.cut()
        heard = await events.next(250)
        assert sorted(heard) == sorted((run.names.event_offline, event(client, 0)) for client in range(1, 251))
        assert run.online == {}
        assert run.share == {}


@pytest.mark.parametrize(
    "metadata", [None, "", '{"a":"}"}', "日本 \U0001f600", "100% %1 %%", 'quote " \\ \n', "x" * 10_000]
)
async def test_events_carry_the_metadata_as_it_was_given(redis_server: RedisServer, metadata: str | None) -> None:
    async with running(redis_server) as run, run.events() as events:
        peer = await run.connect(7, metadata)
        assert await events.heard() == [(run.names.event_online, event(7, 1, metadata))]
        await peer.close()
        assert await events.next() == [(run.names.event_offline, event(7, 0, metadata))]


@pytest.mark.parametrize("tail", ["", " ", "\r\n\t "])
async def test_the_count_is_spliced_into_the_text_of_the_token(redis_server: RedisServer, tail: str) -> None:
    async with running(redis_server) as run, run.events() as events:
        value = '{ "Item1" : 7, "Item2":"m" , "more":{"a":1}' + "}" + tail
        peer = await run.connect_with(run.token(7, value=value), 7)
        spliced = '{ "Item1" : 7, "Item2":"m" , "more":{"a":1},"Item3":%d}'
        assert await events.heard() == [(run.names.event_online, spliced % 1)]
        await peer.close()
        assert await events.next() == [(run.names.event_offline, spliced % 0)]


async def test_what_others_have_counted_is_left_alone(redis_server: RedisServer) -> None:
    names = Names("im_v2_ws")
    redis_server.command("HSET", names.online, "7", 2, "9", 1)  # a .NET node's
    async with running(redis_server) as run, run.events() as events:
        run.join(7, "room")
        peer = await run.connect(7)
        assert await events.heard() == [(names.event_online, event(7, 3))]
        await peer.close()
        assert await events.next() == [(names.event_offline, event(7, 2))]
        assert redis_server.hash(names.chan("room")) == {"7": "0"}, "it has connections elsewhere, and stays a member"
    assert redis_server.hash(names.online) == {"7": "2", "9": "1"}


async def test_a_count_that_was_lost_does_not_fall_below_zero(redis_server: RedisServer) -> None:
    async with running(redis_server) as run, run.events() as events:
        peers = [await run.connect(7) for _ in range(2)]
        await events.heard()
        redis_server.command("DEL", run.names.online)
        for peer in peers:
            await peer.close()
        assert await events.next(2) == [(run.names.event_offline, event(7, 0))] * 2
        assert run.online == {}


# ---- memberships


async def test_only_the_last_close_ends_the_membership_and_the_others_stay_members(redis_server: RedisServer) -> None:
    async with running(redis_server) as run, run.events() as events:
        names = run.names
        first, second, other = [await run.connect(client) for client in (7, 7, 8)]
        with ImHelper(redis_server.unix_url) as helper:
            helper.join_chan(7, "room", "hall")
            helper.join_chan(8, "room")
        await events.heard()
        await first.close()
        assert await events.next() == [(names.event_offline, event(7, 1))]
        assert redis_server.hash(names.chan("room")) == {"7": "0", "8": "0"}
        assert redis_server.hash(names.chan("hall")) == {"7": "0"}
        assert redis_server.hash(names.client(7)) == {"room": "0", "hall": "0"}
        assert redis_server.hash(names.list_chan) == {"room": "2", "hall": "1"}
        run.publish(channel_message("room", "to both"))
        assert await second.fence() == ['"to both"']
        assert await other.fence() == ['"to both"']

        await second.close()
        assert await events.next() == [(names.event_offline, event(7, 0))]
        assert redis_server.hash(names.chan("room")) == {"8": "0"}
        assert redis_server.hash(names.client(8)) == {"room": "0"}
        assert redis_server.hash(names.list_chan) == {"room": "1"}
        assert not run.keys() & {names.chan("hall"), names.client(7)}
        run.publish(channel_message("room", "to one"))
        assert await other.fence() == ['"to one"']


async def test_a_client_that_comes_back_is_no_member_any_more(redis_server: RedisServer) -> None:
    async with running(redis_server) as run, run.events() as events:
        peer = await run.connect(7)
        run.join(7, "room")
        await events.heard()
        await peer.close()
        await events.next()
        peer = await run.connect(7)
        run.publish(channel_message("room", "not for you"))
        assert await peer.fence() == []


@pytest.mark.parametrize("wrong", [0, 1, 40, -3])
async def test_the_last_close_mends_the_counts_of_its_channels(redis_server: RedisServer, wrong: int) -> None:
    async with running(redis_server) as run, run.events() as events:
        peer = await run.connect(7)
        run.join(7, "room", "hall")
        run.join(8, "room")
        redis_server.command("HSET", run.names.list_chan, "room", wrong, "hall", wrong)
        await events.heard()
        await peer.close()
        await events.next()
        assert redis_server.hash(run.names.list_chan) == {"room": "1"}


async def test_an_opening_drops_the_channels_that_chan_does_not_confirm(redis_server: RedisServer) -> None:
    names = Names("im_v2_ws")
    redis_server.command("HSET", names.client(7), "stale", 0, "room", 0)
    redis_server.command("HSET", names.chan("room"), "7", 0)
    async with running(redis_server) as run:
        peer = await run.connect(7)
        assert redis_server.hash(names.client(7)) == {"room": "0"}
        run.publish(channel_message("stale", "no"))
        run.publish(channel_message("room", "yes"))
        assert await peer.fence() == ['"yes"']


# ---- the keys


async def test_a_node_registers_its_life_and_its_list_of_nodes(redis_server: RedisServer) -> None:
    async with running(redis_server) as run:
        names, name, epoch = run.names, run.node.name, run.node._presence.epoch
        assert len(epoch) == 32
        assert run.keys() == {names.lease(name), names.alive(epoch), names.shares, names.nodes}
        assert redis_server.command("GET", names.lease(name)) == epoch.encode()
        assert redis_server.command("GET", names.alive(epoch)) == name.encode()
        assert redis_server.hash(names.shares) == {epoch: name}
        assert json.loads(redis_server.command("GET", names.nodes)) == {
            "v": 1,
            "by": "mod",
            "nodes": [name],
            "prev": None,
        }
        for key in (names.lease(name), names.alive(epoch)):
            assert 10_000 < redis_server.command("PTTL", key) <= 15_000
        for key in (names.shares, names.nodes):
            assert redis_server.command("PTTL", key) == -1


async def test_a_beat_renews_the_lease_and_the_life(redis_server: RedisServer) -> None:
    async with running(redis_server) as run:
        keys = [run.names.lease(run.node.name), run.names.alive(run.node._presence.epoch)]
        for key in keys:
            redis_server.command("PEXPIRE", key, 9_000)
        redis_server.command("DEL", run.names.shares)
        run.node._session.beat_now()
        await until(lambda: all(redis_server.command("PTTL", key) > 10_000 for key in keys), "renewed")
        assert redis_server.hash(run.names.shares) == {run.node._presence.epoch: run.node.name}


async def test_the_share_holds_each_connection_under_a_number_that_is_never_used_again(
    redis_server: RedisServer,
) -> None:
    async with running(redis_server) as run:
        first = await run.connect(7, "a")
        await run.connect(7, "b")
        assert sorted(run.share.values()) == [f"7 {token_json(7, 'a')}", f"7 {token_json(7, 'b')}"]
        used = set(run.share)
        await first.close()
        await until(lambda: len(run.share) == 1, "the closed one is out of the share")
        await run.connect(8, "c")
        assert list(run.share.values()).count(f"8 {token_json(8, 'c')}") == 1
        assert len(set(run.share) - used) == 1
        assert redis_server.command("PTTL", run.names.share(run.node._presence.epoch)) == -1
        assert redis_server.command("PTTL", run.names.online) == -1


async def test_a_token_is_burnt_by_the_opening(redis_server: RedisServer) -> None:
    async with running(redis_server) as run:
        token = run.token(7)
        await run.connect_with(token, 7)
        assert redis_server.command("EXISTS", run.names.token(token)) == 0
        assert (await run.http(run.request(token)))[0] == 401
        assert run.online == {"7": "1"}
        assert len(run.share) == 1


async def test_an_opening_that_is_sent_twice_is_counted_once(redis_server: RedisServer) -> None:
    async with running(redis_server) as run, run.events() as events:
        await run.connect(7)
        await events.heard()
        (connection,) = run.node._connections.living.values()
        replies: list[object] = []
        run.node._presence._run_open(connection, [], (), replies.append)
        await run.settled()
        assert replies == [-1]
        assert run.online == {"7": "1"}
        assert len(run.share) == 1
        assert await events.heard() == []


# ---- int64


@pytest.mark.parametrize("client", EXTREME_IDS)
async def test_an_id_keeps_all_its_digits_through_everything(redis_server: RedisServer, client: int) -> None:
    async with running(redis_server) as run, run.events() as events:
        names, online, offline = run.names, run.names.event_online, run.names.event_offline
        with ImHelper(redis_server.unix_url) as helper:
            peer = await run.connect(client)
            sender = await run.connect(7)
            helper.join_chan(client, "room")
            assert await events.heard() == [(online, event(client, 1)), (online, event(7, 1))]
            assert run.online == {str(client): "1", "7": "1"}
            assert f"{client} {token_json(client)}" in run.share.values()

            redis_server.flush()  # what the node puts back
            assert sorted(await events.next(2)) == sorted([(online, event(client, 1)), (online, event(7, 1))])
            await run.settled()
            assert redis_server.hash(names.chan("room")) == {str(client): "0"}
            assert redis_server.hash(names.client(client)) == {"room": "0"}
            assert sorted(helper.get_client_list_by_online()) == sorted([client, 7])
            assert helper.get_chan_client_list("room") == [client]
            assert helper.get_chan_list_by_client_id(client) == ["room"]
            assert helper.has_online_many([client, client ^ 2]) == [True, False]

            helper.send_message(7, client, "direct", receipt=True)
            helper.send_chan_message(client, "room", "its own, with one connection")
            helper.send_chan_message(7, "room", "channel")
            assert await peer.fence() == ['"direct"', '"channel"']
            assert await sender.fence() == ['{"content":"\\"direct\\"","receipt":"发送成功"}']
            helper.send_message(client, 8, "nobody", receipt=True)
            await run.heard_all()
            assert await peer.next() == '{"content":"\\"nobody\\"","receipt":"用户不在线"}'

            helper.force_offline(client)
            assert await peer.ended() == (1001, "disconnect")
            assert await events.next() == [(offline, event(client, 0))]
            assert run.online == {"7": "1"}
            assert not run.keys() & {names.client(client), names.chan("room"), names.list_chan}


async def test_a_burial_keeps_all_digits_too(redis_server: RedisServer) -> None:
    names = Names("im_v2_ws")
    with redis_server.wire() as wire:
        commands: list[tuple[str, ...]] = [("HSET", names.shares, "dead", "n")]
        for number, client in enumerate(EXTREME_IDS):
            commands += [
                ("HSET", names.share("dead"), str(number), f"{client} {token_json(client)}"),
                ("HSET", names.online, str(client), "1"),
                ("HSET", names.chan("room"), str(client), "0"),
                ("HSET", names.client(client), "room", "0"),
            ]
        wire.sock.sendall(b"".join(map(encode_command, commands)))
        for _ in commands:
            wire.read()
    run = Running(redis_server, node="n")
    async with run.events() as events, run:
        assert sorted(await events.heard()) == sorted((names.event_offline, event(id_, 0)) for id_ in EXTREME_IDS)
        assert run.keys() == {names.nodes, names.shares, names.lease("n"), names.alive(run.node._presence.epoch)}


async def test_two_ids_that_are_one_double_are_two_clients(redis_server: RedisServer) -> None:
    async with running(redis_server) as run, run.events() as events:
        near, far = 2**63 - 1, 2**63 - 2
        first, second = await run.connect(near), await run.connect(far)
        run.publish(direct([near], "near"))
        assert await first.fence() == ['"near"']
        assert await second.fence() == []
        await events.heard()
        await first.close()
        assert await events.next() == [(run.names.event_offline, event(near, 0))]
        assert run.online == {str(far): "1"}
