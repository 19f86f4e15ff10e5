"""Connection tokens: those that a helper would have written, and those that the yardstick understands."""

from __future__ import annotations

import redis

from freeim.envelope import token_value
from freeim.names import Names, new_token

TOKEN_SECONDS = 600
CHUNK = 5000


def issue(client: redis.Redis, names: Names, count: int, first: int = 1) -> list[str]:
    """Write a token for each of `count` clients with adjacent ids, as `prev_connect_server` does, but many at once."""
    tokens = [new_token() for _ in range(count)]
    for start in range(0, count, CHUNK):
        pipe = client.pipeline(transaction=False)
        for number, token in enumerate(tokens[start : start + CHUNK], first + start):
            pipe.set(names.token(token), token_value(number, ""), ex=TOKEN_SECONDS)
        pipe.execute()
    return tokens


def for_yardstick(count: int) -> list[str]:
    """Return tokens of the same length that spell the client's number: the yardstick looks nothing up."""
    return [f"{number:0128d}" for number in range(1, count + 1)]
