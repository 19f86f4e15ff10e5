"""Joining, leaving and clearing: the three hashes, also after a .NET helper left them apart."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freeim import ImHelper
from tests.helper.conftest import MakeHelper
from tests.recording import RecordingRedis
from tests.servers import RedisServer

BIG = 2**63 - 1
P = "im_v2_ws"


def hashes(server: RedisServer) -> dict[str, dict[str, str]]:
    keys = sorted(key.decode() for key in server.command("KEYS", "*"))
    return {key.removeprefix(P): server.hash(key) for key in keys}


def test_joining_writes_all_three_hashes_and_twice_is_once(helper: Any, redis_server: RedisServer) -> None:
    for _ in range(2):
        helper.join_chan(BIG, "room", "room", "hall")
        helper.join_chan(-5, "room")
    assert hashes(redis_server) == {
        f"Client{BIG}": {"room": "0", "hall": "0"},
        "Client-5": {"room": "0"},
        "Chanroom": {str(BIG): "0", "-5": "0"},
        "Chanhall": {str(BIG): "0"},
        "ListChan": {"room": "2", "hall": "1"},
    }


def test_leaving_undoes_joining_and_twice_is_once(helper: Any, redis_server: RedisServer) -> None:
    helper.join_chan(BIG, "room", "hall")
    helper.join_chan(2, "room", "hall")
    for _ in range(2):
        helper.leave_chan(BIG, "room", "never")
        helper.leave_chan_clients("hall", BIG, 2, 2, 99)
    assert hashes(redis_server) == {"Client2": {"room": "0"}, "Chanroom": {"2": "0"}, "ListChan": {"room": "1"}}


def test_a_thousand_channels_are_joined_and_left_in_one_script_each(
    make: MakeHelper, redis_server: RedisServer
) -> None:
    names = [f"channel {number}" for number in range(1000)]
    with RecordingRedis(redis_server) as recorder:
        helper = make(recorder.url, nodes=["a"])
        helper.join_chan(1, *names)
        assert helper.get_chan_list() == dict.fromkeys(names, 1)
        assert sorted(helper.get_chan_list_by_client_id(1)) == sorted(names)
        helper.leave_chan(1, *names)
        assert [command[0] for command in recorder.take()] == [
            *("GET", "GET", "HGETALL"),  # the registered list of nodes and the kind of bus, once
            *("EVAL", "HGETALL", "HKEYS", "EVAL"),
        ]
    assert hashes(redis_server) == {}


def test_a_join_mends_a_client_hash_that_was_lost_without_counting_twice(
    helper: Any, redis_server: RedisServer
) -> None:
    helper.join_chan(1, "room")
    redis_server.command("DEL", f"{P}Client1")
    helper.join_chan(1, "room")
    assert hashes(redis_server) == {"Chanroom": {"1": "0"}, "Client1": {"room": "0"}, "ListChan": {"room": "1"}}


def test_a_leave_mends_what_a_dotnet_clear_left_behind(helper: Any, redis_server: RedisServer) -> None:
    helper.join_chan(1, "room")
    helper.join_chan(2, "room")
    redis_server.command("HDEL", f"{P}Chanroom", "1")  # .NET's clear: nothing else is touched
    helper.leave_chan(1, "room")
    assert hashes(redis_server) == {"Chanroom": {"2": "0"}, "Client2": {"room": "0"}, "ListChan": {"room": "1"}}
    redis_server.command("HSET", f"{P}ListChan", "room", "7")
    helper.leave_chan(2, "room")
    assert hashes(redis_server) == {}


def test_a_join_that_changes_nothing_writes_nothing(helper: Any, redis_server: RedisServer) -> None:
    """A node that tracks the hash would read it again for nothing."""
    helper.join_chan(1, "room")
    with redis_server.wire() as watcher:
        watcher("WATCH", f"{P}Client1")
        helper.join_chan(1, "room")
        watcher("MULTI")
        watcher("PING")
        assert watcher("EXEC") == [b"PONG"], "the key was modified"


def test_clearing_removes_the_offline_members_and_mends_everything(helper: Any, redis_server: RedisServer) -> None:
    for client_id in (1, BIG, 3, 4):
        helper.join_chan(client_id, "room", "hall")
    redis_server.command("HSET", f"{P}Online", "1", "2", "3", "0", str(BIG - 1), "1")
    redis_server.command("HSET", f"{P}ListChan", "room", "9")
    helper.clear_chan_client("room")
    assert helper.get_chan_client_list("room") == [1]
    assert helper.get_chan_list() == {"room": 1, "hall": 4}
    assert helper.get_chan_list_by_client_id(BIG) == ["hall"]
    assert sorted(helper.get_chan_list_by_client_id(1)) == ["hall", "room"]
    redis_server.command("DEL", f"{P}Online")
    helper.clear_chan_client("room")
    assert helper.get_chan_list() == {"hall": 4}
    assert helper.get_chan_list_by_client_id(1) == ["hall"]


def test_clearing_works_beyond_what_lua_can_unpack_at_once(helper: Any, redis_server: RedisServer) -> None:
    helper.run_batch(lambda batch: [batch.join_chan(number, "room") for number in range(1, 9_001)])
    redis_server.command("HSET", f"{P}Online", *(item for number in range(1, 9_001, 9) for item in (number, 1)))
    helper.clear_chan_client("room")
    assert sorted(helper.get_chan_client_list("room")) == list(range(1, 9_001, 9))
    assert helper.get_chan_online("room") == 1000


@pytest.mark.parametrize(
    "name", ["a b", "频道", "\u2028\x85", "a\r\nb", "\x00", "{x}", "*", "%d %s", "'\"\\", "a" * 10_000]
)
def test_a_channel_may_have_any_name(helper: Any, redis_server: RedisServer, name: str) -> None:
    helper.join_chan(1, name)
    assert helper.get_chan_list() == {name: 1}
    assert helper.get_chan_list_by_client_id(1) == [name]
    assert helper.get_chan_client_list(name) == [1]
    assert helper.get_chan_online(name) == 1
    helper.clear_chan_client(name)
    assert redis_server.command("KEYS", "*") == []


def test_fields_that_are_no_ids_and_counts_that_are_no_numbers_are_passed_over(
    helper: Any, redis_server: RedisServer
) -> None:
    redis_server.command("HSET", f"{P}Chanroom", "junk", "0", "0", "0", "7", "0", "1_0", "0", "", "0")
    redis_server.command("HSET", f"{P}Online", "junk", "1", "7", "x", "8", "1")
    redis_server.command("HSET", f"{P}ListChan", "room", "many")
    assert helper.get_chan_client_list("room") == [7]
    assert helper.get_client_list_by_online() == [7, 8]
    assert helper.has_online_many([7, 8, 9]) == [False, True, False]
    assert helper.get_chan_online("room") == 0


steps = st.lists(
    st.tuples(st.sampled_from(["join", "leave", "leave_clients", "clear"]), st.integers(1, 3), st.sampled_from("ab")),
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(steps, st.sets(st.integers(1, 3)))
def test_whatever_is_called_the_three_hashes_agree(
    session_redis_server: RedisServer, steps: list[tuple[str, int, str]], online: set[int]
) -> None:
    server = session_redis_server
    server.flush()
    for client_id in online:
        server.command("HSET", f"{P}Online", client_id, 1)
    members: set[tuple[int, str]] = set()
    with ImHelper(server.unix_url, nodes=["a"]) as helper:
        for step, client_id, name in steps:
            if step == "join":
                helper.join_chan(client_id, name)
                members.add((client_id, name))
            elif step == "leave":
                helper.leave_chan(client_id, name)
                members.discard((client_id, name))
            elif step == "leave_clients":
                helper.leave_chan_clients(name, client_id)
                members.discard((client_id, name))
            else:
                helper.clear_chan_client(name)
                members = {member for member in members if member[1] != name or member[0] in online}
        counts = {name: sum(1 for member in members if member[1] == name) for name in "ab"}
        assert helper.get_chan_list() == {name: count for name, count in counts.items() if count}
        for name in "ab":
            assert set(helper.get_chan_client_list(name)) == {one for one, where in members if where == name}
        for client_id in (1, 2, 3):
            assert set(helper.get_chan_list_by_client_id(client_id)) == {x for one, x in members if one == client_id}
