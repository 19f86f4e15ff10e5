"""New options while a node serves: what is taken, what is kept, and that a mistake changes nothing."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freeim import reload as reload_module
from freeim.config import OPTIONS, Options
from freeim.config_load import load
from freeim.config_reload import merge
from freeim.errors import ConfigError
from freeim.node.node import Node
from freeim.reload import Sources, reload_node
from tests.certificates import Certificates
from tests.node.harness import Running, frame, running, told, until
from tests.node.scrape import scrape
from tests.node.test_reload import RELOADABLE, reloaded
from tests.node.test_tls import secure
from tests.servers import RedisServer

SAMPLES: dict[str, Any] = {
    "bind": "127.0.0.1:7001",
    "node": "n",
    "nodes": ("127.0.0.1:6001", "m"),
    "public_url": "ws://h",
}
SAMPLES |= {"admin_bind": "off", "redis_url": "redis://other", "embedded": False, "prefix": "p", "path": "/other"}
SAMPLES |= {"bus": "stream", "stream_length": 7, "stream_grace": 7.0}
SAMPLES |= {"handover": "/run/freeim/{index}"}


@pytest.mark.parametrize("name", [name for name in OPTIONS if name not in RELOADABLE])
def test_an_option_that_cannot_change_keeps_its_value_and_is_named(name: str) -> None:
    old = Options(embedded=name == "embedded", workers=2)
    other: dict[str, Any] = {"ids": "guid", "workers": 3, "takeover": True, "replace_nodes": True, **SAMPLES}
    other |= {"resume_window": 60.0, "resume_buffer": 1000, "node_resume_buffer": 100_000}
    values = {name: other[name], **({"nodes": ("127.0.0.1:6001", "127.0.0.1:6002", "m")} if name == "nodes" else {})}
    if name == "node":
        values["node"] = "n{index}"
    if name == "public_url":
        values["public_url"] = "ws://h{index}"
    new = replace(old, **values, origins=("https://a",))
    change = merge(old, new)
    assert change.changed == ("origins",)
    assert change.kept == (name,)
    assert change.options == replace(old, origins=("https://a",))


@pytest.mark.parametrize(
    ("old", "new", "kept"),
    [
        ({}, {"tls_cert": "c", "tls_key": "k"}, ("tls_cert", "tls_key")),
        ({"tls_cert": "c", "tls_key": "k"}, {}, ("tls_cert", "tls_key")),
        (
            {"redis_url": "redis://:p@a"},
            {"redis_url": "redis://a", "redis_password_file": "f"},
            ("redis_url", "redis_password_file"),
        ),
        ({"send_buffer": 1}, {"send_buffer": 0}, ("send_buffer",)),
    ],
)
def test_what_depends_on_an_option_that_cannot_change_stays_with_it(
    old: dict[str, Any], new: dict[str, Any], kept: tuple[str, ...]
) -> None:
    assert merge(Options(**old), Options(**new)) == (Options(**old), (), kept)


async def test_options_that_contradict_files_that_are_missing_and_a_node_that_ended_change_nothing(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    async with running(redis_server, **Certificates(tmp_path).options) as run:
        before, context = run.node.options, run.node._acceptor.gate._context  # type: ignore[union-attr]
        with pytest.raises(ConfigError, match="tls_cert '/nowhere' cannot be read"):
            run.node.reload(replace(run.options, tls_cert="/nowhere", origins=("https://a",), queue_limit=7))
        assert run.node.options is before
        assert run.node._connections.options is before
        assert run.node._connections.fanout.queue_limit == before.queue_limit
        assert run.node._acceptor.gate._context is context  # type: ignore[union-attr]
        assert run.node.reloads == {"ok": 0, "error": 1}
        run.node.reload()
        assert (await scrape(run)).labelled("reloads_total") == {("ok",): 1, ("error",): 1}
    with pytest.raises(RuntimeError, match="serves"):
        run.node.reload()


GOOD = ["origins = ['https://a']", "queue_limit = 5\nping_interval = 30", "", "max_per_address = 3\nmax_head = 600"]
GOOD += ["max_connections = 9\npath = '/other'", "trusted_proxies = ['10.0.0.0/8']\ninbound_rate = 0"]
BAD = ["no toml", "unknown = 1", "queue_limit = 0", "ping_timeout = 60\nqueue_limit = 9", "tls_key = 'k'"]
BAD += ["origins = ['https://a']\ntls_cert = 5", "tls_cert = '/nowhere'", "workers = 'x'", "max_head = true"]
BAD += ["tls_cert = '{cert}'", "redis_url = 'redis://h'\nredis_password_file = '/nowhere'", "bind = '0.0.0.0'"]


async def test_after_any_order_of_good_and_bad_options_the_last_good_ones_are_in_force(
    redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reload_module, "configure", lambda *_: None)
    certificates = Certificates(tmp_path)
    file = tmp_path / "node.toml"
    argv = ["--config", str(file)]

    def write(text: str) -> None:
        lines = [text.format(cert=certificates.cert)]
        for name, value in {"bind": "127.0.0.1:0", "redis_url": redis_server.url, **certificates.options}.items():
            if not ("tls_" in text and name.startswith("tls_")) and f"{name} =" not in text:
                lines.append(f"{name} = '{value}'")
        file.write_text("\n".join(lines))

    write("")
    start, _ = load(argv, {})
    run = Running(redis_server)
    run.options, run.node = start, Node(start)
    async with run:
        node, peer = run.node, await secure(run, certificates, 1)
        sources = Sources(argv, {}, start)

        @settings(deadline=None, max_examples=60)
        @given(st.lists(st.sampled_from(["missing", *GOOD, *BAD, "bad key"]), max_size=8))
        def play(texts: list[str]) -> None:
            write("")
            reload_node(node, sources.read_again, "")
            last = start
            key = certificates.key.read_bytes()
            for text in texts:
                before = node.reloads.copy()
                if text == "missing":
                    file.unlink(missing_ok=True)
                elif text == "bad key":
                    certificates.key.write_bytes(b"no key")
                    write("")
                else:
                    write(text)
                reload_node(node, sources.read_again, "")
                certificates.key.write_bytes(key)
                good = text in GOOD
                if good:
                    last = load(argv, {})[0]
                assert node.reloads - before == {"ok" if good else "error": 1}, text
                in_force = {name: getattr(node.options, name) for name in RELOADABLE}
                assert in_force == {name: getattr(last, name) for name in RELOADABLE}
                assert node.options.path == "/ws"
                fanout = node._connections.fanout
                assert (fanout.queue_limit, fanout.node_queue_limit) == (last.queue_limit, last.node_queue_limit)

        play()
        assert await peer.fence() == []


def test_what_takes_a_restart_keeps_the_value_of_the_last_reload(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    argv = ["--config", str(file), "--redis-url", "redis://h"]
    sources = Sources(argv, {}, Options(redis_url="redis://h"))
    for text, send_buffer in (("send_buffer = 3000", 3000), ("send_buffer = 0", 3000), ("send_buffer = 4000", 4000)):
        file.write_text(text)
        assert sources.read_again().send_buffer == send_buffer


def test_the_embedded_redis_of_the_start_is_no_change(caplog: pytest.LogCaptureFixture) -> None:
    sources = Sources([], {}, Options().for_embedded())
    assert sources.read_again() == Options(embedded=True)
    assert caplog.messages == []


async def test_a_new_limit_beyond_the_descriptors_is_told(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(redis_server) as run:
        for _ in range(2):
            run.node.reload(replace(run.options, max_connections=2**31 - 1))
        assert len([line for line in told(caplog) if "--max-connections is 2147483647" in line]) == 1


async def test_a_reload_of_ping_times_pings_each_terminal_once_an_interval_still_spread(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with running(redis_server, ping_interval=3600, ping_timeout=1) as run:
        raws = [await run.raw_client(client) for client in range(1, 6)]
        for _ in range(3):
            reloaded(run, ping_interval=2)
            reloaded(run, ping_interval=1)
        pings = [0] * len(raws)

        async def answer(number: int) -> None:
            while True:
                assert await raws[number].frame() == (9, b"")
                pings[number] += 1
                raws[number].send(frame(10))

        answering = [asyncio.ensure_future(answer(number)) for number in range(len(raws))]
        await asyncio.sleep(3.5)
        for each in answering:
            each.cancel()
        await asyncio.gather(*answering, return_exceptions=True)
        assert all(2 <= count <= 4 for count in pings), pings
        for raw in raws:
            raw.close()
        await until(lambda: run.node._connections.accepted == 0)
        assert not any(run.node._connections.clockwork._pings._slots), "who is gone is pinged no more"
