"""``SIGHUP``: the options are read again, or the terminal that the process was started on is gone."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from freeim.config import OPTIONS, Options
from freeim.config_load import load
from freeim.errors import ConfigError
from freeim.log import configure
from freeim.option_files import change_to

if TYPE_CHECKING:
    from freeim.node import Node

TERMINAL_GRACE: Final = 0.25
"""Seconds that a terminal has to be gone after its SIGHUP: shells, and Linux at the end of a shell, send it first."""

_log = logging.getLogger("freeim.server")


class Sources:
    """Where the options of this process come from.

    Args:
        argv: The command line without the program's name.
        environ: The environment.
        options: What was read there at the start, for all workers, and is in force.
    """

    def __init__(self, argv: Sequence[str], environ: Mapping[str, str], options: Options) -> None:
        self._argv = argv
        self._environ = environ
        self._options = options

    def read_again(self) -> Options:
        """Return what is in force from now on, for all workers; says what would take a restart.

        Raises:
            ConfigError: What is there now is wrong, or a file that it names; what was in force still is.
        """
        options, _ = load(self._argv, self._environ)
        change, _ = change_to(self._options, options.for_embedded())
        if change.kept:
            _log.warning("needs a restart: %s; until then the old values are in force", flags(change.kept))
        self._options = change.options
        return change.options


def flags(names: Iterable[str]) -> str:
    """Return options as people write them."""
    return ", ".join(OPTIONS[name].flag for name in names)


def tell_refused(error: ConfigError) -> None:
    """Say that new options are not used."""
    _log.error("not reloaded, and nothing has changed: %s", error)


def reload_node(node: Node, find: Callable[[], Options | None], label: str) -> None:
    """Reload a node, and log what came of it.

    Args:
        node: Serving.
        find: Returns its options; None where others have found that they cannot be used, and have said so.
        label: Who speaks in the log.
    """
    try:
        options = find()
    except ConfigError as error:
        tell_refused(error)
        options = None
    if options is None:
        node.reloads["error"] += 1
        return
    try:
        changed = node.reload(options).changed
    except ConfigError as error:
        tell_refused(error)
        return
    configure(options.log_level, options.log_format, label)
    _log.info("reloaded, changed: %s", flags(changed) or "nothing")


class Hangup:
    """Tells for each SIGHUP what it means.

    A process that was started on a terminal, and not with nohup, ends with that terminal. For anybody else, and while
    the terminal is there, SIGHUP means to reload.

    Args:
        on_end: Called where the terminal is gone.
        on_reload: Called where the options are to be read again.
    """

    def __init__(self, on_end: Callable[[], None], on_reload: Callable[[], None]) -> None:
        # nohup has it ignored.
        self._on_terminal = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN and has_terminal()
        self._on_end = on_end
        self._on_reload = on_reload
        self._loop = asyncio.get_running_loop()
        self._looking: asyncio.TimerHandle | None = None
        self._loop.add_signal_handler(signal.SIGHUP, self._received)

    def _received(self) -> None:
        if not self._on_terminal:
            self._on_reload()
        elif not has_terminal():
            self._on_end()
        elif self._looking is None:
            self._looking = self._loop.call_later(TERMINAL_GRACE, self._look)

    def _look(self) -> None:
        self._looking = None
        if has_terminal():
            self._on_reload()
        else:
            self._on_end()


def has_terminal() -> bool:
    """Whether this process has a controlling terminal, and it is still there."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK))
    except OSError:
        return False
    return True
