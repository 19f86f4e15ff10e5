"""The demo as processes, visitors that speak HTTP to its app, and the connections that they have to the node."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.cli.command import Server

SECRET = "a secret for the tests"
KEY = "a-key-of-a-page"
SECONDS = 10.0
"""How long anything that must happen may take here."""

_keys = itertools.count(1)


def program(redis_url: str, **variables: str) -> tuple[str, ...]:
    """Return the demo as a program, on a Redis and with more variables in its environment."""
    environ = {"FREEIM_REDIS_URL": redis_url, "FREEIM_DEMO_SECRET": SECRET, **variables}
    return ("env", *(f"{name}={value}" for name, value in environ.items()), sys.executable, "-P", "-m", "freeim.demo")


class Demo(Server):
    """A running ``python -m freeim.demo``. Its node is in a session of its own, and ends with it."""

    def page(self, seconds: float = 20.0) -> str:
        """Wait until it serves, and return the address of its page."""
        self._wait_for(lambda: "Ctrl-C ends" in self.stdout, "an address", seconds)
        return re.findall(r"The chat is at (http://\S+)", self.stdout)[0]

    def children(self) -> list[int]:
        """Return the process ids of what it has started."""
        found = subprocess.run(["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True, check=False)
        return [int(each) for each in found.stdout.split()]

    def __exit__(self, *exc: object) -> None:
        if self.process.poll() is None:
            children = self.children()
            self.tell(signal.SIGTERM)
            try:
                self.wait()
            except subprocess.TimeoutExpired:
                for child in children:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(child, signal.SIGKILL)
        super().__exit__(*exc)


@contextlib.contextmanager
def running_app(redis_url: str, *args: str, port: int = 0, temporary: Path | None = None) -> Iterator[Demo]:
    """Run the app alone, and wait until it serves."""
    variables = {} if temporary is None else {"TMPDIR": str(temporary)}
    command = program(redis_url, **variables)
    with Demo("--no-node", "--bind", f"127.0.0.1:{port}", *args, program=command) as demo:
        demo.page()
        yield demo


def fresh_key() -> str:
    return f"test-key-{next(_keys)}"


class Visitor:
    """A browser with a cookie jar of its own, and with a connection to the node while it is in a ``with``.

    Args:
        base: The address of the app.
        name: The nickname.
    """

    def __init__(self, base: str, name: str) -> None:
        self.http = httpx.Client(base_url=base, trust_env=False, timeout=SECONDS)
        self.name = name
        self.seen: list[dict[str, Any]] = []
        self._socket: ClientConnection | None = None
        self._connections: list[contextlib.ExitStack] = []
        answer = self.ok("/ws/pre-connect", name=name)
        self.id: int = answer["websocketId"]
        self.url: str = answer["server"]

    def post(self, path: str, **body: Any) -> httpx.Response:
        # As ASCII: half of a character, which some tests send, has no other form.
        return self.http.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})

    def ok(self, path: str, **body: Any) -> dict[str, Any]:
        """Post what the app must carry out, and return its answer."""
        response = self.post(path, **body)
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        assert answer.pop("code") == 0
        return answer

    def connect(self) -> None:
        """Connect to the node, with the URL that the app gave."""
        connection = contextlib.ExitStack()
        self._socket = connection.enter_context(connect(self.url, proxy=None, max_queue=None))
        self._connections.append(connection)

    @property
    def socket(self) -> ClientConnection:
        assert self._socket is not None, f"{self.name} is not connected"
        return self._socket

    def hear(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Wait for a message of a kind that has these fields; what came before it is in `seen`."""
        deadline = time.monotonic() + SECONDS
        while True:
            message: dict[str, Any] = json.loads(self.socket.recv(deadline - time.monotonic()))
            if message.get("type", "receipt") == kind and fields.items() <= message.items():
                return message
            self.seen.append(message)

    def heard(self, kind: str) -> list[dict[str, Any]]:
        """Return the messages of a kind that have arrived of all that was published before this call."""
        mark = fresh_key()
        self.ok("/ws/send-broadcast", message="fence", key=mark)
        self.hear("everyone", key=mark)
        return [message for message in self.seen if message["type"] == kind]

    def ended(self) -> tuple[int, str]:
        """Wait until the node closes the connection; return the code and the reason."""
        try:
            while True:
                self.socket.recv(SECONDS)
        except ConnectionClosed as closed:
            assert closed.rcvd is not None
            return closed.rcvd.code, closed.rcvd.reason

    def upload(self, to: int, name: str, content: Any, key: str | None = None) -> httpx.Response:
        headers = {"X-File-Name": name, "Content-Type": "application/octet-stream"}
        return self.http.post("/files", params={"to": to, "key": key or fresh_key()}, headers=headers, content=content)

    def disconnect(self) -> None:
        """Close the latest connection to the node."""
        self._connections.pop().close()

    def close(self) -> None:
        """Close everything."""
        while self._connections:
            self.disconnect()
        self.http.close()

    def __enter__(self) -> Self:
        self.connect()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def failure(response: httpx.Response, status: int, reason: str) -> str:
    """Check that a request was refused, in the one form that there is; return the sentence."""
    assert response.status_code == status, response.text
    answer = response.json()
    assert (answer["code"], answer["reason"]) == (status, reason)
    sentence: str = answer["error"]
    return sentence
