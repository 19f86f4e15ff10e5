"""The command ``python -m freeim.demo``: a node, the app, and the address to open."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import socket
import sys
from collections.abc import Sequence
from typing import Final

from freeim.cli import check_platform
from freeim.config import Options
from freeim.config_checks import is_wildcard, join_bind
from freeim.demo.options import NODE_PORT, app_hosts, build_parser, fail, node_options
from freeim.demo.secret import find_secret
from freeim.errors import ConfigError
from freeim.exits import Exit

NEEDED: Final = ("starlette", "uvicorn", "itsdangerous")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo until Ctrl-C, and return its exit code.

    Args:
        argv: The command line without the program's name; that of the process when it is left out.
    """
    given = build_parser().parse_args(argv)
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        return fail(f'{" and ".join(missing)} is missing here: pip install "freeim[demo]"', Exit.CONFIG)
    try:
        secret = find_secret(given.secret, os.environ)
    except (ValueError, OSError) as error:
        return fail(f"no secret to sign cookies with: {error}", Exit.CONFIG)
    host, port = given.bind
    # Others can come only if they can reach the node as well, by an address that means something to them.
    shown = own_address() if is_wildcard(host) else host
    node: Options | None = None
    try:
        if not given.no_node:
            check_platform()
            node = node_options(given.node_bind or (host, NODE_PORT), given.node_url, shown, os.environ)
        with listen(host, port, "--bind") as listener:
            if node is not None:  # the node's own sentence would name an option that the demo does not have
                listen(*node.address, "--node-bind").close()
            from freeim.demo.app import create_app
            from freeim.demo.launch import run

            app = create_app(secret, given.max_upload, app_hosts(host, given.node_url))
            page = f"http://{join_bind(shown, listener.getsockname()[1])}"
            return asyncio.run(run(listener, page, app, node))
    except ConfigError as error:
        return fail(str(error), Exit.CONFIG)


def listen(host: str, port: int, option: str) -> socket.socket:
    """Return a listening socket; [::] is every address of IPv4 too, as it is for a node.

    Args:
        host: Address to bind, IPv6 without brackets.
        port: Port, 0 for any free one.
        option: The option that says so.

    Raises:
        ConfigError: The address cannot be bound.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        both = family == socket.AF_INET6 and is_wildcard(host) and socket.has_dualstack_ipv6()
        return socket.create_server((host, port), family=family, dualstack_ipv6=both)
    except OSError as error:
        reason = error.strerror if isinstance(error, socket.gaierror) else os.strerror(error.errno or 0)
        raise ConfigError(f"cannot listen on {join_bind(host, port)}: {reason}; choose another {option}") from error


def own_address() -> str:
    """Return the address under which others reach this machine, or the loopback where there is no network."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing; the system chooses the interface
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


if __name__ == "__main__":
    sys.exit(main())
