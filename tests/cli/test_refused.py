"""What a listener shows of a handshake that was refused, whoever answered it and with whatever bytes."""

from __future__ import annotations

import asyncio
from http import HTTPStatus

import pytest
from hypothesis import given
from hypothesis import strategies as st
from picows import WSInvalidStatusError, WSListener, WSUpgradeResponse, ws_connect

from freeim.node.http import response
from freeim.refused import LONGEST, why_refused


async def _answered(answer: bytes) -> WSInvalidStatusError:
    """Connect to what answers a handshake like this."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(WSInvalidStatusError) as raised:
            await ws_connect(WSListener, f"ws://127.0.0.1:{port}/ws")
        return raised.value


def refused(status: int, body: bytes, *headers: str, content_type: str = "text/plain; charset=utf-8") -> str:
    return why_refused(asyncio.run(_answered(response(status, body, *headers, content_type=content_type))))


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (400, "a PROXY header from a peer", "the answer was 400 Bad Request (a PROXY header from a peer)"),
        (401, "get a fresh one", "the answer was 401 Unauthorized (get a fresh one); does the node use the same Redis"),
        (404, "nothing is served here", "(nothing is served here); the path must be the node's --path"),
        (421, "connect to ws://b/ws", "(connect to ws://b/ws); each node needs a URL of its own"),
        (503, "this node stops", "(this node stops); the node's /ready says what it lacks"),
        (502, "", "the answer was 502 Bad Gateway; a proxy does not reach the node"),
    ],
)
def test_the_status_the_reason_and_what_to_do_are_told(status: int, body: str, told: str) -> None:
    assert told in refused(status, body.encode())


def test_of_a_proxys_page_only_the_status_is_told() -> None:
    assert refused(403, b"<html>no</html>", content_type="text/html") == "the answer was 403 Forbidden"
    chunked = (
        b"HTTP/1.1 403 Forbidden\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n"
    )
    assert why_refused(asyncio.run(_answered(chunked))) == "the answer was 403 Forbidden"


def test_control_characters_and_what_turns_the_writing_round_are_shown_and_not_sent_to_the_terminal() -> None:
    told = refused(403, "\x1b]0;owned\x07 \x9b31m \u202etxt \x00\r\nsecond line".encode())
    assert told == r"the answer was 403 Forbidden (\x1b]0;owned\x07 \x9b31m \u202etxt \x00)"


def test_what_is_too_long_is_cut() -> None:
    assert refused(403, b"x" * 5_000) == f"the answer was 403 Forbidden ({'x' * LONGEST}…)"


@given(st.binary(max_size=2_000), st.sampled_from([each for each in HTTPStatus if each >= 400]))
def test_whatever_the_body_is_one_printable_line_is_told(body: bytes, status: HTTPStatus) -> None:
    told = why_refused(WSInvalidStatusError("no", b"", body, WSUpgradeResponse.create_error_response(status)))
    assert told.isprintable()
    assert len(told) < 2 * LONGEST
