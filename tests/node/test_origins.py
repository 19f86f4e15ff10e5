"""The list of origins: a page of another site is refused before its token is looked at."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freeim.config import Options
from freeim.errors import ConfigError
from freeim.origins import Origins
from tests.node.harness import Running, head, running, told
from tests.servers import RedisServer

LISTED = ("https://app.example.com", "https://*.example.org", "http://localhost:8000", "capacitor://localhost", "null")


async def status_from(run: Running, token: str, *lines: str) -> int:
    raw = await run.raw()
    raw.send(head(f"/ws?token={token}", *lines))
    return (await raw.response())[0]


async def test_a_page_of_another_origin_is_refused_and_the_token_stays_good(redis_server: RedisServer) -> None:
    async with running(redis_server, origins=("https://app.example.com",)) as run:
        token = run.token(1)
        assert await status_from(run, token, "Origin: https://evil.example") == 403
        assert await status_from(run, "unknown", "Origin: https://evil.example") == 403, "it tells nothing of tokens"
        assert await status_from(run, token, "Origin: https://app.example.com") == 101
        assert await status_from(run, run.token(2)) == 101, "a client without the header is no browser"


async def test_the_log_says_which_origin_was_refused_for_who_must_list_it(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with running(redis_server, origins=("https://a.example",)) as run:
        for origin in ("https://b.example:8443", "null", "https://b.example/path", "https://" + "b" * 100):
            assert (await run.http(head("/ws", f"Origin: {origin}")))[0] == 403
    assert [line for line in told(caplog, logging.DEBUG) if "origin" in line and "refused" not in line] == [
        "the origin https://b.example:8443 is not in --origins",
        "the origin null is not in --origins",
        "the origin of the request is not in --origins",
        "the origin of the request is not in --origins",
    ]


async def test_the_check_of_the_origin_comes_after_426_and_before_the_limits(redis_server: RedisServer) -> None:
    async with running(redis_server, origins=("https://a.example",), max_connections=1) as run:
        await run.connect(1)
        evil = "Origin: https://evil.example"
        assert (await run.http(head("/other", evil)))[0] == 404
        assert (await run.http(head("/ws", evil, Upgrade=None)))[0] == 426
        assert (await run.http(head("/ws", evil)))[0] == 403
        assert (await run.http(head("/ws")))[0] == 503


async def test_without_a_list_every_origin_is_let_in(redis_server: RedisServer) -> None:
    async with running(redis_server) as run:
        assert await status_from(run, run.token(1), "Origin: https://evil.example") == 101


@pytest.mark.parametrize(
    "origin",
    [
        *("https://app.example.com", "HTTPS://APP.example.com", "https://app.example.com:443"),
        *("https://a.example.org", "https://a.b.example.org", "http://localhost:8000", "capacitor://localhost", "null"),
    ],
)
def test_an_origin_of_the_list_is_known_however_it_is_written(origin: str) -> None:
    assert Origins(LISTED).allow(origin)


@pytest.mark.parametrize(
    "origin",
    [
        *("", "https://", "app.example.com", "http://app.example.com", "https://app.example.com:8443", "NULL"),
        *(
            "https://app.example.com.evil.example",
            "https://evilexample.org",
            "https://example.org",
            "https://.example.org",
        ),
        *("https://example.org.", "http://localhost", "http://localhost:80001", "https://*.example.org"),
        *("https://app.example.com/", "https://app.example.com, https://evil.example", "https://u@app.example.com"),
        *("https://a.example.org.evil.example", "https://a.example.orgs"),
        *("https://evil.example/.example.org", "https://evil.example?.example.org", "https://a.example.org\x00"),
    ],
)
def test_anything_else_is_not(origin: str) -> None:
    assert not Origins(LISTED).allow(origin)
    assert not Origins(LISTED[:4]).allow("null")


@given(st.text(max_size=30) | st.from_regex(r"[a-z*.:/]{0,30}", fullmatch=True))
def test_no_text_is_let_in_that_does_not_end_as_the_list_does(origin: str) -> None:
    if Origins(("https://*.example.org",)).allow(origin):
        assert origin.lower().startswith("https://")
        assert origin.lower().removesuffix(":443").endswith(".example.org")


@pytest.mark.parametrize(
    "entry",
    ["", "*", "app.example.com", "https://a/", "https://a b", "https://*", "https://a.*.b", "https://[::1", "a,b"],
)
def test_an_entry_that_is_no_origin_is_refused_with_examples(entry: str) -> None:
    with pytest.raises(ConfigError, match=r"^origins must hold origins such as https://app\.example\.com"):
        Options(origins=(entry,))
