"""Real proxies as processes, each in a folder of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

PATH = "/usr/sbin:/usr/local/sbin:/usr/local/bin:/usr/bin:/opt/homebrew/bin"


@contextlib.contextmanager
def _process(port: int, output: Path, *command: str) -> Iterator[None]:
    """Run a proxy until the end of the block; it listens on the port at its begin."""
    program = shutil.which(command[0], path=PATH)
    assert program is not None, f"no {command[0]} to test with"
    home = {name: str(output.parent) for name in ("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME")}
    with output.open("wb") as stream:
        process = subprocess.Popen(
            [program, *command[1:]], stdout=stream, stderr=subprocess.STDOUT, env={**os.environ, **home}
        )
    try:
        deadline = time.monotonic() + 20
        while True:
            assert process.poll() is None, output.read_text()
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert time.monotonic() < deadline, output.read_text()
            time.sleep(0.02)
        yield
    finally:
        process.terminate()
        process.wait(20)


@contextlib.contextmanager
def nginx(text: str, port: int, folder: Path) -> Iterator[None]:
    """Run nginx with what stands in its ``http`` block."""
    paths = "".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = folder / "nginx.conf"
    config.write_text(
        f"daemon off; pid {folder}/pid; error_log {folder}/error.log; worker_processes 1;"
        f"events {{ worker_connections 100; }} http {{ access_log off; {paths}\n{text}\n}}",
        encoding="utf-8",
    )
    command = ("nginx", "-p", str(folder), "-e", f"{folder}/error.log", "-c", str(config))
    with _process(port, folder / "output.log", *command):
        yield


@contextlib.contextmanager
def caddy(text: str, port: int, folder: Path) -> Iterator[None]:
    """Run Caddy with a Caddyfile."""
    config = folder / "Caddyfile"
    config.write_text(text, encoding="utf-8")
    with _process(port, folder / "output.log", "caddy", "run", "--config", str(config), "--adapter", "caddyfile"):
        yield


@contextlib.contextmanager
def haproxy(text: str, port: int, folder: Path) -> Iterator[None]:
    """Run HAProxy with a configuration."""
    config = folder / "haproxy.cfg"
    config.write_text(text, encoding="utf-8")
    with _process(port, folder / "output.log", "haproxy", "-db", "-f", str(config)):
        yield


def files_with(folder: Path, text: str) -> list[str]:
    """Return the names of the logs in a folder that hold a text."""
    return [path.name for path in folder.glob("*.log") if text in path.read_text(encoding="utf-8", errors="replace")]
