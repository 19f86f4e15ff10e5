"""One worker of a group: a process that `freeim.supervisor` starts as ``python -m freeim.worker``; so does the demo.

Its standard input is the lifeline to the supervisor, see `freeim.lifeline`. The first and only line on its standard
output is the banner; it tells the supervisor that the node serves.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Mapping
from typing import Any, Final

from freeim.config import Options
from freeim.exits import Exit
from freeim.lifeline import Lifeline, pack, unpack
from freeim.log import configure

_STDIN: Final = 0

FOR_SUPERVISOR: Final = frozenset({signal.SIGINT, signal.SIGHUP})
"""Signals that a terminal sends to all, and that the supervisor alone answers."""

_RESTARTED: Final = "--restarted"


async def start(
    options: Options, environ: Mapping[str, str], *, restarted: bool = False, **more: Any
) -> asyncio.subprocess.Process:
    """Start a worker, in the process that is to watch over it.

    Args:
        options: The options of its one node.
        environ: Its environment; the search path is handed on beside it, as it is here.
        restarted: It is started in place of one that has served.
        more: See `asyncio.create_subprocess_exec`.
    """
    # -P keeps the current folder from shadowing modules.
    command: tuple[str, ...] = (sys.executable, "-P", "-m", "freeim.worker", options.node or options.bind)
    command += (_RESTARTED,) if restarted else ()
    process = await asyncio.create_subprocess_exec(
        *command,
        env={**environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        **more,
    )
    assert process.stdin is not None
    process.stdin.write(pack(options))
    return process


def unpack_banner(line: bytes) -> str:
    """Return the banner that a worker wrote on its standard output."""
    return str(json.loads(line))


def main() -> int:
    """Run the worker and return its exit code."""
    # A Ctrl-C at the terminal reaches the whole group. The supervisor takes it and tells the workers with SIGTERM; it
    # started this process with SIGINT blocked, so that there was no moment at which one could get through.
    # So it is with SIGHUP.
    for number in FOR_SUPERVISOR:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FOR_SUPERVISOR)
    lifeline = Lifeline(_STDIN)
    line = lifeline.first()
    options = unpack(line) if line else None
    if options is None:
        return Exit.STOPPED
    configure(options.log_level, options.log_format, options.node or options.bind)
    # Standard output belongs to the supervisor; what else is printed goes to stderr.
    to_supervisor = os.dup(1)
    os.dup2(2, 1)

    def announce(banner: str) -> None:
        with contextlib.suppress(BrokenPipeError):  # then the lifeline ends as well
            os.write(to_supervisor, json.dumps(banner).encode() + b"\n")
        os.close(to_supervisor)

    from freeim.serve import serve

    return serve(options, announce, lifeline=lifeline, restarted=_RESTARTED in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
