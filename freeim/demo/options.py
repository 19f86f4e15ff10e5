"""The command line of the demo, and what it makes of the node's options."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

from freeim.config import Options
from freeim.config_checks import is_loopback, is_wildcard, join_bind, split_bind
from freeim.demo.checks import LARGEST_UPLOAD
from freeim.demo.secret import VARIABLE
from freeim.errors import ConfigError

PROGRAM: Final = "python -m freeim.demo"
REDIS_VARIABLE: Final = "FREEIM_REDIS_URL"
"""The app's helper reads it by itself; of all options of a node it is the only one that the demo takes over."""
NODE_PORT: Final = 6001

_ORIGINS: Final = {"bind": "--node-bind", "public_url": "--node-url", "redis_url": REDIS_VARIABLE}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog=PROGRAM, description="A chat in the browser, on a FreeIM node of its own.")
    parser.add_argument(
        *("--bind", "-b"),
        type=_bind,
        default=("127.0.0.1", 8000),
        metavar="HOST:PORT",
        help="where the app listens (127.0.0.1:8000); 0.0.0.0:8000 lets your phone in, and everybody else around",
    )
    parser.add_argument(
        "--node-bind",
        type=_bind,
        metavar="HOST:PORT",
        help=f"where the node listens (port {NODE_PORT}, on the app's host)",
    )
    parser.add_argument("--node-url", metavar="URL", help="what browsers connect to, as freeim-server's --public-url")
    parser.add_argument("--no-node", action="store_true", help="start no node: one runs already")
    parser.add_argument(
        "--max-upload",
        type=_bytes,
        default=LARGEST_UPLOAD,
        metavar="BYTES",
        help=f"the largest file that is taken ({LARGEST_UPLOAD}); as many bytes as ten of them have are "
        "kept, in at most a hundred files, until the app ends",
    )
    parser.add_argument(
        "--secret",
        metavar="TEXT",
        help=f"what signs the cookies; better in {VARIABLE}, where other users of this machine cannot see it; left "
        "out, it is in a file that is made at the first start",
    )
    return parser


def node_options(bind: tuple[str, int], url: str | None, shown: str, environ: Mapping[str, str]) -> Options:
    """Return the options of the demo's node: what the demo decides, and all else at its default.

    Args:
        bind: Where the node listens.
        url: What browsers connect to, where the command line says it.
        shown: The host under which browsers reach this machine.
        environ: The environment.

    Raises:
        ConfigError: The sentence names the option of the demo that is wrong.
    """
    if url is None and is_wildcard(bind[0]):
        url = f"ws://{join_bind(shown, bind[1])}"
    redis_url = environ.get(REDIS_VARIABLE) or None
    try:
        return Options(
            bind=join_bind(*bind),
            node=None if url is None else join_bind(shown, 0).removesuffix("0") + "{port}",
            public_url=url,
            redis_url=redis_url,
            embedded=redis_url is None,  # the app and the node are both here
        ).for_worker()
    except ConfigError as error:
        origin = next((_ORIGINS[field] for field in error.fields if field in _ORIGINS), None)
        raise ConfigError(f"{origin}: {error}" if origin else str(error), *error.fields) from error


def app_hosts(host: str, node_url: str | None) -> frozenset[str] | None:
    """Return the names that the app answers to; None for any.

    What listens on the loopback is meant for this machine, and would be open to every site that this machine visits if
    such a site's name could stand for it. A proxy in front has the name of the node's URL.
    """
    if not is_loopback(host):
        return None
    names = {host.lower(), "localhost", "127.0.0.1", "::1"}
    with contextlib.suppress(ValueError):
        names.add(urlsplit(node_url or "").hostname or host)
    return frozenset(names)


def fail(sentence: str, code: int) -> int:
    """Say what went wrong, in one line, and return the exit code."""
    print(f"{PROGRAM}: {sentence}", file=sys.stderr, flush=True)
    return code


def _bind(text: str) -> tuple[str, int]:
    try:
        return split_bind(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _bytes(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 0 < int(text) <= 2**30:
        raise argparse.ArgumentTypeError(f"must be a number of bytes, from 1 to {2**30}, not {text!r}")
    return int(text)
