"""Where the metrics are served, and where they are not."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from freeim.config import Options
from freeim.errors import ConfigError
from freeim.node import Node, admin
from freeim.node.metrics import Metrics
from tests.node.harness import Raw, Running, bounded, head, refused, running, told, until
from tests.node.scrape import fetch, scrape
from tests.servers import RedisServer

GET = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"


async def connect(run: Running) -> Raw:
    """Open a plain connection to where the metrics are."""
    address = run.node.options.admin_address
    assert address is not None
    raw = Raw(*await asyncio.open_connection(*address))
    run._raw.append(raw)
    return raw


async def ask(run: Running, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send a request; return status, headers and body of the answer, which ends with the connection."""
    raw = await connect(run)
    raw.send(request)
    status, headers, _ = await raw.response()
    return status, headers, await raw.rest()


async def test_without_an_option_they_are_on_loopback_where_the_banner_says(redis_server: RedisServer) -> None:
    async with running(redis_server) as run:
        address = run.node.options.admin_address
        assert address is not None
        assert address[0] == "127.0.0.1"
        assert address[1] not in (0, run.node.port)
        assert run.node.metrics_url == f"http://127.0.0.1:{address[1]}/metrics"
        assert f"  metrics      {run.node.metrics_url}\n" in run.node.banner()
        assert (await scrape(run))("connections") == 0


@pytest.mark.parametrize("admin_bind", ["127.0.0.1:0", "0.0.0.0:0", "off"])
async def test_they_are_never_on_the_port_of_the_terminals(redis_server: RedisServer, admin_bind: str) -> None:
    async with running(redis_server, admin_bind=admin_bind) as run:
        for method in ("GET", "HEAD", "POST"):
            for target in ("/metrics", "/metrics/", "/metrics?token=x", "/ws/metrics", "//metrics", "/%6detrics"):
                status, _, body = await run.http(f"{method} {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                assert status == 404
                assert b"freeim_" not in body
        assert (await run.http(head("/metrics")))[0] == 404


async def test_off_is_no_port_at_all(redis_server: RedisServer) -> None:
    async with running(redis_server, admin_bind="off") as run:
        assert run.node.metrics_url is None
        assert "  metrics      off\n" in run.node.banner()
        assert run.node._admin is None


async def test_the_answer_is_in_the_form_that_was_asked_for(redis_server: RedisServer) -> None:
    async with running(redis_server) as run:
        url = run.node.metrics_url
        assert url is not None
        _, content_type = await asyncio.to_thread(fetch, url, "*/*")
        assert content_type.startswith("text/plain; version=0.0.4")
        page, content_type = await asyncio.to_thread(fetch, url, "application/openmetrics-text; version=1.0.0")
        assert content_type.startswith("application/openmetrics-text; version=1.0.0")
        names = {family.name for family in text_string_to_metric_families(page.decode())}
        assert names == set((await scrape(run)).families) | {"process_cpu_seconds"}
        assert {name for name in names if not name.startswith(("freeim_", "process_"))} == set()


async def test_head_has_no_body_and_other_requests_are_refused(redis_server: RedisServer) -> None:
    async with running(redis_server) as run:
        status, headers, page = await ask(run, GET)
        assert status == 200
        assert headers["content-length"] == str(len(page))
        assert headers["cache-control"] == "no-store"
        assert (await ask(run, GET.replace(b"GET", b"HEAD")))[::2] == (200, b"")
        assert (await ask(run, GET.replace(b"/metrics", b"/")))[::2] == (404, b"only /metrics is served here\n")
        assert (await ask(run, GET.replace(b"/metrics", b"/ws?token=x")))[0] == 404
        status, headers, _ = await ask(run, GET.replace(b"GET", b"POST"))
        assert (status, headers["allow"]) == (405, "get, head")
        assert (await ask(run, b"\x16\x03\x01\r\n\r\n"))[0] == 400
        long = b"GET /metrics HTTP/1.1\r\nHost: x\r\nX: " + b"x" * admin.MAX_HEAD + b"\r\n\r\n"
        assert (await ask(run, long))[0] == 431


anything = st.binary(max_size=200) | st.binary(max_size=60).map(lambda more: GET[:-2] + b"X: " + more + b"\r\n\r\n")


@given(data=anything)
@example(data=b"")
@example(data=b"GET /metrics HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n")
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_answered_or_end_and_the_next_scrape_is_served(redis_server: RedisServer, data: bytes) -> None:
    async def go() -> None:
        async with running(redis_server) as run:
            raw = await connect(run)
            raw.send(data)
            raw.end()
            with contextlib.suppress(ConnectionResetError):
                answer = await raw.rest()
                assert answer == b"" or answer.startswith(b"HTTP/1.1 ")
            raw.close()
            assert (await ask(run, GET))[0] == 200

    asyncio.run(go())


async def test_who_says_nothing_is_cut_and_no_more_than_a_few_are_heard_at_once(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin, "ANSWER_SECONDS", 0.5)
    async with running(redis_server) as run:
        silent = [await connect(run) for _ in range(admin.MAX_CONNECTIONS)]
        await until(lambda: len(run.node._admin._tasks) == len(silent))  # type: ignore[union-attr]
        one_more = await connect(run)
        with contextlib.suppress(ConnectionResetError):
            assert await one_more.rest() == b""
        assert len(run.node._admin._tasks) == len(silent)  # type: ignore[union-attr]
        for raw in silent:
            with contextlib.suppress(ConnectionResetError):
                assert await raw.rest() == b""
        await until(lambda: not run.node._admin._tasks)  # type: ignore[union-attr]
        assert (await ask(run, GET))[0] == 200


async def test_who_does_not_read_the_answer_is_cut(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin, "ANSWER_SECONDS", 0.5)
    monkeypatch.setattr(Metrics, "page", lambda *_: (b"x" * 50_000_000, "text/plain"))
    async with running(redis_server) as run:
        raw = await connect(run)
        raw.writer.transport.pause_reading()  # type: ignore[attr-defined]
        raw.send(GET)
        await until(lambda: run.node._admin._tasks)  # type: ignore[union-attr]
        await until(lambda: not run.node._admin._tasks)  # type: ignore[union-attr]
        raw.cut()


async def test_an_error_in_a_metric_is_logged_and_answered_with_500_and_harms_nobody(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(redis_server) as run:
        peer = await run.connect(1)
        monkeypatch.setattr(run.node._session, "errors", None)
        assert (await ask(run, GET))[::2] == (500, b"the metrics could not be read; the log says why\n")
        assert told(caplog, logging.ERROR) == ["internal error: the metrics could not be read"]
        monkeypatch.undo()
        assert (await ask(run, GET))[0] == 200
        assert peer.is_open


async def test_an_address_that_is_taken_is_told_before_the_name_is(redis_server: RedisServer) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        node = Node(Options(bind="127.0.0.1:0", admin_bind=address, redis_url=redis_server.url))
        why = await refused(node, ConfigError, "choose another --admin-bind")
    assert why.startswith(f"cannot listen on {address} for the metrics: ")
    assert redis_server.command("KEYS", "*") == []
    async with Node(Options(bind="127.0.0.1:0", admin_bind=address, redis_url=redis_server.url)) as again:
        assert again.metrics_url == f"http://{address}/metrics"


async def test_a_node_that_does_not_start_leaves_no_port_behind(redis_server: RedisServer) -> None:
    async with running(redis_server, admin_bind="off") as run:
        options = Options(bind="127.0.0.1:0", node=run.node.name, nodes=run.node.nodes, redis_url=redis_server.url)
        node = Node(options)
        await refused(node, ConfigError, "a living process already is the node")
        address = node.options.admin_address
        assert address is not None
        with socket.socket() as probe:
            assert probe.connect_ex(address) != 0


async def test_a_stopped_node_waits_for_nobody_who_asks_and_serves_no_more(redis_server: RedisServer) -> None:
    async with running(redis_server) as run:
        silent = await connect(run)
        await until(lambda: run.node._admin._tasks)  # type: ignore[union-attr]
        await bounded(run.node.stop(), 3.0)
        with contextlib.suppress(ConnectionResetError):
            assert await silent.rest() == b""
        with pytest.raises(OSError):  # noqa: PT011 - refused, or reset
            await connect(run)
