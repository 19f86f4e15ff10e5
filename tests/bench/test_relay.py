"""The yardstick behind Redis passes on each message that is published, and the load generator finds no fault in it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bench import tokens
from bench.pacer import Pacer
from bench.processes import BenchError, Crowd
from bench.relay import Relay
from freeim.names import Names
from tests.servers import RedisServer

NAMES = Names("relayed")
CHANNEL = NAMES.server("a")
COUNT = 50


@pytest.fixture
def relay(session_redis_server: RedisServer) -> Iterator[Relay]:
    with Relay(session_redis_server.unix_url, CHANNEL) as relay:
        yield relay


@pytest.fixture
def crowd(relay: Relay) -> Iterator[Crowd]:
    with Crowd(COUNT) as crowd:
        tally = crowd.connect([relay.port], tokens.for_yardstick(COUNT))
        assert (tally.living, tally.refused) == (COUNT, {})
        yield crowd


@pytest.mark.parametrize(("rate", "size"), [(1000, 64), (50_000, 128), (5000, 20_000)])
@pytest.mark.usefixtures("relay")
def test_each_message_goes_to_its_client_once_and_in_order(
    session_redis_server: RedisServer, crowd: Crowd, rate: int, size: int
) -> None:
    with Pacer(session_redis_server.unix_url, NAMES, ["a"]) as pacer:
        crowd.begin(size, 0.0)
        pacer.start(rate, 0.1, range(1, COUNT + 1), 3, size=size)
        sent = pacer.finish()
        tally = crowd.settle(sent.messages)
    assert tally.frames == sent.messages == rate // 10
    assert not +tally.faults
    assert tally.histogram.total() == sent.messages


def test_it_gives_a_password_and_sends_at_times_of_its_own_as_well() -> None:
    with RedisServer(args=("--requirepass", "secret")) as server:
        url = f"redis://:secret@127.0.0.1:{server.port}"
        with Relay(url, CHANNEL) as relay, Crowd(COUNT) as crowd, Pacer(url, NAMES, ["a"]) as pacer:
            crowd.connect([relay.port], tokens.for_yardstick(COUNT))
            crowd.begin(128)
            pacer.start(1000, 0.05, range(1, COUNT + 1), 3)
            assert pacer.finish().messages == 50
            relay.ask("random 100 4 1")
            tally = crowd.settle(150)
    assert tally.frames == 150
    assert not +tally.faults


def test_a_wrong_password_ends_it_with_the_reason(capfd: pytest.CaptureFixture[str]) -> None:
    with RedisServer(args=("--requirepass", "secret")) as server, pytest.raises(BenchError, match="exit code 1"):
        Relay(f"redis://:wrong@127.0.0.1:{server.port}", CHANNEL)
    assert "WRONGPASS" in capfd.readouterr().err


def test_what_is_no_direct_message_ends_it(
    session_redis_server: RedisServer, capfd: pytest.CaptureFixture[str]
) -> None:
    with Relay(session_redis_server.url, CHANNEL) as relay:
        session_redis_server.command("PUBLISH", CHANNEL, "nothing of ours")
        with pytest.raises(BenchError, match="exit code 1"):
            relay.hear()
    assert "no direct message: nothing of ours" in capfd.readouterr().err
