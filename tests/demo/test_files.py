"""Files from one person to another: the two messages, who may fetch them, and what is not taken."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from starlette.requests import Request

from freeim.demo.checks import Refused
from freeim.demo.files import Files, upload
from tests.cli.command import Server
from tests.demo.demo import KEY, Visitor, failure, running_app
from tests.servers import RedisServer

pytestmark = pytest.mark.slow

LARGEST = 100_000
NAME = "日程 & plan.txt"


@pytest.fixture
def temporary(redis_server: RedisServer, node: Server, tmp_path: Path) -> Path:
    """The temporary folder of the app."""
    return tmp_path


@pytest.fixture
def page(redis_server: RedisServer, temporary: Path) -> Iterator[str]:
    """An app that takes files of 100 kB."""
    with running_app(redis_server.url, "--max-upload", str(LARGEST), temporary=temporary) as demo:
        yield demo.page()


@pytest.fixture
def pair(page: str) -> Iterator[tuple[Visitor, Visitor]]:
    """Two who are connected."""
    with Visitor(page, "Ana") as ana, Visitor(page, "Bo") as bo:
        yield ana, bo


def stored(folder: Path) -> list[Path]:
    return [path for path in folder.glob("freeim-demo-*/*") if path.is_file()]


def chunks(count: int) -> Callable[[], Iterator[bytes]]:
    """Return a body without a known length."""
    return lambda: (b"x" * 10_000 for _ in range(count))


def store(files: Files, content: bytes) -> str:
    """Keep a file for client 1, without an app; return its key."""

    async def keep() -> str:
        async with files.incoming("a", frozenset({1})) as (key, incoming):
            incoming.write(content)
        return key

    return asyncio.run(keep())


def test_a_file_comes_as_an_announcement_and_then_as_a_link(pair: tuple[Visitor, Visitor]) -> None:
    ana, bo = pair
    answer = ana.upload(bo.id, quote(NAME), b"9:00 tea", KEY).json()
    coming = bo.hear("file-coming")
    assert (coming["name"], coming["key"], coming["file"]) == ("Ana", KEY, {"name": NAME, "size": 8})
    letter = bo.hear("file")
    assert (letter["from"], letter["key"], letter["file"]) == (ana.id, KEY, answer["file"])
    assert ana.hear("receipt")["receipt"] == "发送成功"
    for who in pair:
        response = who.http.get(letter["file"]["url"])
        assert response.content == b"9:00 tea"
        assert response.headers["content-type"] == "application/octet-stream"
        assert response.headers["content-disposition"] == f"attachment; filename*=utf-8''{quote(NAME)}"
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["cache-control"] == "no-store"


def test_a_file_is_for_its_sender_and_its_receiver_alone(page: str, pair: tuple[Visitor, Visitor]) -> None:
    ana, bo = pair
    url = ana.upload(bo.id, "plan.txt", b"secret").json()["file"]["url"]
    with Visitor(page, "Cy") as cy:
        failure(cy.http.get(url), 404, "no-file")
        failure(cy.http.get("/files/anything"), 404, "no-file")
    failure(httpx.get(page + url, trust_env=False), 401, "no-identity")
    assert len(url.removeprefix("/files/")) == 32


@pytest.mark.parametrize(
    "name",
    ["../plan", "..", ".", "a/b", "a\\b", "/etc/passwd", "", " ", "a\x00b", "a\nb", "\u202etxt.exe", "x" * 201],
)
def test_a_name_that_is_no_plain_name_is_refused(pair: tuple[Visitor, Visitor], temporary: Path, name: str) -> None:
    ana, bo = pair
    failure(ana.upload(bo.id, quote(name, safe=""), b"x"), 400, "file-name")
    assert stored(temporary) == []
    assert bo.heard("file-coming") == []


def test_a_name_that_is_no_text_is_refused(pair: tuple[Visitor, Visitor]) -> None:
    ana, bo = pair
    failure(ana.upload(bo.id, "%ff%fe", b"x"), 400, "file-name")


def test_without_the_header_that_no_form_can_send_nothing_is_taken(pair: tuple[Visitor, Visitor]) -> None:
    ana, bo = pair
    response = ana.http.post("/files", params={"to": bo.id, "key": KEY}, content=b"x")
    failure(response, 400, "file-name")


def test_a_stranger_cannot_send_a_file(page: str) -> None:
    headers = {"X-File-Name": "a"}
    response = httpx.post(f"{page}/files?to=5&key={KEY}", content=b"x", headers=headers, trust_env=False)
    failure(response, 401, "no-identity")


@pytest.mark.parametrize(("to", "key", "reason"), [("x", KEY, "client"), ("0", KEY, "client"), ("5", "k", "key")])
def test_a_file_needs_a_receiver_and_a_key(pair: tuple[Visitor, Visitor], to: str, key: str, reason: str) -> None:
    headers = {"X-File-Name": "a"}
    failure(pair[0].http.post("/files", params={"to": to, "key": key}, content=b"x", headers=headers), 400, reason)


def test_a_file_whose_length_is_too_large_is_refused_before_anybody_is_told(
    pair: tuple[Visitor, Visitor], temporary: Path
) -> None:
    ana, bo = pair
    failure(ana.upload(bo.id, "a", b"x" * (LARGEST + 1)), 413, "too-large")
    assert bo.heard("file-coming") == []
    assert ana.upload(bo.id, "a", b"x" * LARGEST).status_code == 200
    assert [path.stat().st_size for path in stored(temporary)] == [LARGEST]


def test_a_file_that_grows_too_large_is_cut_and_the_receiver_told(
    pair: tuple[Visitor, Visitor], temporary: Path
) -> None:
    ana, bo = pair
    failure(ana.upload(bo.id, "a", chunks(11)()), 413, "too-large")
    assert bo.hear("file-coming")["file"] == {"name": "a", "size": None}
    assert bo.hear("file-failed")["file"]["name"] == "a"
    assert stored(temporary) == []
    assert ana.upload(bo.id, "a", chunks(10)()).json()["file"]["size"] == 100_000


def test_a_sender_who_leaves_in_the_middle_leaves_nothing(pair: tuple[Visitor, Visitor], temporary: Path) -> None:
    ana, bo = pair

    def breaking_off() -> Iterator[bytes]:
        yield b"x" * 1000
        bo.hear("file-coming")
        raise InterruptedError

    with pytest.raises(InterruptedError):
        ana.upload(bo.id, "a", breaking_off())
    bo.hear("file-failed")
    assert stored(temporary) == []


def test_the_oldest_files_go_when_ten_of_the_largest_are_there(pair: tuple[Visitor, Visitor], temporary: Path) -> None:
    ana, bo = pair
    urls = [ana.upload(bo.id, "a", b"x" * LARGEST).json()["file"]["url"] for _ in range(12)]
    assert [bo.http.get(url).status_code for url in urls] == [404, 404, *[200] * 10]
    assert len(stored(temporary)) == 10


async def test_many_that_come_at_once_cannot_fill_the_disk(tmp_path: Path) -> None:
    files = Files(tmp_path, largest=100)
    async with files.incoming("a", frozenset({1})) as (_, first):
        first.write(b"x" * 100)
        for _ in range(9):
            files.make_room(100)
        with pytest.raises(Refused) as refused:
            first._store.make_room(1)
        assert refused.value.status == 507
    files.make_room(1)  # the first is complete now, and goes
    assert os.listdir(tmp_path) == []


def test_empty_files_cannot_fill_the_disk_either(tmp_path: Path) -> None:
    files = Files(tmp_path, largest=100)
    keys = [store(files, b"") for _ in range(250)]
    assert len(os.listdir(tmp_path)) == 100
    assert files.get(keys[150], 1).size == 0
    with pytest.raises(Refused):
        files.get(keys[149], 1)


async def test_those_that_are_being_sent_count(tmp_path: Path) -> None:
    files = Files(tmp_path, largest=100)
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(100):
            await stack.enter_async_context(files.incoming("a", frozenset({1})))
        with pytest.raises(Refused) as refused:
            await stack.enter_async_context(files.incoming("a", frozenset({1})))
        assert refused.value.status == 507
    assert len(os.listdir(tmp_path)) == 100
    async with files.incoming("a", frozenset({1})):
        pass  # the oldest of them is complete now, and goes
    assert len(os.listdir(tmp_path)) == 100


class FullDisk(io.BufferedWriter):
    """A file whose last bytes, which are written when it is closed, find no room."""

    def close(self) -> None:
        if not self.closed:
            super().close()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_file_whose_end_finds_no_room_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = Files(tmp_path, largest=100)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda path, mode: FullDisk(io.FileIO(path, "x")))
        with pytest.raises(OSError, match="No space left"):
            store(files, b"x" * 100)
    assert os.listdir(tmp_path) == []
    keys = [store(files, b"x" * 100) for _ in range(10)]
    assert files.get(keys[0], 1).size == 100


def test_a_sender_who_is_too_slow_is_refused_and_the_receiver_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    class Helper:
        async def send_message(self, sender: int, to: int, message: dict[str, Any]) -> None:
            told.append(message["type"])

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(60)
        raise AssertionError

    async def send() -> None:
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/files",
            "query_string": f"to=5&key={KEY}".encode(),
            "headers": [(b"x-file-name", b"a")],
            "session": {"id": 1, "name": "Ana"},
            "state": {"files": Files(tmp_path), "helper": Helper()},
        }
        with pytest.raises(Refused) as refused:
            await upload(Request(scope, receive))
        assert refused.value.status == 408

    monkeypatch.setattr("freeim.demo.files.UPLOAD_SECONDS", 0.05)
    asyncio.run(send())
    assert told == ["file-coming", "file-failed"]
    assert os.listdir(tmp_path) == []


def test_the_folder_ends_with_the_app(redis_server: RedisServer, temporary: Path) -> None:
    with running_app(redis_server.url, temporary=temporary) as demo:
        with Visitor(demo.page(), "Ana") as ana:
            ana.upload(5, "a", b"x")
        assert len(stored(temporary)) == 1
    assert list(temporary.glob("freeim-demo-*")) == []
