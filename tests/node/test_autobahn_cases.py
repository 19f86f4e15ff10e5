"""Categories 1 to 7 of the Autobahn testsuite, replayed byte by byte as the suite sent them (see tests/vectors).

The suite tests servers that echo. A node pushes: it answers pings and closes, and says nothing to a message. So no echo
is wanted here; everything else that the suite demands is.
"""

from __future__ import annotations

import asyncio
import base64
import json
import zlib
from pathlib import Path
from typing import Any

import pytest

from tests.node.harness import Raw, Running, running
from tests.servers import RedisServer

CASES: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "vectors" / "autobahn.json").read_text(encoding="utf-8")
)

CLOSE, PONG = 8, 10

ONE_BY_ONE = 2000
"""Bytes of a case that are also sent one at a time."""


def concerns_a_push_only_server(case: dict[str, Any]) -> bool:
    """Whether a case is about more than the text of a message.

    The others want 1007 for a message that is not UTF-8. RFC 6455, section 8.1, asks that of an endpoint that is to
    interpret the bytes; a node throws a message away unread. What it does read is checked: the reason in a Close frame.
    """
    return bool(case["codes"] != [1007] or case["case"].startswith("7."))


def through_close(data: bytes) -> bytes:
    """Return masked frames up to the first Close frame: a write behind the node's answer to it may be a reset."""
    at = 0
    while at + 2 <= len(data):
        size, head = data[at + 1] & 0x7F, 6
        if size >= 126:
            extended = 2 if size == 126 else 8
            size, head = int.from_bytes(data[at + 2 : at + 2 + extended], "big"), head + extended
        end = at + head + size
        if data[at] & 0x0F == CLOSE:
            return data[:end]
        at = end
    return data


async def ending(run: Running, data: list[bytes], pieces: bool) -> tuple[list[bytes], int]:
    """Send what a case sends; return the payloads of the pongs that came back, and the code of the node's Close."""
    raw = await run.raw_client(1)
    reading = asyncio.create_task(read(raw))
    if pieces:
        for each in data:
            for byte in through_close(each):
                if raw.writer.is_closing():
                    break
                raw.send(bytes([byte]))
                await asyncio.sleep(0)
            await asyncio.wait([reading], timeout=0.01)
            if reading.done():
                break
    else:
        raw.send(b"".join(data))
    found = await reading
    raw.close()
    return found


async def read(raw: Raw) -> tuple[list[bytes], int]:
    pongs: list[bytes] = []
    while True:
        opcode, payload = await raw.frame()
        if opcode == CLOSE:
            return pongs, int.from_bytes(payload[:2], "big")
        assert opcode == PONG, "a node echoes nothing"
        pongs.append(payload)


def test_the_vectors_are_whole() -> None:
    found = [sum(case["case"].startswith(f"{category}.") for case in CASES) for category in range(1, 8)]
    assert found == [16, 11, 7, 10, 20, 145, 37]
    assert sum(map(concerns_a_push_only_server, CASES)) == 171


@pytest.mark.parametrize("category", range(1, 8))
async def test_a_node_ends_each_case_as_the_suite_demands(redis_server: RedisServer, category: int) -> None:
    wrong = {}
    async with running(redis_server, max_inbound=1 << 20, inbound_rate=0) as run:
        other = await run.connect(2)
        for case in CASES:
            if not case["case"].startswith(f"{category}.") or not concerns_a_push_only_server(case):
                continue
            data = [zlib.decompress(base64.b64decode(each)) for each in case["sent"]]
            for pieces in (False, True) if sum(map(len, data)) <= ONE_BY_ONE else (False,):
                pongs, code = await ending(run, data, pieces)
                if pongs != [each.encode("latin-1") for each in case["pongs"]] or code not in case["codes"]:
                    wrong[case["case"], "one by one" if pieces else "at once"] = case["about"], pongs, code
        assert wrong == {}
        assert await other.fence() == []


async def test_the_text_of_a_message_is_not_looked_at(redis_server: RedisServer) -> None:
    async with running(redis_server, max_inbound=1 << 20, inbound_rate=0) as run:
        for case in CASES:
            if not concerns_a_push_only_server(case):
                data = b"".join(zlib.decompress(base64.b64decode(each)) for each in case["sent"])
                raw = await run.raw_client(1)
                raw.send(data)
                pongs, code = await read(raw)
                assert pongs == []
                assert code in (1000, 1001), "the suite's own, when it waits no longer"
                raw.close()
