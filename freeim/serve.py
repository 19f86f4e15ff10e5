"""Runs one node in this process until a signal, its end, or the end of the process that watches over it."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from freeim.collector import pace_collector
from freeim.config import Options
from freeim.errors import ConfigError, HandedOver, NodeReplaced, RedisUnavailable
from freeim.exits import Exit
from freeim.limits import raise_descriptor_limit

if TYPE_CHECKING:
    from freeim.node import Node

STOP_SECONDS: Final = 12.0
"""How long a node may take to stop beyond its drain time: its close time-out, and what Redis needs."""

_log = logging.getLogger("freeim.server")


def serve(
    options: Options, announce: Callable[[str], None], *, lifeline: int | None = None, restarted: bool = False
) -> int:
    """Run one node and return the exit code of the process.

    Args:
        options: The options of this one node (see `Options.for_worker`).
        announce: Gets the banner as soon as the node serves.
        lifeline: A descriptor that comes to its end when this node shall stop.
        restarted: It is started in place of a worker that has served (see `freeim.Node`).
    """
    import uvloop  # compiled, as is the node: neither exists where only the helper runs

    from freeim.node import Node

    raise_descriptor_limit()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_serve(partial(Node, restarted=True) if restarted else Node, options, announce, lifeline))
    except ConfigError as error:
        _log.error("%s", error)
        return Exit.CONFIG
    except RedisUnavailable as error:
        _log.error("%s", error)
        return Exit.REDIS
    except HandedOver as error:
        _log.info("%s", error)
        return Exit.HANDED_OVER
    except NodeReplaced as error:
        _log.error("%s", error)
        return Exit.REPLACED
    except Exception:
        _log.critical("freeim-server ends because of a defect; please report it with these lines", exc_info=True)
        return Exit.DEFECT


async def _serve(
    make_node: Callable[[Options], Node], options: Options, announce: Callable[[str], None], lifeline: int | None
) -> int:
    node = make_node(options)
    told = _watch_signals(lifeline)
    _log.debug("starting the node %s", options.node or options.bind)
    start = asyncio.ensure_future(node.start())
    await _first(start, told)
    if not start.done():
        start.cancel()
        await _bounded(start, STOP_SECONDS)
        return Exit.STOPPED
    try:
        start.result()
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {options.bind}: {error.strerror or error}; choose another --bind"
        ) from error
    pace_collector(asyncio.get_running_loop())
    announce(node.banner())
    finished = asyncio.ensure_future(node.finished())
    await _first(finished, told)
    stop = asyncio.ensure_future(node.stop())
    handed_over = finished.done() and finished.exception() is None
    # Whoever is connecting while the node is handed over is served first.
    arriving = options.handshake_timeout if handed_over else 0.0
    await _bounded(stop, arriving + options.drain + STOP_SECONDS)
    stop.result()
    if finished.done():
        finished.result()
    finished.cancel()
    return Exit.HANDED_OVER if handed_over else Exit.STOPPED


def _watch_signals(lifeline: int | None) -> asyncio.Event:
    """Return an event that is set by SIGTERM, Ctrl-C, the end of the terminal, or that of the lifeline.

    A second Ctrl-C ends at once.
    """
    loop = asyncio.get_running_loop()
    told = asyncio.Event()

    def tell(why: str) -> None:
        if not told.is_set():
            _log.info("stopping: %s", why)
            told.set()

    def interrupt() -> None:
        if told.is_set():
            os._exit(Exit.INTERRUPTED)
        tell("Ctrl-C (once more to stop at once)")

    def end_of_lifeline() -> None:
        if lifeline is not None and not os.read(lifeline, 1024):
            loop.remove_reader(lifeline)
            tell("the process that started this worker is gone")

    loop.add_signal_handler(signal.SIGTERM, tell, "SIGTERM")
    loop.add_signal_handler(signal.SIGHUP, tell, "SIGHUP, the terminal is gone")
    if lifeline is None:
        loop.add_signal_handler(signal.SIGINT, interrupt)
    else:
        loop.add_reader(lifeline, end_of_lifeline)
    return told


async def _first(task: asyncio.Future[None], told: asyncio.Event) -> None:
    """Wait until the task is done or the event is set."""
    waiting = asyncio.ensure_future(told.wait())
    await asyncio.wait((task, waiting), return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()


async def _bounded(task: asyncio.Future[None], seconds: float) -> None:
    """Wait for the end of a task; end the process where it takes too long."""
    await asyncio.wait((task,), timeout=seconds)
    if not task.done():
        _log.error("the node did not stop within %g s; leaving it as it is", seconds)
        os._exit(Exit.STOPPED)  # what holds the node up would hold up the end of the loop too
