"""The command ``python -m freeim.demo``: a node, the app, and the address to open."""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import os
import socket
import sys
from collections.abc import Sequence
from typing import Final

from freeim.config_checks import is_wildcard, join_bind, split_bind
from freeim.demo.secret import VARIABLE, find_secret
from freeim.exits import Exit

PROGRAM: Final = "python -m freeim.demo"
NEEDED: Final = ("starlette", "uvicorn", "itsdangerous")
LARGEST_UPLOAD: Final = 10 * 1024 * 1024


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo until Ctrl-C, and return its exit code.

    Args:
        argv: The command line without the program's name; that of the process when it is left out.
    """
    options = build_parser().parse_args(argv)
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        return _fail(f'{" and ".join(missing)} is missing here: pip install "freeim[demo]"')
    try:
        secret = find_secret(options.secret, os.environ)
    except (ValueError, OSError) as error:
        return _fail(f"no secret to sign cookies with: {error}")
    host, port = options.bind
    try:
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        reason = error.strerror if isinstance(error, socket.gaierror) else os.strerror(error.errno or 0)
        return _fail(f"cannot listen on {join_bind(host, port)}: {reason}; choose another --bind")
    # Others can come only if they can reach the node as well, by an address that means something to them.
    shown = own_address() if is_wildcard(host) else host
    node: list[str] | None = None
    if not options.no_node:
        bind = options.node_bind or join_bind(host, 6001)
        node = ["--bind", bind]
        url = options.node_url
        if url is None and is_wildcard(split_bind(bind)[0]):
            url = f"ws://{join_bind(shown, split_bind(bind)[1])}"
        if url is not None:
            node += ["--node", f"{shown}:{{port}}", "--public-url", url]
        if not os.environ.get("FREEIM_REDIS_URL"):
            node.append("--embedded")  # the app and the node are both here
    from freeim.demo.launch import run

    with listener:
        page = f"http://{join_bind(shown, listener.getsockname()[1])}"
        return asyncio.run(run(listener, page, secret, options.max_upload, node))


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
        type=lambda text: join_bind(*_bind(text)),
        metavar="HOST:PORT",
        help="where the node listens (port 6001, on the app's host)",
    )
    parser.add_argument("--node-url", metavar="URL", help="what browsers connect to, as freeim-server's --public-url")
    parser.add_argument("--no-node", action="store_true", help="start no node: one runs already")
    parser.add_argument(
        "--max-upload",
        type=_bytes,
        default=LARGEST_UPLOAD,
        metavar="BYTES",
        help=f"the largest file that is taken ({LARGEST_UPLOAD}); ten of them are kept, until the app ends",
    )
    parser.add_argument(
        "--secret",
        metavar="TEXT",
        help=f"what signs the cookies; better in {VARIABLE}, where other users of this machine cannot see it; left "
        "out, it is in a file that is made at the first start",
    )
    return parser


def own_address() -> str:
    """Return the address under which others reach this machine, or the loopback where there is no network."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing; the system chooses the interface
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


def _bind(text: str) -> tuple[str, int]:
    try:
        return split_bind(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _bytes(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 0 < int(text) <= 2**30:
        raise argparse.ArgumentTypeError(f"must be a number of bytes, from 1 to {2**30}, not {text!r}")
    return int(text)


def _fail(sentence: str) -> int:
    print(f"{PROGRAM}: {sentence}", file=sys.stderr)
    return Exit.CONFIG


if __name__ == "__main__":
    sys.exit(main())
