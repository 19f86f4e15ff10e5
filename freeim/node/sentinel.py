"""Asks Sentinels which Redis is the master at this moment."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any, Final

import hiredis

from freeim.node.link import RedisLink
from freeim.redis_url import RedisAddress

ANSWER_TIMEOUT: Final = 2.0
"""Seconds that one Sentinel has to be reached and to answer; all are asked at the same time."""


async def ask_sentinels(address: RedisAddress) -> RedisAddress:
    """Return the address of the master that the Sentinels name.

    All of them are asked and the newest configuration counts (its epoch grows with each failover): a Sentinel that is
    cut off from the others goes on naming the master of before.

    Args:
        address: One with Sentinels.

    Raises:
        OSError: None of them could be reached, or none knows the service.
    """
    answers = await asyncio.gather(*(_ask(address, host, port) for host, port in address.sentinels))
    masters = [answer for answer in answers if not isinstance(answer, str)]
    if not masters:
        raise OSError(f"no Sentinel names a master: {'; '.join(map(str, answers))}")
    _, host, port = max(masters)
    return dataclasses.replace(address, host=host, port=port, sentinels=())


async def _ask(address: RedisAddress, host: str, port: int) -> tuple[int, str, int] | str:
    """Return the epoch, host and port that a Sentinel names; or why there is no answer."""
    sentinel = RedisAddress(
        address.tls, host, port, None, address.sentinel_username, address.sentinel_password, database=0
    )
    link = RedisLink()
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT):
            await link.connect(sentinel)
            return read_master(await link.call("SENTINEL", "MASTER", address.service))
    except TimeoutError:
        return f"{host}:{port} did not answer in time"
    except (OSError, ValueError, hiredis.HiredisError) as error:
        return f"{host}:{port}: {error}"
    finally:
        link.close()


def read_master(reply: Any) -> tuple[int, str, int]:
    """Return the epoch, host and port in a Sentinel's answer.

    Raises:
        ValueError: It is no such answer.
    """
    try:
        facts = reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))
        master = int(facts[b"config-epoch"]), facts[b"ip"].decode(), int(facts[b"port"])
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        raise ValueError("this is no answer of a Sentinel") from None
    if not 0 < master[2] < 65536:
        raise ValueError(f"it names the port {master[2]}")
    return master
