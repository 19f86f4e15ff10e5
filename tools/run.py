"""What `make run` does: a Redis, found or started; a node on it; and how to connect and chat.

The arguments are those of freeim-server, e.g. ``make run ARGS="--bind 127.0.0.1:7001"``.
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

import redis

from freeim import ImHelper
from freeim.config import Options
from freeim.config_load import load
from freeim.errors import ConfigError

HOST, REDIS_PORT = "127.0.0.1", 6379
URL_SECONDS = 600
START_SECONDS = 10.0

HOW_TO_CHAT = """
A first client: client 1. This URL works once, within ten minutes (those of an app: within ten seconds).

  {python} -m websockets "{url}"

A chat between two more terminals:

  {python} {chat} 1 2{redis}
  {python} {chat} 2 1{redis}

Ctrl-C ends {all}.
"""


def main() -> int:
    """Run a node until Ctrl-C, and return its exit code."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        options, command = load(sys.argv[1:], os.environ)
        named = options.redis_url_with_password() if "redis_url" in command.origins else None
    except ConfigError as error:
        sys.exit(f"freeim-server: {error}")
    if (options.path, options.ids, options.prefix) != (Options.path, Options.ids, Options.prefix):
        sys.exit("make run shows a node as it is by default; for --path, --ids and --prefix start freeim-server itself")
    with contextlib.nullcontext(named) if named else local_redis() as url:
        return serve(url, "the node" if named or url is None else "")
    return 0
