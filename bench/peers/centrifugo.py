"""Centrifugo: clients use its unidirectional WebSocket, messages come by its HTTP API."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from bench.peers.base import HttpSender, Peer, Run, Sender, Server, find_program, free_port

SECRET: Final = "of the benchmark"
BATCH: Final = 100


class CentrifugoPeer(Peer):
    """One process, whose threads use all cores; each client shows a JWT that names its channels."""

    name = "centrifugo"
    path = "/connection/uni_websocket?cf_connect="
    envelope = ('"pub":{"data":', "}}")

    def missing(self) -> str | None:
        """Look for the program."""
        if _program():
            return None
        return "go install github.com/centrifugal/centrifugo/v6@latest (found on PATH and in ~/go/bin)"

    def version(self) -> str:
        """Return what its module says if Go is here; built by `go install` it calls itself 0.0.0."""
        program = str(_program())
        try:
            done = subprocess.run(["go", "version", "-m", program], capture_output=True, text=True)
            found = re.search(r"\tmod\t\S+centrifugo\S*\t(\S+)", done.stdout)
        except OSError:
            found = None
        if found:
            return f"centrifugo {found[1]}"
        return subprocess.run([program, "version"], capture_output=True, text=True).stdout.strip()

    def start(self, run: Run) -> Server:
        """Write its configuration and start it, with the engine in memory: nothing else needs to hear of a message."""
        port = free_port()
        config: dict[str, Any] = {
            "http_server": {"address": "127.0.0.1", "port": str(port)},
            "log": {"level": "error"},
            "client": {"token": {"hmac_secret_key": SECRET}, "ping_interval": "1h", "pong_timeout": "10s"},
            "uni_websocket": {"enabled": True},
            "websocket": {"disabled": True},
            "http_api": {"insecure": True},
            "usage_stats": {"disabled": True},
        }
        path = run.folder / "config.json"
        path.write_text(json.dumps(config))
        return Server(self.name, [str(_program()), "--config", str(path)], port, run)

    def sender(self, server: Server) -> Sender:
        """Publish by HTTP."""
        return _ApiSender(server.port)

    def tokens(self, server: Server, count: int) -> list[str]:
        """Return connect commands, each with a JWT that subscribes to everybody's channel and to the client's own."""
        del server  # it checks the signature
        return [quote(json.dumps({"token": _jwt(number)}, separators=(",", ":"))) for number in range(1, count + 1)]


class _ApiSender(HttpSender):
    """Sends many in few requests: that is the least that its API can cost."""

    def pack(self, text: str, client: int = 0) -> bytes:
        # The text is JSON already.
        return f'{{"publish":{{"channel":"{_channel(client)}","data":{text}}}}}'.encode()

    def send(self, packed: Sequence[bytes]) -> None:
        batches = [packed[start : start + BATCH] for start in range(0, len(packed), BATCH)]
        bodies = [f'{{"commands":[{b",".join(batch).decode()}]}}' for batch in batches]
        super().send([self.request("/api/batch", body, "Content-Type: application/json") for body in bodies])


def _channel(client: int) -> str:
    return f"client{client}" if client else "everybody"


def _jwt(client: int) -> str:
    claims = {"sub": str(client), "channels": [_channel(0), _channel(client)]}
    parts = ({"alg": "HS256", "typ": "JWT"}, claims)
    signed = ".".join(_base64(json.dumps(part, separators=(",", ":")).encode()) for part in parts)
    return f"{signed}.{_base64(hmac.digest(SECRET.encode(), signed.encode(), hashlib.sha256))}"


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _program() -> str | None:
    return find_program("centrifugo", Path.home() / "go" / "bin")
