"""Names of nodes and the list of them: taken, refused, taken over, buried, registered."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect

from freeim.errors import ConfigError, NodeReplaced
from freeim.helper import ImHelper
from freeim.names import Names
from tests.cli import command
from tests.node.harness import Running, bounded, event, refused, running, told, until
from tests.servers import RedisServer, free_port

NAMES = Names("im_v2_ws")

FAST_BEATS = (
    "import sys, freeim.node.presence, freeim.node.session as session; session.BEAT_INTERVAL = 0.1; "
    "from freeim.cli import main; sys.exit(main())"
)


def registered(server: RedisServer) -> tuple[int, list[str]]:
    """Return version and names of the list of nodes."""
    value = json.loads(server.command("GET", NAMES.nodes))
    assert (value["by"], value["prev"]) == ("mod", None)
    return value["v"], value["nodes"]


async def connect_to(server: RedisServer, port: int, client: int, metadata: str = "m") -> ClientConnection:
    """Connect a terminal to a node of another process."""
    with ImHelper(server.unix_url) as helper:
        url = helper.prev_connect_server(client, metadata)
    assert url.startswith(f"ws://127.0.0.1:{port}/")
    return await connect(url, compression=None, ping_interval=None, proxy=None)


# ---- a dead predecessor


async def test_a_killed_node_is_buried_at_once_by_a_restart_under_its_name(redis_server: RedisServer) -> None:
    port = free_port()
    name = f"127.0.0.1:{port}"
    other_options: dict[str, Any] = {
        "node": "other",
        "path": "/im",
    }  # another deployment, which is none of our business
    async with running(redis_server, **other_options) as other:
        await other.connect(7)
        with command.Server("--bind", name, "--redis-url", redis_server.url) as killed:
            killed.banner()
            sockets = [await connect_to(redis_server, port, client, f"phone {client}") for client in (7, 7, 8)]
            with ImHelper(redis_server.unix_url) as helper:
                helper.join_chan(7, "room", "hall")
                helper.join_chan(8, "room")
                helper.join_chan(9, "room")  # not connected: nobody's to take out
            (dead,) = redis_server.hash(NAMES.shares)
            killed.process.kill()
            killed.wait()
            for socket in sockets:
                await bounded(socket.wait_closed())
            assert redis_server.hash(NAMES.online) == {"7": "2", "8": "1"}

            run = Running(redis_server, bind=name)
            async with run.events() as events, run:
                epoch = run.node._presence.epoch
                heard = await events.heard()
                assert {channel for channel, _ in heard} == {NAMES.event_offline}
                assert sorted(payload for _, payload in heard) == [
                    event(7, 0, "phone 7"),
                    event(7, 1, "phone 7"),
                    event(8, 0, "phone 8"),
                ]
                assert run.online == {}
                assert redis_server.hash(NAMES.chan("room")) == {"9": "0"}
                assert redis_server.hash(NAMES.list_chan) == {"room": "1"}
                assert redis_server.hash(NAMES.shares) == {epoch: name}
                assert epoch != dead
                assert {key for key in sorted(run.keys()) if key.startswith(NAMES.prefix)} == {
                    *(NAMES.nodes, NAMES.shares, NAMES.lease(name), NAMES.alive(epoch)),
                    *(NAMES.chan("room"), NAMES.client(9), NAMES.list_chan),
                }
                peer = await run.connect(7)
                assert await events.heard() == [(NAMES.event_online, event(7, 1))]
                assert await peer.fence() == []
        assert other.online == {"7": "1"}


async def test_a_burial_takes_out_only_what_the_dead_node_had_counted(redis_server: RedisServer) -> None:
    nodes = ("a", "b")
    async with running(redis_server, node="b", nodes=nodes) as b:
        peer = await b.connect(3)
        b.join(3, "room")
        for epoch, name in (("dead", "a"), ("living", "a"), ("other", "c")):
            redis_server.command("HSET", NAMES.shares, epoch, name)
            redis_server.command("HSET", NAMES.share(epoch), "1", '4 {"Item1":4,"Item2":"m"}')
        redis_server.command("SET", NAMES.alive("living"), "a", "PX", 10_000)  # one that drains, say
        redis_server.command("HSET", NAMES.online, "4", 3)
        async with b.events() as events, running(redis_server, node="a", nodes=nodes) as a:
            assert await events.heard() == [(NAMES.event_offline, event(4, 2))]
            assert b.online == {"3": "1", "4": "2"}
            assert redis_server.hash(NAMES.shares) == {
                "living": "a",
                "other": "c",
                a.node._presence.epoch: "a",
                b.node._presence.epoch: "b",
            }
            assert redis_server.hash(NAMES.chan("room")) == {"3": "0"}
        assert await peer.fence() == []


async def test_a_name_that_was_given_back_is_free_at_once(redis_server: RedisServer) -> None:
    for _ in range(3):
        async with running(redis_server, node="n") as run:
            await run.connect(1)
            assert run.online == {"1": "1"}
        assert redis_server.hash(NAMES.online) == {}


# ---- a living owner


async def test_a_second_node_with_a_living_name_is_refused_and_leaves_the_first_alone(
    redis_server: RedisServer,
) -> None:
    async with running(redis_server, node="n", public_url="ws://first") as first, first.events() as events:
        peer = await first.connect(7)
        first.join(7, "room")
        await events.heard()
        before = {key: redis_server.command("DUMP", key) for key in sorted(first.keys())}
        second = Running(redis_server, node="n", public_url="ws://second")
        reason = await refused(second.node, ConfigError, "a living process already is the node 'n'")
        assert first.node._presence.epoch in reason
        assert "--takeover" in reason
        assert {key: redis_server.command("DUMP", key) for key in sorted(first.keys())} == before
        assert await events.heard() == []
        await until(lambda: redis_server.subscribers(NAMES.server("n")) == 1, "the second has unsubscribed")
        first.node._session.beat_now()
        assert await peer.fence() == []
        assert not first.node._end or not first.node._end.done()


async def test_a_second_command_with_a_living_name_ends_with_exit_code_2(redis_server: RedisServer) -> None:
    async with running(redis_server, node="n") as first:
        peer = await first.connect(7)
        done = command.run("--bind", f"127.0.0.1:{free_port()}", "--node", "n", "--redis-url", redis_server.url)
        assert done.returncode == 2
        assert "a living process already is the node 'n'" in done.stderr
        assert "Traceback" not in done.stderr
        assert done.stdout == ""
        assert await peer.fence() == []


async def test_of_nodes_that_start_together_under_one_name_one_serves(redis_server: RedisServer) -> None:
    runs = [Running(redis_server, node="n") for _ in range(4)]
    outcomes = await asyncio.gather(*(bounded(run.node.start()) for run in runs), return_exceptions=True)
    for run, outcome in zip(runs, outcomes, strict=True):
        if outcome is None:
            await run.node.stop()
    assert outcomes.count(None) == 1
    assert [type(outcome) for outcome in outcomes if outcome is not None] == [ConfigError] * 3


# ---- takeover


async def test_a_node_whose_name_is_taken_over_ends_and_sends_its_terminals_away(redis_server: RedisServer) -> None:
    async with running(redis_server, node="n") as old, old.events() as events:
        old_peers = [await old.connect(client) for client in (1, 2, 2)]
        old.join(1, "room")
        async with running(redis_server, node="n", takeover=True) as new:
            assert old.online == {"1": "1", "2": "2"}, "the old one drains by itself and is not buried"
            new_peer = await new.connect(2)
            await events.heard()
            old.node._session.beat_now()
            with pytest.raises(NodeReplaced, match="'n'"):
                await bounded(old.node.finished())
            with pytest.raises(NodeReplaced):
                await bounded(old.node.finished())  # whoever asks later is told too
            await bounded(old.node.stop())
            for peer in old_peers:
                assert await peer.ended() == (1012, "service restart")
            heard = await events.heard()
            assert sorted(payload for _, payload in heard) == [event(1, 0), event(2, 1), event(2, 2)]
            assert {channel for channel, _ in heard} == {NAMES.event_offline}
            assert new.online == {"2": "1"}
            epoch = new.node._presence.epoch
            assert redis_server.command("GET", NAMES.lease("n")) == epoch.encode()
            assert redis_server.hash(NAMES.shares) == {epoch: "n"}
            assert not redis_server.command("EXISTS", NAMES.alive(old.node._presence.epoch))
            assert await new_peer.fence() == []
            new.node._session.beat_now()
            await new.settled()
            assert await new_peer.fence() == []


async def test_a_command_whose_name_is_taken_over_ends_with_exit_code_4(redis_server: RedisServer) -> None:
    port = free_port()
    args = ("--bind", f"127.0.0.1:{port}", "--node", "n", "--redis-url", redis_server.url)
    with command.Server(*args, program=(sys.executable, "-P", "-c", FAST_BEATS)) as old:
        old.banner()
        with ImHelper(redis_server.unix_url, nodes=["n"]) as helper:
            token = helper.prev_connect_server(1).partition("=")[2]
        url = f"ws://127.0.0.1:{port}/ws?token={token}"
        socket = await connect(url, compression=None, ping_interval=None, proxy=None)
        async with running(redis_server, node="n", takeover=True) as new:
            await bounded(socket.wait_closed())
            assert (socket.close_code, socket.close_reason) == (1012, "service restart")
            assert old.wait() == 4
            assert "another process took the name 'n' over" in old.stderr
            assert "Traceback" not in old.stderr
            assert new.online == {}
            assert redis_server.hash(NAMES.shares) == {new.node._presence.epoch: "n"}


async def test_a_takeover_of_a_free_name_is_an_ordinary_start(redis_server: RedisServer) -> None:
    async with running(redis_server, node="n", takeover=True) as run:
        assert await (await run.connect(1)).fence() == []


async def test_a_node_whose_life_ran_out_is_buried_by_the_next_of_its_name_and_gives_way(
    redis_server: RedisServer,
) -> None:
    async with running(redis_server, node="n") as old, old.events() as events:
        peer = await old.connect(1)
        await events.heard()
        redis_server.command("DEL", NAMES.alive(old.node._presence.epoch))  # it hangs for longer than its lease, say
        async with running(redis_server, node="n") as new:
            assert await events.heard() == [(NAMES.event_offline, event(1, 0))]
            old.node._session.beat_now()
            with pytest.raises(NodeReplaced):
                await bounded(old.node.finished())
            await old.node.stop()
            assert await peer.ended() == (1012, "service restart")
            assert await events.heard() == [], "what was buried is not taken out a second time"
            assert new.online == {}
            assert redis_server.hash(NAMES.shares) == {new.node._presence.epoch: "n"}


# ---- the list of nodes


@pytest.mark.parametrize("nodes", [("b", "a"), ("a", "b", "c"), ("b",)])
async def test_another_list_is_refused_while_a_node_of_the_old_list_lives(
    redis_server: RedisServer, nodes: tuple[str, ...]
) -> None:
    async with running(redis_server, node="a", nodes=("a", "b")) as first:
        keys = first.keys()
        second = Running(redis_server, node="b", nodes=nodes)
        reason = await refused(second.node, ConfigError, "the list of nodes differs")
        assert f"Here: {', '.join(nodes)}. " in reason
        assert "Registered in Redis: a, b. " in reason
        assert "--replace-nodes" in reason
        assert registered(redis_server) == (1, ["a", "b"])
        assert first.keys() == keys
        await until(lambda: redis_server.subscribers(NAMES.server("b")) == 0)


async def test_a_command_with_another_list_ends_with_exit_code_2_and_shows_both(redis_server: RedisServer) -> None:
    async with running(redis_server, node="a", nodes=("a", "b")):
        done = command.run(
            *("--bind", f"127.0.0.1:{free_port()}", "--node", "b"),
            *("--nodes", "b,a", "--redis-url", redis_server.url),
        )
        assert done.returncode == 2
        assert "Here: b, a. Registered in Redis: a, b. " in done.stderr
        assert "Traceback" not in done.stderr


async def test_the_same_list_is_accepted_and_not_written_again(redis_server: RedisServer) -> None:
    both = ("a", "b")
    async with running(redis_server, node="a", nodes=both), running(redis_server, node="b", nodes=both) as second:
        assert second.node.nodes == both
        assert registered(redis_server) == (1, ["a", "b"])


@pytest.mark.parametrize("dead", ["clean", "no subscriber", "no life"])
async def test_another_list_replaces_one_of_which_no_node_lives(redis_server: RedisServer, dead: str) -> None:
    async with running(redis_server, node="a", nodes=("a", "b")):
        pass
    if dead == "no subscriber":  # just killed
        redis_server.command("SET", NAMES.lease("a"), "x")
        redis_server.command("SET", NAMES.alive("x"), "a")
    async with running(redis_server, node="b", nodes=("b", "c")) as run:
        assert run.node.nodes == ("b", "c")
        assert registered(redis_server) == (2, ["b", "c"])
        if dead == "no life":  # frozen
            redis_server.command("DEL", NAMES.alive(run.node._presence.epoch))
            async with running(redis_server, node="c", nodes=("c",)) as other:
                assert other.node.nodes == ("c",)
                assert registered(redis_server) == (3, ["c"])


async def test_replace_nodes_forces_another_list(redis_server: RedisServer) -> None:
    async with (
        running(redis_server, node="a", nodes=("a", "b")),
        running(redis_server, node="b", nodes=("b", "a"), replace_nodes=True) as second,
    ):
        assert second.node.nodes == ("b", "a")
        assert registered(redis_server) == (2, ["b", "a"])


async def test_a_node_without_a_list_takes_the_registered_one_that_has_its_name(redis_server: RedisServer) -> None:
    async with running(redis_server, node="a", nodes=("a", "b")), running(redis_server, node="b") as second:
        assert second.node.nodes == ("a", "b")
        await second.connect(3)
        assert (await second.http(second.request(second.token(2))))[0] == 421
        assert registered(redis_server) == (1, ["a", "b"])


async def test_a_node_without_a_list_whose_name_is_not_in_the_registered_one_is_refused_while_that_is_in_use(
    redis_server: RedisServer,
) -> None:
    async with running(redis_server, node="a", nodes=("a", "b")):
        await refused(Running(redis_server, node="c").node, ConfigError, r"Here: c\. Registered in Redis: a, b\.")
    async with running(redis_server, node="c") as alone:
        assert alone.node.nodes == ("c",)
        assert registered(redis_server) == (2, ["c"])


async def test_names_that_json_and_lua_must_escape_survive(redis_server: RedisServer) -> None:
    nodes = ("im/1", 'quo"te', "back\\slash", "ünï")
    async with running(redis_server, node="ünï", nodes=nodes) as run:
        assert run.node.nodes == nodes
        assert registered(redis_server) == (1, list(nodes))
        async with running(redis_server, node="im/1") as second:
            assert second.node.nodes == nodes


# ---- public URLs


async def test_the_public_url_is_registered_and_handed_out(redis_server: RedisServer) -> None:
    async with running(redis_server, node="n", public_url="wss://im.example.com/n1") as run:
        assert redis_server.hash(NAMES.urls) == {"n": "wss://im.example.com/n1"}
        assert run.node.url == "wss://im.example.com/n1/ws"
        with ImHelper(redis_server.unix_url) as helper:
            assert helper.prev_connect_server(1).startswith("wss://im.example.com/n1/ws?token=")
        assert "wss://im.example.com/n1/ws?token=..." in run.node.banner()
    async with running(redis_server, node="n") as run:  # without one: the old is withdrawn
        assert redis_server.hash(NAMES.urls) == {}
        assert run.node.url == "ws://n/ws"
        with ImHelper(redis_server.unix_url) as helper:
            assert helper.prev_connect_server(1).startswith("ws://n/ws?token=")


async def test_each_node_registers_its_own_url(redis_server: RedisServer) -> None:
    urls = "ws://im.example.com:{port}"
    async with (
        running(redis_server, node="a", nodes=("a", "b"), public_url=urls) as a,
        running(redis_server, node="b", public_url=urls) as b,
    ):
        assert redis_server.hash(NAMES.urls) == {
            "a": f"ws://im.example.com:{a.node.port}",
            "b": f"ws://im.example.com:{b.node.port}",
        }


async def test_a_burial_is_told_in_the_log(redis_server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "freeim")
    redis_server.command("HSET", NAMES.shares, "dead", "n")
    for number in range(3):
        redis_server.command("HSET", NAMES.share("dead"), number, f'{number + 1} {{"Item1":{number + 1}}}')
    async with running(redis_server, node="n"):
        assert "took out 3 connections that a dead node left behind" in told(caplog)


async def test_a_burial_does_nothing_where_the_node_turns_out_to_live(redis_server: RedisServer) -> None:
    nodes = ("a", "b")
    async with (
        running(redis_server, node="a", nodes=nodes) as a,
        running(redis_server, node="b", nodes=nodes) as b,
        a.events() as events,
    ):
        await a.connect(2)
        a.join(2, "room")
        await events.heard()
        assert await b.node._presence.bury(a.node._presence.epoch) == 0
        assert await events.heard() == []
        assert a.online == {"2": "1"}
        assert len(a.share) == 1
        assert redis_server.hash(NAMES.chan("room")) == {"2": "0"}
        assert set(redis_server.hash(NAMES.shares)) == {a.node._presence.epoch, b.node._presence.epoch}
