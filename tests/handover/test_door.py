"""Who may come to the socket of a hand-over, and what a node says to whom it does not like."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from freeim.errors import ConfigError
from freeim.node import Node, handover_door, successor
from freeim.node.handover_messages import Ask, Offer, Refused, decode, encode
from tests.handover.pairs import end
from tests.node.harness import Running, refused, running
from tests.servers import RedisServer, free_port


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    tmp_path.chmod(0o700)
    # A socket's path is short.
    there = Path(f"/tmp/freeim-door-{os.getpid()}")
    there.symlink_to(tmp_path)
    yield there
    there.unlink()


def options(folder: Path) -> dict[str, object]:
    return {"bind": f"127.0.0.1:{free_port()}", "handover": str(folder / "s")}


async def say(path: Path, data: bytes) -> bytes:
    """Send something to the socket, and return all that comes back."""
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(data)
    try:
        answer = await asyncio.wait_for(reader.read(), 10)
    finally:
        await end(writer)
    return answer


async def ask_and_say(path: Path, question: bytes, more: bytes) -> bytes:
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(question)
    answer = await asyncio.wait_for(reader.readline(), 10)
    writer.write(more)
    answer += await asyncio.wait_for(reader.read(), 10)
    await end(writer)
    return answer


def ask(run: Running, **changed: object) -> bytes:
    """Return what a successor of a node would ask."""
    right: dict[str, object] = {
        "epoch": "1",
        "pid": 1,
        "release": "9.9",
        "node": run.node.name,
        "bind": run.node.options.bind,
        "prefix": run.names.prefix,
        "path": "/ws",
        "ids": "int",
        "nodes": (),
    }
    return encode(Ask(**{**right, **changed}))  # type: ignore[arg-type]


async def test_the_socket_is_for_this_user_alone_and_gone_with_the_node(
    redis_server: RedisServer, folder: Path
) -> None:
    async with running(redis_server, **options(folder)):
        assert os.listdir(folder) == ["s"]
        assert stat.S_IMODE(os.stat(folder / "s").st_mode) == 0o600
    assert os.listdir(folder) == []


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o1777, 0o702])
async def test_a_folder_that_others_can_write_is_refused(redis_server: RedisServer, folder: Path, mode: int) -> None:
    os.chmod(folder, mode)
    run = Running(redis_server, **options(folder))
    await refused(run.node, ConfigError, "can be written by others; make one of this user's own")
    os.chmod(folder, 0o700)
    assert os.listdir(folder) == []


async def test_a_folder_of_another_user_is_refused(
    redis_server: RedisServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: real + 1)
    await refused(Running(redis_server, **options(folder)).node, ConfigError, f"belongs to the user with the id {real}")


async def test_a_folder_that_is_missing_or_no_folder_is_told(redis_server: RedisServer, folder: Path) -> None:
    (folder / "file").touch()
    for name in ("missing", "file"):
        run = Running(redis_server, bind=f"127.0.0.1:{free_port()}", handover=str(folder / name / "s"))
        await refused(run.node, ConfigError, "of --handover cannot be used|is no folder")


async def test_a_process_of_another_user_gets_nothing(
    redis_server: RedisServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(redis_server, **options(folder)) as run:
        real = os.geteuid()
        with monkeypatch.context() as patch:
            patch.setattr(os, "geteuid", lambda: real + 1)
            with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                assert await say(folder / "s", ask(run)) == b""
            with pytest.raises(ConfigError, match="another user's"):
                await handover_door.knock(str(folder / "s"))
        answer = await ask_and_say(folder / "s", ask(run), b"that is all\n")
        assert isinstance(decode(answer.split(b"\n")[0]), Offer)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\n", "a line is not JSON"),
        (b"GET / HTTP/1.1\r\n\r\n", "a line is not JSON"),
        (b'{"type":"ask","version":2}\n', "it speaks version 2 of the hand-over, and this is version 1"),
        (b'{"type":"serving"}\n', "it asks for nothing"),
        (b"x" * (2**20 + 1), "a line is too long"),
    ],
)
async def test_what_is_no_question_is_answered_with_the_reason(
    redis_server: RedisServer, folder: Path, data: bytes, reason: str
) -> None:
    async with running(redis_server, **options(folder)) as run:
        peer = await run.connect(1)
        try:
            answer = await say(folder / "s", data)
        except ConnectionResetError:  # more was on its way when the answer was sent
            answer = encode(Refused(reason))
        assert json.loads(answer) == {"type": "refused", "reason": reason, "version": 1}
        assert await peer.fence() == []


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"node": "other"}, "it has another name: 'other' there"),
        ({"bind": "0.0.0.0:1"}, "it has another address"),
        ({"prefix": "p"}, "it has another prefix"),
        ({"path": "/x"}, "it has another path"),
        ({"ids": "guid"}, "it has another kind of ids"),
        ({"nodes": ("a", "b")}, "a list cannot be changed in a hand-over"),
    ],
)
async def test_whoever_would_serve_something_else_is_refused(
    redis_server: RedisServer, folder: Path, changed: dict[str, object], reason: str
) -> None:
    async with running(redis_server, **options(folder)) as run:
        message = decode(await say(folder / "s", ask(run, **changed)))
        assert isinstance(message, Refused)
        assert reason in message.reason


async def test_nonsense_after_the_offer_breaks_the_hand_over_off(redis_server: RedisServer, folder: Path) -> None:
    async with running(redis_server, **options(folder)) as run:
        peer = await run.connect(1)
        for nonsense in (b"nonsense\n", b'{"type":"done"}\n', b'{"type":"clients","counts":{"1":"x"}}\n'):
            answer = await ask_and_say(folder / "s", ask(run), nonsense)
            assert isinstance(decode(answer.split(b"\n")[0]), Offer)
            assert await peer.fence() == []
        assert not run.node.handed_over
        await run.node._presence.beat()
        await (await run.connect(2)).close()


async def test_whoever_says_nothing_is_sent_away(
    redis_server: RedisServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(successor, "ASK_SECONDS", 0.2)
    async with running(redis_server, **options(folder)) as run:
        assert await say(folder / "s", b"") == b""
        assert await say(folder / "s", ask(run)[:-1]) == b""


@pytest.mark.parametrize(
    "answer",
    [b"", b"\n", b"garbage\n", encode(Offer("1", 1, "")), encode(Offer("1", 1, "127.0.0.1:1")), b'{"type":"done"}\n'],
)
async def test_a_node_does_not_start_from_what_is_no_offer(
    redis_server: RedisServer, folder: Path, answer: bytes
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(answer)
        await end(writer)

    server = await asyncio.start_unix_server(serve, str(folder / "s"))
    run = Running(redis_server, **options(folder))
    if not answer:  # it has just ended: there is nothing to hand over
        async with run:
            assert await (await run.connect(1)).fence() == []
    else:
        await refused(run.node, ConfigError, "cannot hand over to this release|did not hand over a listening socket")
    server.close()


async def test_a_socket_that_does_not_listen_is_no_offer(redis_server: RedisServer, folder: Path) -> None:
    door = socket.socket(socket.AF_UNIX)
    door.bind(str(folder / "s"))
    door.listen()
    door.setblocking(False)
    node: Node = Running(redis_server, **options(folder)).node
    start = asyncio.create_task(refused(node, ConfigError, "did not hand over a listening socket"))
    conn, _ = await asyncio.get_running_loop().sock_accept(door)
    with socket.socket() as no_listener:
        await asyncio.get_running_loop().sock_recv(conn, 65536)
        conn.setblocking(True)
        handover_door.send(conn, encode(Offer("1", 1, "")), [no_listener])
        await start
    conn.close()
    door.close()
