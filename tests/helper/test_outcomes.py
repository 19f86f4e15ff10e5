"""What a call reports, and what it warns of."""

from __future__ import annotations

import json
import logging
import time
import uuid
from typing import Any

import pytest

from freeim import FreeImError, NodesMismatch, NoNodes, Published, Raw, SendEvent
from tests.helper.conftest import MakeHelper
from tests.recording import RecordingRedis
from tests.servers import RedisServer, Subscriber

NODE_A = "im_v2_wsServera"
NODE_B = "im_v2_wsServerb"


def register(server: RedisServer, *nodes: str, **urls: str) -> None:
    """Do what nodes do when they start."""
    server.command("SET", "im_v2_wsNodes", json.dumps({"v": 1, "by": "mod", "nodes": nodes, "prev": None}))
    for node, url in urls.items():
        server.command("HSET", "im_v2_wsUrls", node, url)


def payloads(subscriber: Subscriber) -> list[Any]:
    return [json.loads(payload) for _, payload in subscriber.drain()]


def test_published_counts_the_nodes_that_were_addressed_and_that_heard(
    make: MakeHelper, redis_server: RedisServer
) -> None:
    helper = make(redis_server.url, nodes=["a", "b"])
    with Subscriber(redis_server, NODE_A), Subscriber(redis_server, NODE_B):
        assert helper.send_message(0, 2, "x") == Published(1, 1, ())
        assert helper.send_message(0, [1, 2, 3], "x") == Published(2, 2, ())
        assert helper.send_chan_message(0, "room", "x") == Published(2, 2, ())
        assert helper.send_broadcast_message("x") == Published(2, 2, ())
        assert helper.force_offline(1) == Published(1, 1, ())


def test_a_node_that_nobody_runs_is_named_and_warned_of_once_a_minute(
    make: MakeHelper, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    helper = make(redis_server.url, nodes=["a", "b"])
    now = 1000.0
    helper.helper._core.notices.clock = lambda: now
    with Subscriber(redis_server, NODE_A), caplog.at_level(logging.WARNING, "freeim"):
        for _ in range(3):
            assert helper.send_broadcast_message("x") == Published(2, 1, ("b",))
        assert [record.getMessage() for record in caplog.records if "nobody hears" in record.getMessage()] == [
            record.getMessage() for record in caplog.records
        ]
        assert len(caplog.records) == 1
        assert "published to b:" in caplog.records[0].getMessage()
        now += 61
        helper.send_broadcast_message("x")
        assert len(caplog.records) == 2


def test_two_processes_under_one_node_name_are_noticed_once_a_minute(
    make: MakeHelper, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    helper = make(redis_server.url, nodes=["a"])
    with (
        Subscriber(redis_server, NODE_A),
        Subscriber(redis_server, NODE_A),
        caplog.at_level(logging.WARNING, "freeim"),
    ):
        for _ in range(3):
            assert helper.send_message(0, 1, "x") == Published(1, 2, ())
    assert len(caplog.records) == 1
    assert "two processes run under one node name" in caplog.records[0].getMessage()


def test_no_receivers_are_no_command_at_all(make: MakeHelper, redis_server: RedisServer) -> None:
    with RecordingRedis(redis_server) as recorder:
        helper = make(recorder.url)  # not even the list of nodes is read
        assert helper.send_message(1, [], "x") == Published(0, 0, ())
        assert helper.send_message(1, (), "x", report_offline=True) == Published(0, 0, (), ())
        assert helper.has_online_many([]) == []
        assert helper.join_chan(1) is None
        assert helper.leave_chan(1) is None
        assert helper.leave_chan_clients("room") is None
        assert helper.run_batch(lambda batch: batch.send_message(1, [], "x")).results == [Published(0, 0, ())]
        assert recorder.take() == []


def test_report_offline_names_the_receivers_without_a_connection_in_their_order(
    make: MakeHelper, redis_server: RedisServer
) -> None:
    redis_server.command("HSET", "im_v2_wsOnline", "3", "1", "4", "2", "5", "0", "6", "junk")
    with RecordingRedis(redis_server) as recorder:
        helper = make(recorder.url, nodes=["a", "b"])
        helper.send_message(0, 1, "first, which reads the nodes")
        recorder.take()
        published = helper.send_message(0, [9, 4, 6, 3, 5, 9, 1], "x", report_offline=True)
        assert published.offline == (9, 6, 5, 1)
        assert [command[0] for command in recorder.take()] == ["PUBLISH", "PUBLISH", "HMGET"]


@pytest.mark.parametrize("sender", [0, None])
def test_the_system_can_send(helper: Any, redis_server: RedisServer, sender: int | None) -> None:
    with Subscriber(redis_server, NODE_A) as node:
        helper.send_message(sender, 1, "x")
        assert json.loads(node.next()[1])["Item1"] == 0


def test_the_system_can_send_to_guids(make: MakeHelper, redis_server: RedisServer) -> None:
    helper = make(redis_server.url, nodes=["a"], ids="guid")
    to = uuid.uuid4()
    with Subscriber(redis_server, "wsim_wsServera") as node:
        for sender in (None, uuid.UUID(int=0), str(uuid.UUID(int=0))):
            helper.send_message(sender, to, "x")
            payload = json.loads(node.next()[1])
            assert payload["Item1"] == "00000000-0000-0000-0000-000000000000"
            assert payload["Item2"] == [str(to)]


def test_guids_are_written_in_lower_case_with_hyphens(make: MakeHelper, redis_server: RedisServer) -> None:
    helper = make(redis_server.url, nodes=["a"], ids="guid")
    one = uuid.uuid4()
    helper.join_chan(str(one).upper(), "room")
    helper.join_chan("{" + one.hex + "}", "room")
    assert helper.get_chan_client_list("room") == [str(one)]
    with Subscriber(redis_server, "wsim_wsServera") as node:
        helper.send_message(None, [one, str(one).upper(), one.hex], "x")
        assert json.loads(node.next()[1])["Item2"] == [str(one)]


def test_a_string_a_dict_a_raw_and_a_megabyte_arrive(helper: Any, redis_server: RedisServer) -> None:
    messages = ["text", {"a": [1, None, "é"]}, Raw('{"raw": 1}'), "中" * 350_000]
    with Subscriber(redis_server, NODE_A) as node:
        for message in messages:
            helper.send_message(1, 2, message)
            text = json.loads(node.next()[1])["Item3"]
            if isinstance(message, Raw):
                assert text == message.text
            else:
                assert json.loads(text) == message


def test_ten_thousand_receivers_are_one_publish_for_each_node(make: MakeHelper, redis_server: RedisServer) -> None:
    with RecordingRedis(redis_server) as recorder:
        helper = make(recorder.url, nodes=["a", "b", "c"])
        receivers = range(1, 10_001)
        published = helper.send_message(0, receivers, "x", report_offline=True)
        assert published.addressed == 3
        assert published.offline == tuple(receivers)
        sent = [json.loads(command[2])["Item2"] for command in recorder.take() if command[0] == "PUBLISH"]
    assert len(sent) == 3
    assert sorted(client_id for group in sent for client_id in group) == list(receivers)


@pytest.mark.parametrize("metadata", [None, "", "ascii", '元数据 "q" \u2028 \ud800 😀'])
def test_metadata_of_every_kind_is_in_the_token(helper: Any, redis_server: RedisServer, metadata: str | None) -> None:
    token = helper.prev_connect_server(7, metadata).partition("token=")[2]
    key = f"im_v2_wsToken{token}"
    assert json.loads(redis_server.command("GET", key)) == {"Item1": 7, "Item2": metadata}
    assert 9_000 < redis_server.command("PTTL", key) <= 10_000


def test_tokens_live_as_long_as_the_option_says(make: MakeHelper, redis_server: RedisServer) -> None:
    for seconds, least, most in ((30, 29_000, 30_000), (0.5, 300, 500)):
        helper = make(redis_server.url, nodes=["a"], token_ttl=seconds)
        token = helper.prev_connect_server(7).partition("token=")[2]
        assert least < redis_server.command("PTTL", f"im_v2_wsToken{token}") <= most


def test_the_names_follow_the_path_and_the_prefix(make: MakeHelper, redis_server: RedisServer) -> None:
    make(redis_server.url, nodes=["a"], path="/x/y").join_chan(1, "room")
    make(redis_server.url, nodes=["a"], prefix="{mine}").join_chan(1, "room")
    assert redis_server.hash("im_v2_x_yListChan") == redis_server.hash("{mine}ListChan") == {"room": "1"}


# -- the list of nodes ------------------------------------------------------------------------------------------


def test_without_a_list_the_registered_one_is_used_with_its_urls(make: MakeHelper, redis_server: RedisServer) -> None:
    register(redis_server, "a", "b", b="wss://im.example.com/b")
    helper = make(redis_server.url)
    assert helper.prev_connect_server(2).startswith("ws://a/ws?token=")
    assert helper.prev_connect_server(3).startswith("wss://im.example.com/b/ws?token=")
    assert helper.send_broadcast_message("x").silent == ("a", "b")


def test_a_list_of_its_own_uses_the_registered_urls_too(make: MakeHelper, redis_server: RedisServer) -> None:
    register(redis_server, "a", a="wss://im.example.com")
    assert make(redis_server.url, nodes=["a"]).prev_connect_server(2).startswith("wss://im.example.com/ws?token=")


def test_nothing_registered_and_nothing_given_says_what_to_do(make: MakeHelper, redis_server: RedisServer) -> None:
    helper = make(redis_server.url)
    for call in (
        lambda: helper.send_broadcast_message("x"),
        lambda: helper.prev_connect_server(1),
        lambda: helper.run_batch(lambda batch: batch.force_offline(1)),
    ):
        with pytest.raises(NoNodes, match="start freeim-server on this Redis") as caught:
            call()
        assert isinstance(caught.value, FreeImError)
    register(redis_server, "a")
    assert helper.send_broadcast_message("x").addressed == 1, "the next call looks again"


@pytest.mark.parametrize("given", [["b"], ["b", "a"], ["a", "b", "c"]])
def test_a_list_that_differs_from_the_registered_one_is_a_mismatch_on_first_use(
    make: MakeHelper, redis_server: RedisServer, given: list[str]
) -> None:
    register(redis_server, "a", "b")
    helper = make(redis_server.url, nodes=given)
    for call in (
        lambda: helper.send_message(0, 1, "x"),
        lambda: helper.prev_connect_server(1),
        lambda: helper.has_online(1),
        lambda: helper.join_chan(1, "room"),
        lambda: helper.run_batch(lambda batch: batch.join_chan(1, "room")),
    ):
        with pytest.raises(NodesMismatch, match="a, b"):
            call()
    assert helper.send_message(0, [], "x") == Published(0, 0, ()), "nothing is asked where there is nothing to do"
    assert redis_server.command("KEYS", "*") == [b"im_v2_wsNodes"]


def test_the_registered_list_is_remembered_for_its_time_and_then_read_again(
    make: MakeHelper, redis_server: RedisServer
) -> None:
    register(redis_server, "a")
    with RecordingRedis(redis_server) as recorder:
        helper = make(recorder.url, node_list_ttl=0.3)
        for _ in range(3):
            helper.send_broadcast_message("x")
        assert [command[0] for command in recorder.take()] == ["GET", "GET", "HGETALL", *["PUBLISH"] * 3]
        register(redis_server, "a", "b")
        eventually = make(recorder.url, node_list_ttl=0.0)
        assert eventually.send_broadcast_message("x").addressed == 2
        time.sleep(0.35)
        assert helper.send_broadcast_message("x").addressed == 2


@pytest.mark.parametrize(
    "value", ["", "{", "[]", '{"by":"mod"}', '{"by":"other","nodes":["a"]}', '{"by":"mod","nodes":[]}']
)
def test_a_registered_list_that_cannot_be_read_is_an_error_of_ours(
    make: MakeHelper, redis_server: RedisServer, value: str
) -> None:
    redis_server.command("SET", "im_v2_wsNodes", value)
    with pytest.raises(FreeImError, match="im_v2_wsNodes"):
        make(redis_server.url).send_broadcast_message("x")


# -- on_send ----------------------------------------------------------------------------------------------------


def test_on_send_is_told_of_everything_that_was_published(make: MakeHelper, redis_server: RedisServer) -> None:
    events: list[SendEvent] = []
    helper = make(redis_server.url, nodes=["a"], on_send=events.append)
    silent = Published(1, 0, ("a",))
    helper.send_message(1, [2, 3, 2], {"a": 1})
    helper.send_chan_message(None, "room", "x")
    helper.send_broadcast_message("x")
    helper.force_offline(5)
    helper.send_message(1, [], "x")
    helper.join_chan(1, "room")
    helper.get_chan_list()
    expected = [
        SendEvent("direct", 1, (2, 3), None, '{"a":1}', silent),
        SendEvent("channel", 0, (), "room", '"x"', silent),
        SendEvent("broadcast", 0, (), None, '"x"', silent),
        SendEvent("force_offline", 0, (5,), None, None, silent),
    ]
    assert events == expected
    events.clear()
    helper.run_batch(lambda batch: (batch.send_message(1, [2, 3], {"a": 1}), batch.has_online(1)))
    assert events == expected[:1]


def test_what_on_send_raises_is_logged_and_goes_no_further(
    make: MakeHelper, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    def on_send(event: SendEvent) -> None:
        raise RuntimeError("mine")

    helper = make(redis_server.url, nodes=["a"], on_send=on_send)
    with Subscriber(redis_server, NODE_A), caplog.at_level(logging.ERROR, "freeim"):
        assert helper.send_message(1, 2, "x") == Published(1, 1, ())
    assert [str(record.exc_info[1]) for record in caplog.records if record.exc_info] == ["mine"]


# -- batches ----------------------------------------------------------------------------------------------------


def test_a_batch_is_one_round_trip_with_the_results_in_the_order_of_the_calls(
    make: MakeHelper, redis_server: RedisServer
) -> None:
    redis_server.command("HSET", "im_v2_wsOnline", "3", "1")
    pending: list[Any] = []

    def fill(batch: Any) -> None:
        pending.extend(
            [
                batch.join_chan(7, "room", "hall"),
                batch.send_message(1, [1, 2], "x", report_offline=True),
                batch.has_online_many([3, 4]),
                batch.send_message(1, [], "x"),
                batch.prev_connect_server(1),
                batch.get_chan_client_list("room"),
                batch.get_chan_list(),
                batch.get_chan_list_by_client_id(7),
                batch.get_chan_online("room"),
                batch.get_client_list_by_online(),
                batch.has_online(3),
                batch.leave_chan(7, "room"),
                batch.leave_chan_clients("hall", 7),
                batch.clear_chan_client("hall"),
                batch.send_chan_message(0, "room", "x"),
                batch.send_broadcast_message("x"),
                batch.force_offline(1),
            ]
        )
        assert len(batch) == 17
        with pytest.raises(RuntimeError, match="not been sent"):
            pending[0].result  # noqa: B018
        with pytest.raises(RuntimeError, match="not been sent"):
            batch.results  # noqa: B018

    helper = make(redis_server.url, nodes=["a", "b"])
    results = helper.run_batch(fill).results
    url = results.pop(4)
    assert url.startswith("ws://b/ws?token=")
    both = Published(2, 0, ("a", "b"))
    assert results == [
        None,
        Published(2, 0, ("b", "a"), (1, 2)),
        [True, False],
        Published(0, 0, ()),
        [7],
        {"room": 1, "hall": 1},
        ["room", "hall"],
        1,
        [3],
        True,
        None,
        None,
        None,
        both,
        both,
        Published(1, 0, ("b",)),
    ]
    assert [one.result for one in pending] == [*results[:4], url, *results[4:]]


def test_an_exception_in_a_batch_sends_nothing(helper: Any, redis_server: RedisServer) -> None:
    kept: list[Any] = []

    def fill(batch: Any) -> None:
        kept.append(batch)
        batch.join_chan(7, "room")
        batch.join_chan(7, "")

    with pytest.raises(ValueError, match="must not be empty"):
        helper.run_batch(fill)
    assert redis_server.command("KEYS", "*") == []
    with pytest.raises(RuntimeError, match="nothing was sent"):
        kept[0].results  # noqa: B018


def test_a_batch_is_used_once_and_inside_its_block(helper: Any) -> None:
    batch = helper.batch()
    with pytest.raises(RuntimeError, match="inside the batch's with block"):
        batch.has_online(1)
    done = helper.run_batch(lambda batch: batch.has_online(1))
    with pytest.raises(RuntimeError, match="inside the batch's with block"):
        done.has_online(1)
    with pytest.raises(RuntimeError, match="used once"):
        done.open()

    def nest(batch: Any) -> None:
        batch.open()

    with pytest.raises(RuntimeError, match="used once"):
        helper.run_batch(nest)


def test_an_empty_batch_does_nothing(make: MakeHelper, redis_server: RedisServer) -> None:
    with RecordingRedis(redis_server) as recorder:
        assert make(recorder.url).run_batch(lambda batch: None).results == []
        assert recorder.take() == []
