"""Last ids that are foreign, forged or no ids at all: they keep nobody out, and give nobody what is not theirs."""

from __future__ import annotations

import asyncio
import json
from urllib.parse import quote

import pytest
import uvloop
from hypothesis import example, given, settings
from hypothesis import strategies as st

from freeim.node.http import Request
from freeim.node.resume import LastId, resume_of
from tests.node.harness import direct, head, running, until
from tests.node.resuming import WINDOW, Resumer, announcement, online, results, resumer
from tests.servers import RedisServer

LOG = "0123456789abcdef"
numbers = st.integers(0, 10**18 - 1)


def query(text: str) -> Request:
    return Request("GET", "/ws", text, (1, 1), {})


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("token=t", None),
        ("token=t&resumes=x&aresume=x", None),
        ("token=t&resume=", ""),
        ("token=t&resume", ""),
        ("resume=a-1&token=t", "a-1"),
        ("token=t&resume=a%2D1", "a-1"),
        ("resume=&token=t&resume=a-1", ""),
        ("resume=%ff", "\ufffd"),
    ],
)
def test_the_first_parameter_of_that_name_is_what_a_terminal_asks(text: str, asked: str | None) -> None:
    assert resume_of(query(text)) == asked


@given(st.text())
def test_any_text_in_a_query_is_read_as_it_was_meant(text: str) -> None:
    encodable = text.encode("utf-8", "replace").decode()
    assert resume_of(query(f"token=t&resume={quote(encodable, safe='')}")) == encodable


@given(serial=numbers, number=numbers)
def test_an_id_is_read_as_it_is_written(serial: int, number: int) -> None:
    last_id = LastId(LOG, serial, number)
    assert LastId.parse(str(last_id)) == last_id


@given(st.text() | st.text("0123456789abcdef.-", max_size=40) | st.from_regex(r"[0-9a-f]{15,17}\.\d+-\d+\s?"))
@example(f"{LOG}.1-1\n")
@example(f"{LOG}.1-٣")
@example(f"{LOG.upper()}.1-1")
@example(f"{LOG}.1-{'9' * 5000}")
@example(f"{LOG}.-1-1")
def test_what_is_read_as_an_id_is_bounded_and_of_its_form(text: str) -> None:
    last_id = LastId.parse(text)
    if last_id is not None:
        assert len(text) <= 54
        assert text.isascii()
        assert LastId.parse(str(last_id)) == last_id


asked = st.lists(
    st.text(st.characters(codec="utf-8"), max_size=2000).map(lambda text: quote(text, safe=""))
    | st.binary(max_size=60).map(lambda data: "".join(f"%{byte:02x}" for byte in data))
    | st.builds("{}.{}-{}".format, st.sampled_from(["OWN", LOG]), st.integers(-1, 9), st.integers(-1, 10**19)),
    min_size=1,
    max_size=8,
)


@given(asked)
@example(["", "OWN.1-1", "OWN.1-4", "OWN.1-99", "OWN.9-1"])
@settings(max_examples=25, deadline=None)
def test_whatever_is_asked_for_everybody_gets_in_and_only_what_is_its_own(
    session_redis_server: RedisServer, asked: list[str]
) -> None:
    async def check() -> None:
        async with running(session_redis_server, **WINDOW) as run:
            tab = await resumer(run, 1)
            own = tab.last_id.partition(".")[0]
            sent = []
            for turn, each in enumerate(asked):
                for number in range(2):
                    run.publish(direct([2], "for another"))
                    run.publish(direct([1], f"{each[:9]} {number}"))
                    sent.append(json.dumps(f"{each[:9]} {number}"))
                await run.heard_all()
                raw = await run.raw()
                raw.send(head(f"/ws?token={run.token(1)}&resume={each.replace('OWN', own)}"))
                assert (await raw.response())[0] == 101
                said = announcement((await raw.frame())[1].decode())
                run.publish(direct([1], f"end {turn}"))
                got: list[str] = []
                while (text := (await raw.frame())[1].decode()) != f'"end {turn}"':
                    got.append(text)
                assert got == ([] if said["missed"] or not each else sent[len(sent) - len(got) :])
                sent.append(text)
                raw.cut()

    session_redis_server.flush()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(check())


async def test_the_id_of_another_client_is_unknown(redis_server: RedisServer) -> None:
    async with running(redis_server, **WINDOW) as run, run.events() as events:
        victim = await (await resumer(run, 1)).lose()
        run.publish(direct([1], "secret"))
        tab = await resumer(run, 2)
        run.publish(direct([2], "own"))
        assert await tab.fence() == ['"own"']
        thief = Resumer(run, 2)
        await thief.connect(victim.last_id)
        assert thief.missed is True
        assert await thief.fence() == []
        assert results(run) == {"unknown": 1}
        expected = [online(run, 1, 1), online(run, 2, 1), online(run, 2, 2)]
        assert await events.heard() == expected, "and the victim is where it was"
        await victim.connect()
        assert await victim.fence() == ['"secret"']


async def test_an_id_that_was_used_once_works_again_and_ends_nothing_more(redis_server: RedisServer) -> None:
    async with running(redis_server, **WINDOW) as run:
        first, second = await resumer(run, 1), await resumer(run, 1)
        last_id = first.last_id
        await first.lose()
        await second.lose()
        run.publish(direct([1], "a"))
        await first.connect(last_id)
        duplicate = Resumer(run, 1)
        await duplicate.connect(last_id)
        assert await first.fence() == await duplicate.fence() == ['"a"']
        assert run.node._connections.resume.away == 1
        await until(lambda: run.online == {"1": "3"}, "two there and one away")


async def test_an_id_of_what_has_not_been_sent_yet_is_unknown(redis_server: RedisServer) -> None:
    async with running(redis_server, **WINDOW) as run:
        terminal = await resumer(run, 1)
        log, _, _ = terminal.last_id.partition(".")
        for forged in (f"{log}.1-1", f"{log}.2-0", f"{log}.9-0"):
            tab = Resumer(run, 1)
            await tab.connect(forged)
            assert tab.missed is (forged != f"{log}.2-0"), forged
            await tab.peer.close(4000)
        assert results(run) == {"unknown": 2, "resumed": 1}
        assert terminal.peer.is_open
