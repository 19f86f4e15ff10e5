"""A token: random, used once, for as long as the helper says."""

from __future__ import annotations

import asyncio
import math

import pytest
from websockets.exceptions import InvalidStatus

from freeim import AsyncImHelper
from freeim.names import new_token
from tests.node.harness import Running
from tests.servers import RedisServer

BITS = 512


def test_each_of_the_512_bits_of_a_token_is_as_often_set_as_not_and_depends_on_no_other() -> None:
    tokens = [new_token() for _ in range(4000)]
    assert all(len(token) == BITS // 4 and set(token) <= set("0123456789abcdef") for token in tokens)
    assert len(set(tokens)) == len(tokens)
    numbers = [int(token, 16) for token in tokens]
    # Seven standard deviations: a fair coin fails this once in 300 million runs, all bits together.
    slack = 7 * math.sqrt(len(tokens)) / 2
    for shift in (0, 1, 4, 8, 32, 64, 256):  # 0: the bits themselves; else each beside the one so far from it
        mixed = [number ^ (number >> shift) if shift else number for number in numbers]
        for bit in range(BITS - shift):
            count = sum(number >> bit & 1 for number in mixed)
            assert abs(count - len(tokens) / 2) < slack, (shift, bit)


async def test_of_many_that_come_with_one_token_at_the_same_moment_one_is_let_in(redis_server: RedisServer) -> None:
    async with Running(redis_server) as running:
        token = running.token(7)
        results = await asyncio.gather(*(running.connect_with(token, 7) for _ in range(50)), return_exceptions=True)
        refused = [result for result in results if isinstance(result, InvalidStatus)]
        assert len(refused) == 49
        assert {error.response.status_code for error in refused} == {401}
        assert redis_server.hash(running.names.online) == {"7": "1"}


async def test_a_token_is_refused_when_its_time_is_over(redis_server: RedisServer) -> None:
    async with Running(redis_server) as running, AsyncImHelper(redis_server.url, token_ttl=0.3) as helper:
        tokens = [(await helper.prev_connect_server(7)).partition("token=")[2] for _ in range(2)]
        await running.connect_with(tokens[0], 7)
        await asyncio.sleep(0.5)
        with pytest.raises(InvalidStatus) as caught:
            await running.connect_with(tokens[1], 7)
        assert caught.value.response.status_code == 401
