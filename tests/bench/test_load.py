"""The load generator finds every fault that a server can make, and counts it as what it is."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator

import pytest

from bench.build import program
from bench.processes import Process
from bench.publisher import text
from freeim.envelope import receipt_text
from tests.bench.bad_server import BadServer, answer, frame, message


@pytest.fixture
def load() -> Iterator[Process]:
    with Process([program("load")]) as process:
        yield process


@pytest.fixture
def server(load: Process) -> Iterator[BadServer]:
    with BadServer(load) as server:
        assert server.connect().living == 1
        load.ask("begin 128 0")
        yield server


def test_good_messages_are_counted_without_a_fault(server: BadServer) -> None:
    tally = server.send(message(7, 1), message(7, 2), message(8, 1))
    assert tally.frames == 3
    assert not +tally.faults
    assert tally.histogram.total() == 3


def test_a_request_is_well_formed_and_carries_the_token(server: BadServer) -> None:
    lines = server.heads[0].decode().split("\r\n")
    assert lines[0] == "GET /ws?token=token1 HTTP/1.1"
    assert {"Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13"} <= set(lines)


def test_a_path_that_ends_with_a_parameter_takes_the_token_as_it_is(load: Process) -> None:
    with BadServer(load) as server:
        assert server.connect(path="/uni?connect=").living == 1
        assert server.heads[0].startswith(b"GET /uni?connect=token1 HTTP/1.1\r\n")


def wrapped(payload: bytes, tail: bytes = b"}}") -> bytes:
    return frame(b'{"channel":"c","pub":{"data":' + payload + tail)


def test_messages_may_be_in_an_envelope_and_are_verified_as_others_are(load: Process, server: BadServer) -> None:
    load.ask('envelope "pub":{"data": }}')
    bare = [message(7, number)[4:] for number in (1, 2, 4)]
    tally = server.send(frame(b'{"connect":{}}'), *(wrapped(payload) for payload in bare))
    assert tally.frames == 3
    assert +tally.faults == {"lost": 1}


def test_an_envelope_that_ends_otherwise_is_no_good_message(load: Process, server: BadServer) -> None:
    load.ask('envelope "pub":{"data": }}')
    tally = server.send(wrapped(message(7, 1)[4:], b"}"), wrapped(message(7, 1)[4:], b"} }"), wrapped(b""))
    assert tally.frames == 0
    assert +tally.faults == {"bad_payloads": 3}


def test_connections_come_from_many_addresses(load: Process) -> None:
    with BadServer(load) as server:
        assert server.connect(5).living == 5
        assert {sock.getpeername()[0] for sock in server.sockets} == {f"127.0.0.{n}" for n in range(1, 6)}


def test_a_gap_is_loss(server: BadServer) -> None:
    tally = server.send(message(7, 1), message(7, 4))
    assert tally.frames == 2
    assert +tally.faults == {"lost": 2}


def test_a_stream_that_begins_late_has_lost_its_beginning(server: BadServer) -> None:
    assert +server.send(message(7, 3)).faults == {"lost": 2}


def test_a_doubled_message_is_a_duplicate(server: BadServer) -> None:
    assert +server.send(message(7, 1), message(7, 2), message(7, 1)).faults == {"duplicates": 1}


def test_a_late_message_was_reordered_and_not_lost(server: BadServer) -> None:
    assert +server.send(message(7, 1), message(7, 3), message(7, 2)).faults == {"reordered": 1}


def test_a_late_message_that_comes_twice_is_reordered_once_and_doubled_once(server: BadServer) -> None:
    tally = server.send(message(7, 2), message(7, 1), message(7, 1))
    assert +tally.faults == {"reordered": 1, "duplicates": 1}


def test_streams_and_connections_do_not_mix(load: Process) -> None:
    with BadServer(load) as server:
        server.connect(2)
        load.ask("begin 128 0")
        server.send(message(7, 1), message(8, 1))
        tally = server.send(message(7, 1), number=1)
        assert tally.frames == 3
        assert not +tally.faults
        assert load.ask("tail 7 1") == {"complete": 2}
        assert load.ask("tail 8 1") == {"complete": 1}


def test_what_is_meant_for_another_client_is_misdelivered(server: BadServer) -> None:
    tally = server.send(message(7, 1, to=1), message(7, 2, to=2))
    assert tally.frames == 1
    assert +tally.faults == {"misdelivered": 1}


@pytest.mark.parametrize("size", [64, 125, 126, 127, 65535, 65536, 300_000])
def test_messages_of_every_size_are_read_however_they_are_cut(load: Process, size: int) -> None:
    with BadServer(load) as server:
        server.connect()
        load.ask(f"begin {size} 0")
        whole = message(7, 1, size)
        for at in (1, 2, 3, 5, 11, len(whole) - 1):
            server.sockets[0].sendall(whole[:at])
            time.sleep(0.005)  # so that the parts come in two reads
            server.sockets[0].sendall(whole[at:])
            tally = server.send(message(7, 2, size))
            assert tally.frames == 2
            assert not +tally.faults
            load.ask(f"begin {size} 0")


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b'""',
        b'"7 1 5 0"',
        b'"7 1 5 x"',
        b'"7 1 5 0 xxxy"',
        b'"7 1 5 0 yxxx"',
        b'"7 -1 5 0 xxx"',
        b'"7 1 99999999999999999999999 0 xxx"',
        b'"7 99999999999 5 0 xxx"',
        b"'7 1 5 0 xxx'",
        b'"7 1 9223372036854775807 0 xxx"',  # sent in the future
    ],
)
def test_a_payload_of_another_form_is_bad(load: Process, payload: bytes) -> None:
    with BadServer(load) as server:
        server.connect()
        load.ask("begin 0 0")
        tally = server.send(frame(payload), message(7, 1))
        assert tally.frames == 1
        assert +tally.faults == {"bad_payloads": 1}


def test_a_payload_that_differs_from_a_good_one_in_one_byte_is_bad(server: BadServer) -> None:
    good = message(7, 1)
    server.send(good)
    for at in (5, len(good) - 2, len(good) - 1):
        tally = server.send(good[:at] + b"y" + good[at + 1 :])
    assert tally.frames == 1
    assert +tally.faults == {"bad_payloads": 3}


def test_a_burst_to_many_connections_is_read_in_each(load: Process) -> None:
    with BadServer(load) as server:
        server.connect(3)
        load.ask("begin 128 0")
        burst = [message(7, number) for number in range(1, 601)]  # more than the generator keeps for comparison
        server.send(*burst)
        server.send(*burst[:300], *burst[301:], number=1)
        tally = server.send(*burst[:300], *burst[299:], number=2)
        assert tally.frames == 1800
        assert +tally.faults == {"lost": 1, "duplicates": 1}


def test_a_payload_of_another_size_is_bad(server: BadServer) -> None:
    assert +server.send(message(7, 1, 127)).faults == {"bad_payloads": 1}


@pytest.mark.parametrize(
    "bad",
    [
        frame(b"x" * 128, 0x82),  # binary
        frame(b"x" * 128, 0x80),  # the rest of a message in pieces
        frame(b"x" * 128, 0x01),  # its beginning
        frame(b"x" * 128, 0xC1),  # a reserved bit: compressed
        frame(b"", 0x83),  # no such opcode
        b"\x81\x85\x00\x00\x00\x00hello",  # masked
        b"\x81\x7e\x00\x05hello",  # a length longer than it must be
        b"\x81\x7f" + struct.pack(">Q", 128) + b"x" * 128,
        frame(b"x" * 126, 0x89),  # a control frame that is too long
    ],
)
def test_a_frame_that_no_node_sends_is_bad(server: BadServer, bad: bytes) -> None:
    tally = server.send(bad, message(7, 1))
    assert tally.frames == 1
    assert +tally.faults == {"bad_frames": 1}


def receipt(sequence: int, delivered: bool = True, size: int = 128) -> bytes:
    return frame(receipt_text(text(7, sequence, size, to=2), delivered).encode())


def test_receipts_are_verified_and_counted_apart(server: BadServer) -> None:
    tally = server.send(receipt(1), receipt(2), message(7, 1))
    assert (tally.frames, tally.receipts) == (1, 2)
    assert not +tally.faults


@pytest.mark.parametrize(
    ("receipts", "faults"),
    [
        ([receipt(2)], {"lost": 1}),
        ([receipt(1), receipt(1)], {"duplicates": 1}),
        ([receipt(1, delivered=False)], {"bad_payloads": 1}),
        ([receipt(1, size=100)], {"bad_payloads": 1}),
        ([frame(b"{}")], {"bad_payloads": 1}),
    ],
)
def test_a_receipt_that_is_wrong_is_found(server: BadServer, receipts: list[bytes], faults: dict[str, int]) -> None:
    assert +server.send(*receipts).faults == faults


def test_a_ping_gets_its_pong_masked_and_with_the_same_payload(server: BadServer) -> None:
    server.sockets[0].sendall(frame(b"hello", 0x89))
    pong = server.read(11)
    assert pong[:2] == b"\x8a\x85"
    assert bytes(byte ^ pong[2 + n % 4] for n, byte in enumerate(pong[6:])) == b"hello"
    assert server.state().pings == 1


def test_a_close_is_counted_by_its_code_and_answered(server: BadServer) -> None:
    server.sockets[0].sendall(frame(struct.pack(">H", 4002) + b"too slow", 0x88))
    assert server.read(2) == b"\x88\x82"
    server.sockets[0].shutdown(socket.SHUT_WR)
    deadline = time.monotonic() + 10
    while (tally := server.state()).living:
        assert time.monotonic() < deadline
    assert tally.closes == {4002: 1}
    assert not +tally.faults


def test_an_end_without_a_close_is_a_cut(server: BadServer) -> None:
    server.sockets[0].close()
    deadline = time.monotonic() + 10
    while (tally := server.state()).living:
        assert time.monotonic() < deadline
    assert +tally.faults == {"cut": 1}


@pytest.mark.parametrize("status", [401, 421, 503])
def test_a_refused_handshake_is_counted_by_its_status(load: Process, status: int) -> None:
    with BadServer(load, lambda _: f"HTTP/1.1 {status} No\r\nContent-Length: 0\r\n\r\n".encode()) as server:
        tally = server.connect()
        assert (tally.living, tally.refused) == (0, {status: 1})


@pytest.mark.parametrize(
    ("good", "bad"),
    [(b"Accept: ", b"Accept: A"), (b"Upgrade: websocket", b"Upgrade: web"), (b"Connection: Upgrade", b"X: Y")],
)
def test_a_101_with_a_false_header_is_refused(load: Process, good: bytes, bad: bytes) -> None:
    with BadServer(load, lambda head: answer(head).replace(good, bad)) as server:
        tally = server.connect()
        assert (tally.living, tally.refused) == (0, {0: 1})


def test_latency_is_the_time_since_the_payload_was_made(server: BadServer) -> None:
    made = message(7, 1)
    time.sleep(0.1)  # the latency that is to be seen
    tally = server.send(made)
    assert 0.1 <= tally.slowest < 5
    assert tally.quantile(0.5) == tally.slowest


def test_a_wait_ends_with_its_time_if_too_little_comes(server: BadServer) -> None:
    begin = time.monotonic()
    assert server.process.ask("wait 1 0.1")["frames"] == 0
    assert time.monotonic() - begin >= 0.1


def test_close_ends_all_connections_with_a_handshake(server: BadServer) -> None:
    server.process.say("close 1000 10")
    close = server.read(8)
    assert close[:2] == b"\x88\x82"
    server.sockets[0].sendall(frame(struct.pack(">H", 1000), 0x88))
    server.sockets[0].close()
    assert '"living":0' in server.process.hear()
