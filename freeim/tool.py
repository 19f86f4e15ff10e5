"""What ``python -m freeim`` does: listen as a client, send to one, to a channel, or to everybody.

For first steps and for looking into a deployment: it is an app and a terminal in one, so whoever can reach Redis can
do all this.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import io
import os
import sys
from collections.abc import Sequence
from typing import Any, Never

from freeim.commands import AnyId, Published
from freeim.errors import ConfigError, FreeImError, RedisUnavailable
from freeim.exits import Exit
from freeim.helper import ImHelper
from freeim.helper_async import AsyncImHelper


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Never:
        raise ConfigError(f"{message}; see {self.prog} --help")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    deployment = _Parser(add_help=False)
    deployment.add_argument(
        "--redis-url", metavar="URL", help="the nodes' Redis; by default FREEIM_REDIS_URL, else the embedded one"
    )
    deployment.add_argument("--path", default="/ws", help="the path of the nodes' WebSocket endpoint [/ws]")
    deployment.add_argument(
        "--prefix", metavar="TEXT", help="the beginning of all names in Redis, as the nodes have it"
    )
    deployment.add_argument("--ids", choices=["int", "guid"], default="int", help="the kind of client id [int]")
    sender = _Parser(add_help=False)
    sender.add_argument("--from", dest="sender", metavar="CLIENT", help="who sends; by default nobody, the system")
    parser = _Parser(
        prog="python -m freeim", description="Be a client of FreeIM nodes, or send to some, from the command line."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    listen = commands.add_parser(
        "listen",
        parents=[deployment],
        help="connect as a client and print what arrives, until Ctrl-C",
        description="Authorise a client, connect it, and print what arrives, a line each. Connects again, with a fresh "
        "token, whenever the connection ends, except when the client is forced offline.",
    )
    listen.add_argument("client", metavar="CLIENT", help="the client id to connect as")
    listen.add_argument(
        "--chan", action="append", default=[], metavar="NAME", help="join this channel too (may be repeated)"
    )
    for name, argument, text in (
        ("send", "client", "send a text to a client"),
        ("send-chan", "channel", "send a text to the members of a channel"),
    ):
        command = commands.add_parser(name, parents=[deployment, sender], help=text)
        command.add_argument(argument, metavar=argument.upper().removesuffix("NEL"))
        command.add_argument("text", metavar="TEXT")
    broadcast = commands.add_parser("broadcast", parents=[deployment], help="send a text to every client")
    broadcast.add_argument("text", metavar="TEXT")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    Args:
        argv: The command line without the program's name; that of the process when it is left out.
    """
    try:
        options = build_parser().parse_args(argv)
        return _run(options)
    except (FreeImError, ValueError) as error:
        print(f"freeim: {error}", file=sys.stderr)
        return Exit.REDIS if isinstance(error, RedisUnavailable) else Exit.CONFIG
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except BrokenPipeError:  # whoever read the output has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.STOPPED


def _run(options: argparse.Namespace) -> int:
    deployment: dict[str, Any] = {"ids": options.ids, "path": options.path, "prefix": options.prefix}
    if options.command == "listen":
        if importlib.util.find_spec("picows") is None:
            raise ConfigError("listening needs picows, which installs with freeim where a node can run")
        from freeim.listen import listen

        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # what the terminal cannot show is no reason to stop
        listener = AsyncImHelper(options.redis_url, **deployment)
        asyncio.run(listen(listener, _client_id(options.client, options.ids), options.chan))
        return Exit.STOPPED
    with ImHelper(options.redis_url, **deployment) as helper:
        _send(helper, options)
    return Exit.STOPPED


def _send(helper: ImHelper, options: argparse.Namespace) -> None:
    if options.command == "broadcast":
        _tell(helper.send_broadcast_message(options.text))
        return
    sender = None if options.sender is None else _client_id(options.sender, options.ids)
    if options.command == "send":
        client = _client_id(options.client, options.ids)
        published = helper.send_message(sender, client, options.text, report_offline=True)
        _tell(published)
        if published.offline:
            print(f"client {options.client} is not online", file=sys.stderr)
    else:
        _tell(helper.send_chan_message(sender, options.channel, options.text))
        members = helper.get_chan_online(options.channel)
        print(f"the channel {options.channel!r} has {members} member{'s' * (members != 1)}")


def _client_id(text: str, kind: str) -> AnyId:
    if kind == "guid":
        return text
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"a client id must be a whole number, not {text!r} (or use --ids guid)") from None


def _tell(published: Published) -> None:
    print(f"published to {published.addressed} node{'s' * (published.addressed != 1)}")
    if published.silent:
        print(f"nobody runs {', '.join(published.silent)} at the moment", file=sys.stderr)
