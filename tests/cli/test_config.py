"""The options themselves: what is refused, and what each worker gets."""

from __future__ import annotations

import dataclasses
import socket
from pathlib import Path
from typing import Any

import pytest

from freeim.config import GROUPS, OPTIONS, Options
from freeim.errors import ConfigError
from freeim.redis_url import RedisAddress, mask_redis_url, parse_redis_url

HOST = socket.gethostname()

NOT_HOST_AND_PORT = (
    *("", "6001", ":6001", "127.0.0.1", "127.0.0.1:", "127.0.0.1:x", "h:65536", "h:-1", "h:٣", "::1:6001", "[::1]"),
    *("[x]:1", "h /:1", "ws://h:1", "h\n:1", "[::1:1", "a]:1"),
)
NOT_REDIS_URLS = (
    *("", "h:6379", "http://h", "redis://", "redis://:6379", "redis://h:0", "redis://h:x", "redis://h:70000"),
    *("redis+sentinel://h", "redis+sentinel:///m", "redis+sentinel://a,,b/m", "redis+sentinel://a:x/m"),
    *("redis+sentinel://a:0/m", "redis+sentinel://a/m/x", "redis+sentinel://a/m?db=1", "redis+sentinel://[::1/m"),
    *("redis://h/x", "redis://h?db=x", "redis://h?timeout=1", "redis://h#1", "redis://[::1", "unix://run/s", "unix://"),
)


def refused(**values: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        Options(**values)
    assert all(name in OPTIONS for name in caught.value.fields)
    return str(caught.value)


def test_the_defaults_are_those_that_are_promised() -> None:
    assert dataclasses.asdict(Options()) == {
        "bind": "127.0.0.1:6001",
        "node": None,
        "nodes": (),
        "public_url": None,
        "admin_bind": "127.0.0.1:0",
        "redis_url": None,
        "embedded": False,
        "redis_password_file": None,
        "bus": "pubsub",
        "stream_length": 100_000,
        "stream_grace": 30.0,
        "prefix": None,
        "path": "/ws",
        "ids": "int",
        "workers": 1,
        "drain": 0.0,
        "handover": None,
        "takeover": False,
        "replace_nodes": False,
        "log_level": "info",
        "log_format": "text",
        "tls_cert": None,
        "tls_key": None,
        "trusted_proxies": (),
        "origins": (),
        "max_connections": 0,
        "max_per_client": 0,
        "per_client_policy": "reject",
        "max_per_address": 0,
        "handshakes_per_address": 0,
        "backlog": 4096,
        "ping_interval": 25.0,
        "ping_timeout": 10.0,
        "handshake_timeout": 5.0,
        "close_timeout": 5.0,
        "max_head": 8192,
        "max_inbound": 4096,
        "inbound_rate": 65536,
        "send_buffer": 65536,
        "queue_limit": 1024 * 1024,
        "node_queue_limit": 256 * 1024 * 1024,
        "bus_queue_limit": 256 * 1024 * 1024,
        "resume_window": 0.0,
        "resume_buffer": 512 * 1024,
        "node_resume_buffer": 256 * 1024 * 1024,
    }


def test_every_option_has_a_group_and_a_help_that_ends_as_a_sentence() -> None:
    for option in OPTIONS.values():
        assert option.group in GROUPS
        assert option.help.endswith(".")
        assert option.kind in ("bool", "choice") or option.metavar


@pytest.mark.parametrize(
    ("bind", "address"),
    [
        ("127.0.0.1:6001", ("127.0.0.1", 6001)),
        ("[::1]:6001", ("::1", 6001)),
        ("[::]:0", ("::", 0)),
        ("im.example.com:65535", ("im.example.com", 65535)),
    ],
)
def test_the_bind_address_is_host_and_port(bind: str, address: tuple[str, int]) -> None:
    assert Options(bind=bind).address == address


@pytest.mark.parametrize(
    "bind",
    NOT_HOST_AND_PORT,
)
def test_a_bind_address_of_another_form_is_refused(bind: str) -> None:
    assert refused(bind=bind).startswith("bind must be HOST:PORT")


@pytest.mark.parametrize("text", [*NOT_HOST_AND_PORT, "OFF", "on"])
def test_an_address_for_the_metrics_of_another_form_is_refused(text: str) -> None:
    assert (
        refused(admin_bind=text) == f"admin_bind must be HOST:PORT (127.0.0.1:7001, [::1]:7001) or 'off', not {text!r}"
    )


def test_each_worker_serves_its_metrics_on_a_port_of_its_own() -> None:
    options = Options(workers=3, admin_bind="[::1]:9101")
    assert [options.for_worker(index).admin_bind for index in range(3)] == ["[::1]:9101", "[::1]:9102", "[::1]:9103"]
    for same in ("127.0.0.1:0", "off"):
        options = Options(workers=2, admin_bind=same)
        assert [options.for_worker(index).admin_bind for index in range(2)] == [same, same]
    assert Options(admin_bind="off").admin_address is None


@pytest.mark.parametrize(("admin", "workers"), [(6001, 1), (6001, 4), (6004, 4), (5998, 4)])
def test_ports_of_metrics_that_overlap_those_of_terminals_are_refused(admin: int, workers: int) -> None:
    for host in ("127.0.0.1", "10.0.0.5", "0.0.0.0"):
        said = refused(admin_bind=f"{host}:{admin}", workers=workers)
        assert f"on port {admin}" in said
        assert "choose another port for admin_bind" in said
    for apart in (admin + 4, admin - 4):
        if abs(apart - 6001) >= workers:
            Options(admin_bind=f"127.0.0.1:{apart}", workers=workers)


def test_ports_of_metrics_beyond_the_last_port_are_refused() -> None:
    assert "would go beyond port 65535" in refused(admin_bind="127.0.0.1:65533", workers=4)
    assert Options(admin_bind="127.0.0.1:65532", workers=4).for_worker(3).admin_bind == "127.0.0.1:65535"


def test_what_is_kept_for_a_terminal_must_fit_into_its_queue() -> None:
    assert refused(resume_window=60.0, resume_buffer=300_001, queue_limit=300_000) == (
        "resume_buffer (300001 bytes) must not be more than queue_limit (300000 bytes): all that is kept may wait for "
        "a terminal that has just come back"
    )
    Options(resume_window=60.0, resume_buffer=300_000, queue_limit=300_000)
    Options(queue_limit=300_000)


@pytest.mark.parametrize("node", ["", "a b", "a,b", "a\n", "a\x00", "{host}", "{", "a}", "{index"])
def test_a_node_name_with_spaces_commas_controls_or_unknown_braces_is_refused(node: str) -> None:
    assert refused(node=node).startswith("node m")


@pytest.mark.parametrize("node", ["0.0.0.0:6001", "0.0.0.0", "[::]:6001", "[::]", "::"])
def test_a_wildcard_address_is_no_node_name(node: str) -> None:
    assert "must not be a wildcard address" in refused(node=node)
    assert "must not be a wildcard address" in refused(nodes=("127.0.0.1:6001", node))


def test_a_node_that_is_not_in_the_list_of_nodes_is_refused_and_both_are_shown() -> None:
    said = refused(nodes=("a:1", "b:1"))
    assert "'127.0.0.1:6001'" in said
    assert "(a:1, b:1)" in said
    said = refused(node="n{index}", nodes=("n0", "n2"), workers=2)
    assert "'n1'" in said


@pytest.mark.parametrize("nodes", [("a", "a"), ("",), ("a b",), ("a,b",), "a", ["a"], (1,)])
def test_a_list_of_nodes_with_repeated_or_impossible_names_is_refused(nodes: Any) -> None:
    assert refused(nodes=nodes, node="a").startswith("nodes ")


@pytest.mark.parametrize(
    "url", ["", "im.example.com", "http://h", "ws://", "ws:///n", "ws://u@h", "ws://h:x", "ws://h h"]
)
def test_a_public_url_that_is_no_websocket_base_is_refused(url: str) -> None:
    assert "must be a base such as wss://im.example.com/n1" in refused(public_url=url)


@pytest.mark.parametrize("url", ["ws://h/?a=1", "ws://h/a?", "ws://h#x", "ws://h/", "wss://h/n/", "ws://h/{x}"])
def test_a_public_url_with_a_query_a_fragment_a_last_slash_or_unknown_braces_is_refused(url: str) -> None:
    assert refused(public_url=url).startswith("public_url m")


@pytest.mark.parametrize("path", ["", "ws", "/ws?", "/ws#", "/w s", "/é", "/ws\n", "/health", "/ready"])
def test_an_impossible_path_is_refused(path: str) -> None:
    assert refused(path=path).startswith("path must")


@pytest.mark.parametrize("prefix", ["", "a b", "a\n"])
def test_an_impossible_prefix_is_refused(prefix: str) -> None:
    assert refused(prefix=prefix).startswith("prefix must")


@pytest.mark.parametrize("option", [option for option in OPTIONS.values() if option.kind in ("int", "float")])
def test_each_number_is_refused_beyond_its_range_and_of_another_type(option: Any) -> None:
    for wrong in (option.minimum - 1, option.maximum * 2 + 1, "1", None, True, float("nan")):
        assert refused(**{option.name: wrong}).startswith(f"{option.name} must be a ")


def test_workers_must_fit_below_the_last_port_and_cannot_share_port_zero() -> None:
    assert Options(bind="h:65534", workers=2).for_worker(1).bind == "h:65535"
    assert "beyond port 65535" in refused(bind="h:65534", workers=3)
    assert "port 0" in refused(bind="h:0", workers=2)


def test_workers_cannot_share_a_name_or_a_public_url() -> None:
    assert "2 workers would share the name 'n'" in refused(node="n", workers=2)
    assert "2 workers would share the URL 'ws://h'" in refused(public_url="ws://h", workers=2)


def test_each_worker_gets_its_port_name_and_url_and_the_list_of_all() -> None:
    options = Options(bind="0.0.0.0:7000", node="{hostname}-{index}", public_url="wss://h/{port}/{index}", workers=3)
    worker = options.for_worker(2)
    assert (worker.bind, worker.node, worker.public_url) == ("0.0.0.0:7002", f"{HOST}-2", "wss://h/7002/2")
    assert worker.nodes == (f"{HOST}-0", f"{HOST}-1", f"{HOST}-2")
    assert worker.workers == 1


def test_a_given_list_of_nodes_is_kept_as_it_is() -> None:
    nodes = ("127.0.0.1:6002", "other:1", "127.0.0.1:6001")
    assert Options(nodes=nodes, workers=2).for_worker(1).nodes == nodes


def test_a_single_node_has_index_zero_and_no_list_of_its_own() -> None:
    worker = Options(node="n{index}").for_worker()
    assert (worker.node, worker.nodes) == ("n0", ())
    assert worker.for_worker() == worker


@pytest.mark.parametrize(
    ("bind", "name"),
    [
        ("127.0.0.1:6001", "127.0.0.1:6001"),
        ("[::1]:6001", "[::1]:6001"),
        ("0.0.0.0:6001", f"{HOST}:6001"),
        ("[::]:6001", f"{HOST}:6001"),
    ],
)
def test_without_a_name_a_node_is_called_after_its_address_or_its_host(bind: str, name: str) -> None:
    assert Options(bind=bind).for_worker().node == name


def test_with_port_zero_the_name_and_the_url_wait_for_the_port() -> None:
    options = Options(bind="0.0.0.0:0", public_url="ws://h:{port}").for_worker()
    assert (options.node, options.public_url) == (None, "ws://h:{port}")
    known = options.for_worker(port=4711)
    assert (known.bind, known.node, known.public_url) == ("0.0.0.0:4711", f"{HOST}:4711", "ws://h:4711")
    named = Options(bind="127.0.0.1:0", node="n", public_url="ws://h").for_worker()
    assert (named.node, named.public_url) == ("n", "ws://h")


def test_with_port_zero_the_list_of_nodes_is_checked_when_the_port_is_known() -> None:
    options = Options(bind="127.0.0.1:0", nodes=("127.0.0.1:4711",))
    assert options.for_worker(port=4711).node == "127.0.0.1:4711"
    with pytest.raises(ConfigError, match="is not in the list of nodes"):
        options.for_worker(port=4712)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://h", RedisAddress(False, "h", 6379, None, None, None, 0)),
        ("redis://h:1/", RedisAddress(False, "h", 1, None, None, None, 0)),
        ("redis://:p%40%2F@h:1/2", RedisAddress(False, "h", 1, None, None, "p@/", 2)),
        ("rediss://u:p@[::1]:1?db=3", RedisAddress(True, "::1", 1, None, "u", "p", 3)),
        ("unix:///run/r%20s?db=4", RedisAddress(False, "", 0, "/run/r s", None, None, 4)),
        ("unix://u:p@/run/s", RedisAddress(False, "", 0, "/run/s", "u", "p", 0)),
        (
            "redis+sentinel://a,b:1,[::1]:2/m",
            RedisAddress(False, "", 0, None, None, None, 0, (("a", 26379), ("b", 1), ("::1", 2)), "m"),
        ),
        (
            "rediss+sentinel://u:p%2C%40@a/m%2F/3?sentinel_username=s&sentinel_password=q%26",
            RedisAddress(True, "", 0, None, "u", "p,@", 3, (("a", 26379),), "m/", "s", "q&"),
        ),
    ],
)
def test_a_redis_url_says_where_who_and_which_database(url: str, address: RedisAddress) -> None:
    assert parse_redis_url(url) == address
    assert Options(redis_url=url).redis_url == url


@pytest.mark.parametrize(
    "url",
    NOT_REDIS_URLS,
)
def test_a_redis_url_of_another_form_is_refused(url: str) -> None:
    assert refused(redis_url=url).startswith(f"redis_url {url!r} is not usable: ")


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("redis://h:1/2", "redis://h:1/2"),
        ("redis://u:p@h", "redis://u:***@h"),
        ("redis://:p@q/r@h:1", "redis://:***@h:1"),
        ("unix://u:p@/s", "unix://u:***@/s"),
        (
            "redis+sentinel://u:p@a:1,b:2/m?sentinel_password=q",
            "redis+sentinel://u:***@a:1,b:2/m?sentinel_password=***",
        ),
    ],
)
def test_a_password_is_masked_in_well_and_badly_formed_urls(url: str, masked: str) -> None:
    assert mask_redis_url(url) == masked


@pytest.mark.parametrize(
    ("url", "full"),
    [
        ("redis://h:1/2", "redis://:p%40%2F%3A%20@h:1/2"),
        ("rediss://u@h", "rediss://u:p%40%2F%3A%20@h"),
        ("unix:///s?db=1", "unix://:p%40%2F%3A%20@/s?db=1"),
        ("redis+sentinel://u@a,b/m", "redis+sentinel://u:p%40%2F%3A%20@a,b/m"),
    ],
)
def test_the_password_of_a_file_goes_into_the_url_without_its_line_end(url: str, full: str, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("p@/: \n", encoding="utf-8")
    made = Options(redis_url=url, redis_password_file=str(file)).redis_url_with_password()
    assert made == full
    assert parse_redis_url(made).password == "p@/: "


def test_a_password_file_that_is_missing_or_empty_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "password"
    options = Options(redis_url="redis://h", redis_password_file=str(file))
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        options.redis_url_with_password()
    file.write_text("\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="is empty"):
        options.redis_url_with_password()
    file.write_bytes(b"\xff\n")
    with pytest.raises(ConfigError, match="not UTF-8"):
        options.redis_url_with_password()


def test_a_password_file_without_a_redis_to_use_it_for_is_refused() -> None:
    with pytest.raises(ConfigError, match="no redis_url; name the Redis that it is for"):
        Options(redis_password_file="/f").for_embedded()


def test_a_password_in_the_url_and_one_in_a_file_contradict_each_other() -> None:
    assert "keep one of them" in refused(redis_url="redis://:p@h", redis_password_file="/f")
